"""The board: what the list of runs shows, as text, on one page that asks for nothing, and a server of it alone."""

import http.client
import json
import math
import os
import shutil
import subprocess
from contextlib import contextmanager
from functools import cache
from html.parser import HTMLParser
from threading import Thread
from unittest import mock

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from cli import board as boards
from cli import config, run_table, seal
from cli.board import Board
from cli.board_server import Server
from pipeline import files
from tests.commands import run as pipe

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
HOSTILE = "</script><img src=x onerror=alert(1)>&amp;\u202e"


@cache
def settings(given):
    return tomli_w.dumps(config.make(json.loads(given)).tables).encode()


def write(folder, epochs=3, end="done", lr=0.1, **given):
    """A run's folder, as training leaves it."""
    losses = [2 * math.exp(-e * lr) + 0.1 * lr for e in range(1, epochs + 1)]
    rows = [
        {"epoch": e, "step": 23 * e, "train/loss": loss, "validate/loss": loss, "validate/accuracy": 1 / (1 + loss),
         "seconds": 0.5, "samples_per_second": 9e3}
        for e, loss in enumerate(losses, 1)
    ]  # fmt: skip
    rows[0]["better"] = {"loss": "low", "accuracy": "high"}
    rows = seal.chained(rows, folder.name)
    contents = {
        config.CONFIG: settings(json.dumps({"data": "digits", "epochs": epochs, "lr": lr, **given})),
        seal.STATUS: json.dumps({"state": end, "why": ""}).encode(),
        seal.METRICS: seal.lines(rows),
    }
    sums = {name: [seal._digest(content)] for name, content in contents.items()}
    sums[seal.METRICS] = [rows[-1][seal.CHAIN]]
    facts = {"format": 1, "run": folder.name, "files": sums, "checkpoints": {}, "accepted": []}
    contents[seal.MANIFEST] = json.dumps({**facts, "checksum": files.checksum(facts)}).encode()
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Runs that differ; one is hostile, one is damaged, one has a report, and two are long."""
    root = tmp_path_factory.mktemp("runs")
    for i, lr in enumerate((0.1, 0.3, 1e-5)):
        write(root / f"digits-mlp-{i}", lr=lr, hidden=[32, 16][: i + 1])
    write(root / HOSTILE.replace("/", ""), end=HOSTILE, optimizer="adamw", epochs=1)
    write(root / "long", epochs=1001, lr=0.01)
    (root / "damaged").mkdir()
    (root / "damaged/config.toml").write_text("[run]\nepochs = 'many'\n")
    (root / "digits-mlp-0/report.html").write_text("<p>its report</p>")
    return root


class Page(HTMLParser):
    """The tags of a page with their attributes, and the texts of its scripts."""

    def __init__(self, text):
        super().__init__(convert_charrefs=False)
        self.tags, self.scripts = [], {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "script":
            name = self.tags[-1][1].get("id", "code")
            self.scripts[name] = self.scripts.get(name, "") + data


def written(folder, out):
    assert pipe("board", folder, "--out", out).code == 0
    return Page(out.read_text())


def test_it_shows_what_the_list_of_runs_does(root, tmp_path):
    """The same runs with the same cells; all settings that differ have a column, and the others are told once."""
    shown = json.loads(written(root, tmp_path / "b.html").scripts["data"])
    listed = {e["run"]: e for e in json.loads(pipe("runs", root, "--json").out)["runs"]}
    entries = {str(e.folder): e for e in run_table.entries_in(root)}
    assert len(shown["runs"]) == len(listed) == 6
    assert {*run_table.differing([*entries.values()])} <= {*shown["settings"]}
    for run in shown["runs"]:
        [name] = [name for name in listed if boards._name(entries[name].folder) == run["id"]]
        e, cells = listed[name], dict(zip(shown["columns"], run["cells"], strict=True))
        assert cells["best"] == run_table.best_cell(entries[name])
        assert cells["time"] == run_table.duration(e["seconds"])
        assert run["state"] == e["state"]
        assert run["value"] == (e["best"] and e["best"]["value"])
        for n in shown["settings"]:
            assert cells[n] == run_table.setting_cell(entries[name].flat.get(n))
    flats = [e.flat for e in entries.values() if e.config is not None]
    for n, text in shown["common"].items():
        assert {run_table.setting_cell(flat[n]) for flat in flats} == {text}


@given(st.integers(1, 400), st.integers(1, 50), st.data())
def test_thinned_curves(epochs, most, data):
    """They keep the first, the last and the best epoch, as they are, and little more than was asked for."""
    rows = [{"epoch": e, "step": e, "validate/loss": e / 7} for e in range(1, epochs + 1)]
    best = data.draw(st.integers(1, epochs))
    thin = boards._curves(rows, best, most)
    assert {1, epochs, best} <= {*thin["epochs"]}
    assert len(thin["epochs"]) <= most + 2
    assert thin["values"]["validate/loss"] == [pytest.approx(e / 7, rel=1e-5) for e in thin["epochs"]]
    assert thin["epochs"] == sorted({*thin["epochs"]})


def test_all_is_text_and_asks_for_nothing(root, tmp_path):
    """No value ends a script or becomes a tag, and no address is elsewhere; a report's is beside the page."""
    page = written(root, tmp_path / "b.html")
    assert [tag for tag, _ in page.tags].count("script") == 3
    assert not [tag for tag, _ in page.tags if tag in ("img", "link", "iframe")]
    assert not [attrs for _, attrs in page.tags if {"src", "href"} & {*attrs} or any(a.startswith("on") for a in attrs)]
    assert "http" not in page.scripts["code"].replace("http-equiv", "")
    assert "innerHTML" not in page.scripts["code"]
    data = json.loads(page.scripts["data"])
    assert "\u202e" not in page.scripts["data"] + page.scripts["series"]
    assert any(HOSTILE[:9] in run["cells"][2] for run in data["runs"])
    [report] = [run["report"] for run in data["runs"] if run["report"]]
    assert (tmp_path / report).resolve() == (root / "digits-mlp-0/report.html").resolve()


def test_several_folders_and_members_of_sweeps(tmp_path):
    """Runs of two folders have their folder's name; a sweep's members are there, and the link to the best is not."""
    write(tmp_path / "a/one")
    write(tmp_path / "b/sweep/members/000", lr=0.1)
    write(tmp_path / "b/sweep/members/001", lr=0.3)
    shutil.copy(tmp_path / "a/one/config.toml", tmp_path / "b/sweep/config.toml")
    (tmp_path / "b/sweep/sweep.json").write_text('{"rows": [{}, {}], "seeds": 1}')
    os.symlink("members/001", tmp_path / "b/sweep/best")
    data = Board([tmp_path / "a", tmp_path / "b"]).data()
    assert data["columns"][:2] == ["run", "folder"]
    assert {tuple(run["cells"][:2]) for run in data["runs"]} == {
        ("one", str(tmp_path / "a")),
        *((f"sweep{name}", str(tmp_path / "b")) for name in ("", "/members/000", "/members/001")),
    }


def test_only_what_changed_is_read_and_sent(root, tmp_path):
    """A new run, a longer one and a removed one are sent, once; the others are not even read."""
    shutil.copytree(root, tmp_path / "r")
    board = Board([tmp_path / "r"])
    before = board.data()
    assert before["whole"]
    assert board.data(before["version"])["runs"] == []
    shutil.rmtree(tmp_path / "r/long")
    write(tmp_path / "r/more", lr=0.01)
    shutil.rmtree(tmp_path / "r/digits-mlp-1")
    write(tmp_path / "r/digits-mlp-1", lr=0.3, hidden=[32, 16], epochs=4)
    board._next = 0.0
    with mock.patch.object(run_table, "entry", wraps=run_table.entry) as read:
        after = board.data(before["version"])
    assert read.call_count == 2
    assert [run["id"] for run in after["runs"]] == [str(tmp_path / "r/digits-mlp-1"), str(tmp_path / "r/more")]
    assert after["gone"] == [str(tmp_path / "r/long")]
    assert board.data(after["version"])["runs"] == []
    assert len(board.data(before["version"] - 10**6)["runs"]) == 6  # a page of an earlier server


@contextmanager
def served(folder):
    with Server(Board([folder]), 0) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def test_it_serves_itself_alone(root):
    """To this machine's names, the page, its runs and their reports; no other file, host, path or method."""
    with served(root) as server:

        def get(path, method="GET", **headers):
            link = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
            link.request(method, path, headers=headers)
            answer = link.getresponse()
            return answer.status, answer.read().decode(), answer.headers

        run = json.loads(get("/runs.json")[1])["runs"]
        [report] = [r["report"] for r in run if r["report"]]
        assert server.server_address[0] == "127.0.0.1"
        assert get("/")[0] == get("/", Host="localhost:1")[0] == 200
        status, text, headers = get(f"/{report}")
        assert (status, text) == (200, "<p>its report</p>")
        assert headers["Content-Security-Policy"].startswith("sandbox")
        for host in ("evil.com", "127.0.0.1.evil.com", f"evil.com:{server.server_port}", "", "[::1]"):
            assert get("/", Host=host)[0] == get("/runs.json", Host=host)[0] == 403
        for path in (
            "/digits-mlp-0/report.html", "/../../etc/passwd", "//etc/passwd", "/report", "/report?run=/etc",
            f"/report?run={root}/long", f"/report?run={root}/digits-mlp-0/../digits-mlp-0", "/runs.json?after=-1",
            "/runs.json?after=x", f"/runs.json?after={'9' * 30}", "/report?run=%ff%00",
        ):  # fmt: skip
            assert get(path)[0] == 404
        assert get("/", "POST")[0] == 501


def test_commands_that_are_refused(root, tmp_path):
    """Each by a line that says what to write; Ctrl-C ends a server well."""
    for words, said in (
        ((tmp_path / "none",), "is no folder"), ((tmp_path,), "there is no run in"), ((root, "--port", 1), "--serve"),
        ((root, "--serve", "--out", "x"), "--out"), ((root, "--port", 70000, "--serve"), "65535"),
        ((root, "--out", root), "Is a directory"),
    ):  # fmt: skip
        ended = pipe("board", *words)
        assert (ended.code, len(ended.err.splitlines()), said in ended.err) == (2, 1, True), ended
    with served(root) as server:
        ended = pipe("board", root, "--serve", "--port", server.server_port)
        assert (ended.code, "--port 0" in ended.err) == (2, True)
    with mock.patch.object(Server, "service_actions", side_effect=KeyboardInterrupt):
        ended = pipe("board", root, "--serve", "--port", 0)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("http://127.0.0.1:")


def opened(address, tmp_path):
    """A page as Chromium has it after a while, with what its console says."""
    flags = ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
             "disable-component-update", "disable-sync", f"user-data-dir={tmp_path}/profile", "enable-logging=stderr",
             "virtual-time-budget=5000", "dump-dom")  # fmt: skip
    ended = subprocess.run(
        [CHROMIUM, *(f"--{flag}" for flag in flags), address], capture_output=True, text=True, timeout=120
    )
    assert "CONSOLE" not in ended.stderr, [line for line in ended.stderr.splitlines() if "CONSOLE" in line]
    return ended.stdout


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")

USED = """<script>addEventListener("load", () => {
const key = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
const said = [];
key("/"); said.push(document.activeElement.id);
$("filter").value = "lr<0.2 hidden=32"; $("filter").oninput(); said.push(view.rows.length);
key("Enter"); said.push(document.activeElement.id);
$("none").onclick(); key(" "); said.push(view.chosen.length, document.querySelectorAll("figure").length);
key("Enter"); said.push($("run").open, $("run").querySelector("iframe").sandbox.length); $("run").close();
$("filter").value = ""; $("filter").oninput(); $("table").focus(); key("End");
said.push(view.rows.at(-1).id === view.here);
for (const id of ["logx", "logy"]) $(id).checked = true;
$("smooth").value = 0.9; $("first").onclick(); key("ArrowUp");
document.querySelector("figure canvas").focus(); key("ArrowRight"); key("ArrowRight");
said.push(document.querySelector("figcaption").textContent.split(":")[0].replace(" ", "-"));
document.body.dataset.said = said.join(" ");
})</script>"""


@needs_chromium
def test_it_works_with_the_keyboard(root, tmp_path):
    """/ filters, Enter leads to the table, Space chooses, Enter opens; hostile names are text; nothing is an error."""
    written(root, tmp_path / "b.html")
    text = (tmp_path / "b.html").read_text()
    (tmp_path / "used.html").write_text(text.replace("</body>", f"{USED}</body>"))
    shown = opened((tmp_path / "used.html").as_uri(), tmp_path)
    assert 'data-said="filter 1 table 1 2 true 0 true epoch-2"' in shown
    assert "<img" not in shown


@needs_chromium
@pytest.mark.parametrize("count", [1, 50, 2000])
def test_it_opens(count, tmp_path):
    """With one run or thousands, soon, with the rows in sight alone."""
    for i in range(count):
        write(tmp_path / f"runs/{i}", epochs=2 + i % 3, lr=0.1 + i % 7)
    written(tmp_path / "runs", tmp_path / "b.html")
    shown = opened((tmp_path / "b.html").as_uri(), tmp_path)
    assert f">{count} of {count}<" in shown
    assert min(count, 20) <= shown.count('id="row-') <= 100


@needs_chromium
def test_it_follows_what_trains(root, tmp_path):
    """An open page shows a run that began after it was opened."""
    shutil.copytree(root, tmp_path / "r")
    with served(tmp_path / "r") as server:
        page = server.board.page  # of it as it is

        def changed():
            text = page()
            write(tmp_path / "r/newer", lr=0.5)
            server.board._next = 0.0
            return text

        with mock.patch.object(Board, "page", side_effect=changed):
            shown = opened(server.url, tmp_path)
    assert ">7 of 7, live<" in shown
    assert ">newer<" in shown
