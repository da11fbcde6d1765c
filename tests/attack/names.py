"""Names that come from data hold escape codes, new lines, formulas and markup: none acts in a terminal, in TOML, in a
table or in HTML."""

from __future__ import annotations

import csv
import io
import re
import tomllib
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser

from tests.attack.ground import Attack, Ground

NAMES = {
    "a colour": "\x1b[31mred",
    "a title": "\x1b]0;owned\x07",
    "a clipboard": "\x1b]52;c;Zm9v\x07",
    "a link": "\x1b]8;;http://x\x1b\\y\x1b]8;;\x1b\\",
    "a cleared screen": "\x1b[2J\x1b[H",
    "a report": "\x1b[6n",
    "an 8-bit CSI": "\x9b31mred",
    "a bell": "a\x07b",
    "a backspace": "ok\x08\x08no",
    "a return": "one\rtwo",
    "a new line": 'x\n[run]\nout = "/tmp/owned"\n#',
    "a vertical tab": "a\x0bb\x0cc",
    "a delete": "a\x7fb",
    "right to left": "abc\u202egpj.exe",
    "an isolate": "a\u2066b\u2069c",
    "a formula": '=HYPERLINK("http://x","y")',
    "a formula by plus": "+1+cmd|' /C calc'!A0",
    "a formula by minus": "-2+3+cmd|' /C calc'!A0",
    "a formula by at": "@SUM(A1:A9)",
    "a script": "<script>alert(1)</script>",
    "an attribute": '" onmouseover="alert(1)" x="',
    "an entity": "&lt;b&gt;&#27;[31m",
    "rich markup": "[red]x[/red][link=http://x]y[/link][/]",
    "a format": "{0.__class__} %s %n ${x} $(id) `id`",
    "quotes": "a\"b'c\\",
    "toml": 'a" = 1\n[model]\nname = "x.py:y"\n"',
    "a line separator": "a\u2028b\u2029c\x85d",
}
COMMANDS = ("init", "show", "train", "sweep", "eval", "predict", "report", "runs", "plot", "export", "errors")
PLACES = ("a class", "a column", "the target", "a file", "a folder", "a value of a column")


def attacks(plan: Ground) -> Iterator[Attack]:
    for word, name in NAMES.items():
        for place in PLACES:
            if place in ("a file", "a folder") and "/" in name:
                continue
            for command in COMMANDS:
                yield Attack("names", command, f"{place} is {word}", partial(_try, command, place, name))


def _try(command: str, place: str, name: str, ground: Ground) -> None:
    columns, classes, values, file, folder = ["width", "kind", "answer"], ["yes", "no"], ["u", "v"], "table.csv", "r"
    if place == "a class":
        classes[0] = name
    if place == "a column":
        columns[0] = name
    if place == "the target":
        columns[2] = name
    if place == "a file":
        file = f"{name}.csv"
    if place == "a folder":
        folder = name if not name.startswith("-") else f"./{name}"
    if place == "a value of a column":
        values[0] = name
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    for i in range(24):
        writer.writerow([f"{i * 7 % 11}.5", values[i % 2], classes[i // 2 % 2]])
    (ground.here / file).write_text(text.getvalue(), encoding="utf-8", newline="")
    where = file if not file.startswith("-") else f"./{file}"
    common = ("--data", where, "--hidden", "4", "--epochs", "1", "--no-compile", "-q", "--set", "header=true")
    train = ("train", *common, "-v")[: 10 if command == "train" else 9]
    run: tuple[str, ...] = (*train, "--out", folder)
    if command == "init":
        said = ground.pipe("init", where, "--out", "out.toml", clean=True)
        if said.code == 0:
            _toml(ground, where)
        return
    if command == "show":
        ground.pipe("show", *(a for a in common if a != "-q"), clean=True)
        return
    if command == "sweep":
        ground.pipe("sweep", *common, "--lr", "0.1,0.2", "--out", folder, clean=True)
        return
    if command == "errors":
        wrong = (
            ("eval", name),
            ("train", f"{name}.toml"),
            ("train", "--data", name),
            ("train", *common, "--target", name),
            ("train", "--set", f"{name}=1"),
            ("train", "--model", name),
            ("sweep", "--lr", name),
            ("plot", name),
            ("runs", ".", "--sort", name),
        )
        for args in wrong[:: 1 if place == "a class" else 4]:
            ground.pipe(*args, clean=True)
        return
    if ground.pipe(*run, clean=command == "train").code:
        return
    args = {
        "eval": ("eval", folder),
        "predict": ("predict", folder, "--data", where),
        "report": ("report", folder, "--out", "out.html"),
        "runs": ("runs", folder),
        "plot": ("plot", folder, "--out", "out.svg"),
        "export": ("export", folder, "--format", "weights", "--out", "out.safetensors"),
    }.get(command)
    if args is None:
        return
    said = ground.pipe(*args, clean=True)
    if said.code:
        return
    if command == "predict":
        ground.pipe(*args, "--out", "out.csv", clean=True)
        _cells(ground, (ground.here / "out.csv").read_text(encoding="utf-8"))
    if command == "report":
        _page(ground, (ground.here / "out.html").read_text(encoding="utf-8"))
    if command == "plot" and re.search(r"<script|\son\w+=", (ground.here / "out.svg").read_text(encoding="utf-8")):
        ground.fault("markup", "the picture has a name as markup")
    if command == "eval":
        ground.pipe("eval", folder, "--json")


def _toml(ground: Ground, data: str) -> None:
    try:
        found = tomllib.loads((ground.here / "out.toml").read_text(encoding="utf-8"))
    except ValueError as e:
        ground.fault("toml", f"what pipe init wrote is no TOML: {e}")
        return
    tables = {k: v for k, v in found.items() if isinstance(v, dict)}
    if (
        found.get("data", {}).get("source") != data
        or tables.get("run", {}).get("out")
        or ":" in str(tables.get("model", {}).get("name"))
    ):
        ground.fault("toml", f"what pipe init wrote has other settings: {found}")
    ground.pipe("show", "out.toml", clean=True)


def _cells(ground: Ground, text: str) -> None:
    for row in csv.reader(io.StringIO(text)):
        for cell in row:
            if re.match(r"[=+\-@\t\r]", cell) and not re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", cell):
                ground.fault("formula", f"a cell is {cell!r}")
                return


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "script" or any(k.startswith("on") for k, _ in attrs):
            self.found.append(f"<{tag} {attrs}>")


def _page(ground: Ground, text: str) -> None:
    tags = _Tags()
    tags.feed(text)
    if tags.found:
        ground.fault("markup", f"the report has {tags.found[0]}")
    if found := re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", text):
        ground.fault("markup", f"the report has {found[0]!r}")
