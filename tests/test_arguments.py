"""The config of the current folder: what uses it, and when."""

import json
from contextlib import redirect_stderr
from io import StringIO

import pytest

from cli.arguments import train_config
from tests.commands import run

SAID = "pipe: settings are those of pipe.toml, as no data, config or run is named\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a pipe.toml and another config."""
    monkeypatch.chdir(tmp_path)
    both = "epochs = 1\ncompile = false\nmodel = 'mlp'\n"
    (tmp_path / "pipe.toml").write_text(f"{both}lr = 0.125\ndata = 'sklearn:wine'\nhidden = [3]\n")
    (tmp_path / "b.toml").write_text(f"{both}lr = 0.25\ndata = 'sklearn:iris'\nhidden = [2]\n")
    return tmp_path


def chosen(file=None, named=(), **options):
    """Data, widths and learning rate that a command gets, and whether pipe.toml is said to be used."""
    with redirect_stderr(StringIO()) as err:
        flat = train_config(file, options, named=named).flat
    assert err.getvalue() in ("", SAID)
    return flat["data"], flat["hidden"], flat["lr"], bool(err.getvalue())


def test_it_is_used_if_nothing_is_named(here):
    """Options beside it replace its settings; data, a config or a run in its place leave it alone."""
    assert chosen() == ("sklearn:wine", (3,), 0.125, True)
    assert chosen(lr=0.5, assigned=("hidden=[4]",)) == ("sklearn:wine", (4,), 0.5, True)
    assert chosen("b.toml") == ("sklearn:iris", (2,), 0.25, False)
    assert chosen(data="digits", hidden="4") == ("digits", (4,), None, False)
    assert chosen(assigned=("data.source=digits",), hidden="4") == ("digits", (4,), None, False)
    assert chosen(named=["data"], hidden="4") == ("digits", (4,), None, False)
    (here / "pipe.toml").unlink()
    assert chosen(hidden="4") == ("digits", (4,), None, False)


def test_commands_use_it(here):
    """A run of it is trained, and shown by data, and a changed setting compared with it."""
    code, out, err = run("train", "--json")
    assert (code, err.startswith(SAID)) == (0, True)
    assert json.loads(out)["settings"]["lr"] == 0.125
    assert json.loads(run("data", "--json").out)["data"] == "sklearn:wine"
    assert run("data", "digits").err == ""
    code, out, err = run("compare", "--set", "lr=0.2", "--seeds", "2", "--json")
    assert (code, SAID in err) == (0, True)
    assert [json.loads(out)["settings"][side]["lr"] for side in "AB"] == [0.125, 0.2]


def test_a_run_is_trained_again_on_its_own_file(tmp_path):
    """Not on another of its name in the folder at hand; that its rows have changed since is said."""
    a, b = tmp_path / "a", tmp_path / "b"
    for folder, factor in ((a, 2), (b, 3)):
        folder.mkdir()
        (folder / "t.csv").write_text("x,y\n" + "".join(f"{k % 17},{factor * k % 23}\n" for k in range(80)))
    few = ("--epochs", 1, "--no-compile", "-q")
    assert run("train", "--data", "t.csv", "--model", "mlp", *few, "--out", "run", cwd=a).code == 0
    assert run("train", a / "run", "--out", "same", cwd=b)[::2] == (0, "")
    same, first = ((f / "metrics.jsonl").read_text().partition(', "seconds"')[0] for f in (b / "same", a / "run"))
    assert same == first
    assert run("eval", a / "run", cwd=b)[::2] == (0, "")
    ended = run("train", "--resume", a / "run", "--epochs", 2, cwd=b)
    assert (ended.code, f"the data in {b / 't.csv'} have changed" in ended.err) == (2, True)
    assert run("set", a / "run", f"data={b / 't.csv'}", cwd=a).code == 0
    assert "have changed since" in run("eval", a / "run", cwd=a).err
    assert run("set", a / "run", "data=t.csv", cwd=a).code == 0
    (a / "t.csv").write_text((b / "t.csv").read_text())
    said = "t.csv: the data have changed since the run was made"
    assert said in run("train", "run", *few, "--out", "other", cwd=a).err
    assert said in run("sweep", "run", "--lr", "0.1,0.2", *few, cwd=a).err
    assert run("train", "run", "--seed", 1, *few, "--out", "seed", cwd=a)[::2] == (0, "")


def test_code_in_it_needs_trust(here):
    """As in any config that is named."""
    (here / "pipe.toml").write_text("pipeline = 'net.py:make'\n")
    code, _, err = run("train")
    assert code == 2
    assert "--trust" in err


def test_without_one_the_data_are_asked_for(tmp_path):
    """In one line each."""
    for args, what in ((("data",), "pipe data houses.csv"), (("compare", "--set", "lr=1"), "name A")):
        code, out, err = run(*args, cwd=tmp_path)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert what in err
