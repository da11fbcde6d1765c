"""`pipe port`: what the parts of a training script of torch are here."""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten
from typing import Any

import click

from cli import as_json
from cli.recipes.setting import refusal

LONGEST = 60
"""Characters of the script's own text in the table."""


@click.command("port")
@click.argument("script", metavar="TRAIN.py")
@click.option("--out", metavar="FILE", help="write the pipeline to a new file  [default: below the table]")
def command(script: str, out: str | None) -> as_json.Found:
    """Show what each part of a training script of torch is here, and write a Pipeline of them.

    The script is read, and neither imported nor run. What can't be told from its text is listed as not translated.
    """
    try:
        return port(Path(script), out)
    except RecursionError:
        raise refusal(f"{script}:1: it is nested too deep to be read") from None


def port(path: Path, out: str | None) -> dict[str, Any]:
    from rich.table import Table

    from cli import output
    from cli.port.part import Text, written
    from cli.port.parts import parts
    from cli.port.script import Script
    from cli.port.skeleton import skeleton
    from cli.progress import plain, tell
    from cli.run_table import WIDE
    from pipeline.text import shown

    if out is not None and Path(out).exists():
        raise refusal(f"{out} exists already; name another file by --out")
    found = parts(Script.read(path))
    say = plain(False)
    table = Table("line", "what", "there", "here", "pipe train", box=None, pad_edge=False)
    table.columns[0].justify = "right"
    for column in table.columns[2:]:
        column.overflow = "fold"
    for p in found:
        short = {k: Text("...") if isinstance(v, Text) else v for k, v in p.arguments.items()}
        here = p.here if "(" in p.here or not short else written(p.here, short)
        table.add_row(str(p.line), p.what, *map(shown, (shorten(p.there, LONGEST, placeholder="..."), here, p.option)))
    none = f"{path}: no part of a training loop of torch is found"
    if not say.is_terminal:
        say.width = WIDE
    say.print(table if found else none)
    notes = {(p.here.partition("(")[0], note): p.line for p in reversed(found) for note in reversed(p.notes)}
    say.print("")
    for line in [f"not translated: line {p.line}: {m}" for p in found for m in p.missing]:
        say.print(line)
    for (here, note), number in reversed(notes.items()):
        say.print(f"line {number}: {here}: {note}")
    text = skeleton(path.name, found)
    if out is None:
        tell("\n" + text)
    else:
        with output.written(Path(out), new=True) as file:
            file.write(text.encode())
        say.print(f"{out}: a Pipeline to go on with")
    facts = [{"line": p.line, "what": p.what, "there": p.there, "here": p.here, "option": p.option,
              "arguments": {k: v if not isinstance(v, str) else str(v) for k, v in p.arguments.items()},
              "not_translated": p.missing, "notes": p.notes} for p in found]  # fmt: skip
    return {"script": str(path), "parts": facts, "pipeline": text, "file": out}
