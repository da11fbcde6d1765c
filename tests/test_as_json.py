"""--json: one object on stdout that a strict parser reads, of every command."""

import importlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli import as_json
from cli.commands import COMMANDS
from tests.commands import run

SHORT = ("--epochs", "1", "--no-compile", "--hidden", "4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a table, and runs of it and of a text."""
    here = tmp_path_factory.mktemp("as_json")
    (here / "rows.csv").write_text("a,b,kind\n" + "".join(f"{i % 7},{i % 3},{'xy'[i % 2]}\n" for i in range(60)))
    (here / "a.txt").write_text("to be or not to be, that is the question\n" * 9)
    (here / "train.py").write_text("import torch\noptimizer = torch.optim.SGD(net.parameters(), 0.1)\n")
    (here / "a.toml").write_text("data.source = 'digits'\n[model]\nhidden = [4]\n[run]\nepochs = 1\n")
    model = ("--model", "transformer", "--set", "heads=1", "--width", "4", "--depth", "1", "--context", "8")
    for args in (("rows.csv", "--model", "mlp", *SHORT[:3]), ("a.txt", *model, *SHORT[:3])):
        assert run("train", "--data", *args, "--out", args[0][:1], "-q", cwd=here).code == 0
    return here


CALLS = {
    "bench": ("--seconds", "0.01", "--no-compile", "--hidden", "4"),
    "board": (".",),
    "cache": (),
    "compare": ("a.toml", "--set", "lr=0.2", "--seeds", "2", "--no-compile"),
    "data": ("rows.csv",),
    "doctor": (),
    "eval": ("r",),
    "explain": ("--backend", "eager", "--hidden", "4"),
    "export": ("r", "--format", "weights"),
    "init": ("rows.csv",),
    "package": ("r",),
    "plot": ("r",),
    "port": ("train.py",),
    "predict": ("r", "--data", "rows.csv", "--out", "p.csv"),
    "profile": ("--steps", "1", "--no-compile", "--hidden", "4"),
    "report": ("r",),
    "runs": (".",),
    "sample": ("a", "--count", "5"),
    "set": ("r", "patience=9"),
    "show": ("--hidden", "4"),
    "sweep": ("--lr", "0.1,0.2", *SHORT, "-q"),
    "train": ("--lr", "1e9", "--set", "on_nonfinite=skip", *SHORT),
}
HAS = {
    "cache": "packages", "data": "columns", "eval": "metrics", "runs": "runs", "sample": "text", "show": "stages",
    "port": "parts", "set": "changes", "sweep": "best", "train": "best", "compare": "result", "bench": "ways",
    "profile": "rows",
    "explain": "graphs",
}  # fmt: skip


def read(text):
    """One object without NaN and infinities."""

    def refuse(name):
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("name", [*COMMANDS])
def test_every_command_prints_one_object(folder, name):
    """Each has --json, with its name, the version and its result; what it says otherwise is on stderr."""
    options = [o for p in importlib.import_module(f"cli.commands.{name}").command.params for o in p.opts]
    if name in as_json.WITHOUT:
        assert "--json" not in options
        return
    code, out, err = run(name, *CALLS[name], "--json", cwd=folder)
    assert code == 0, err
    assert "Traceback" not in err
    found = read(out)
    assert (found["version"], found["command"], found["ok"]) == (as_json.VERSION, name, True)
    assert HAS.get(name, "file" if name != "doctor" else "checks") in found
    assert out.isascii()


def test_a_failure_is_an_object_and_exit_code_1(folder):
    """A replay that differs exits with 1, with and without --json; an error prints no object."""
    assert run("train", *SHORT, "--save-steps", "10", "--out", "v", "-q", cwd=folder).code == 0
    same = run("train", "--resume", "v", "--verify", "--json", cwd=folder)
    assert (same.code, read(same.out)["differ"]) == (0, [])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.testing.differences", lambda *_: ["params/0.weight"])
        other = run("train", "--resume", "v", "--verify", "--json", cwd=folder)
        assert run("train", "--resume", "v", "--verify", cwd=folder).code == 1
    assert (other.code, read(other.out)["ok"], read(other.out)["differ"]) == (1, False, ["params/0.weight"])
    bad = run("eval", "nowhere", "--json", cwd=folder)
    assert (bad.code, bad.out) == (2, "")


def test_predictions_and_the_object_do_not_share_stdout(folder):
    """Without --out, the predictions are the output."""
    code, out, err = run("predict", "r", "--data", "rows.csv", "--json", cwd=folder)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--out" in err


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


@settings(max_examples=50)
@given(st.dictionaries(st.text() | st.integers(), st.recursive(leaves, lambda v: st.lists(v) | st.tuples(v, v))))
def test_strict_is_json(value):
    """Any value of plain Python is read back by a strict parser, with the same numbers."""
    found = read(json.dumps(as_json.strict(value), allow_nan=False))
    assert found.keys() == {str(name) for name in value}
    for name, item in value.items():
        if isinstance(item, float) and item - item == 0 and list(map(str, value)).count(str(name)) == 1:
            assert found[str(name)] == item
