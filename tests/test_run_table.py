"""The table of runs: fewer columns on a narrow terminal, and none that is cut; the state of a sweep."""

import json
import os
import shutil
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli import config, run_table
from cli.progress import Plain
from cli.run_table import Entry
from tests.commands import run as pipe

WORDS = st.text("abcdefgh-", min_size=1, max_size=30)
RUNS = [
    ("customer-churn-2024-tabm-1", {"data": "digits", "lr": 0.002, "hidden": [512, 512]}, 100.0),
    ("digits-mlp-1", {"lr": 0.1, "momentum": 0.5}, 88.61),
    ("digits-mlp-2", {"optimizer": "adamw", "batch_size": 32, "warmup": 0.1, "clip": 0.0}, 88.33),
    ("sweep-digits-mlp-1/best", {"lr": 0.3, "schedule": "wsd", "weight_decay": 0.001}, 95.83),
]


def entries(why=""):
    rows = [
        {"epoch": 2, "validate/accuracy": 0.5, "validate/loss": 1.0, "better": {"accuracy": "high"}, "seconds": 3.0}
    ]
    return [
        Entry(
            name, Path("runs", name), config.make(given), [{**rows[0], "validate/accuracy": value / 100}], "done", why
        )
        for name, given, value in RUNS
    ]


def printed(width, what):
    """What a terminal of this width shows, with its lines."""
    file = StringIO()
    say = Plain(file=file, width=width, force_terminal=True, color_system=None, soft_wrap=True, highlight=False)
    what(say)
    return [line.rstrip() for line in file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_nothing_is_cut(width):
    """Names, results and states are whole at each width; wider terminals show more settings; each is named once."""
    lines = printed(width, lambda say: run_table.print_list(say, entries(), None))
    assert max(map(len, lines)) <= width
    assert not [line for line in lines if "\N{HORIZONTAL ELLIPSIS}" in line]
    for (name, _, value), line in zip(RUNS, lines[1:], strict=False):
        assert line.startswith(f"{name} ")
        assert f"accuracy {value:.2f} % in 2" in line
        assert line.endswith("done")
    text = " ".join(lines).replace(",", " ").replace(":", " ").split()
    differing = run_table.differing(entries())
    assert {*differing} <= {*text}
    assert len(lines[0].split()) == len({*lines[0].split()})
    if width == 200:
        assert {"lr", "hidden", "momentum"} <= {*lines[0].split()}


def test_a_long_reason_leaves_the_columns():
    """A reason that fits no line is cut at its end; the other columns stay whole."""
    lines = printed(80, lambda say: run_table.print_list(say, entries("a metric is not finite " * 9), None))
    assert max(map(len, lines)) <= 80
    assert lines[1].startswith("customer-churn-2024-tabm-1 ")
    assert "done: a metric" in lines[1]


@given(st.lists(st.tuples(WORDS, WORDS, WORDS, WORDS), min_size=1, max_size=5), st.integers(30, 200))
def test_columns_that_fit(rows, width):
    """What stays fits, if run, best and state do, and nothing is left out that would fit beside it."""
    names = ("run", "data", "model", "lr", "best", "epochs", "time", "state")
    columns = {name: [row[i % 4] for row in rows] for i, name in enumerate(names)}
    dropped = run_table.fitting(columns, width, ["lr"])
    size = {name: 2 + max(map(len, (name, *cells))) for name, cells in columns.items()}
    size["state"] = 2 + run_table._width(("state", *columns["state"]))
    used = sum(size[name] for name in names if name not in dropped) - 2
    must = sum(size[name] for name in ("run", "best", "state")) - 2
    assert used <= max(width, must)
    assert not {"run", "best", "state"} & {*dropped}
    assert all(used + size[name] > width for name in dropped)


@pytest.mark.parametrize("width", [40, 80, 1000])
def test_side_by_side(width):
    """Each run has a column, in as many tables as a width needs; names are whole."""
    found = printed(width, lambda say: [say.print(table) for table in run_table.side_by_side(entries(), width)])
    heads = [word for line in found for word in line.split() if word in {name for name, *_ in RUNS}]
    assert max(map(len, found)) <= max(width, 46)
    assert [*heads] == [name for name, *_ in RUNS]


def test_a_default_of_the_optimizer_is_found():
    """Whether or not anybody wrote it."""
    found = [e.name for e in entries() if run_table._matches(e, "lr=0.3", entries())]
    assert found == ["sweep-digits-mlp-1/best"]
    plain = Entry("plain", Path("plain"), config.make({}), [], "done", "")
    assert run_table._matches(plain, "lr=0.3", [plain])
    assert run_table._matches(plain, "momentum=0.9", [plain])
    assert not run_table._matches(plain, "lr=0.1", [plain])


def test_states_of_a_sweep(tmp_path):
    """A finished sweep is done and has the result of its best member; a stopped one says how many are trained."""
    assert pipe("sweep", "--lr", "0.1,0.3", "--epochs", 1, "--no-compile", "-q", "--out", tmp_path / "s").code == 0

    def listed():
        return {Path(e["run"]).name: e for e in json.loads(pipe("runs", tmp_path, "--json").out)["runs"]}

    both = listed()
    assert (both["s"]["state"], both["s"]["why"]) == ("done", "2 runs")
    assert both["s"]["best"] == both["best"]["best"]
    assert both["s"]["epochs"] == 1
    os.unlink(tmp_path / "s/best")
    shutil.rmtree(tmp_path / "s/members/001")
    assert (listed()["s"]["state"], listed()["s"]["why"]) == ("stopped", "1/2 runs")
    (tmp_path / "s/sweep.json").write_text('{"rows": 3}')
    assert listed()["s"]["state"] == "failed"
