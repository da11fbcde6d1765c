"""A run is sealed: what is damaged, cut short or of another run is named, and never used without a word."""

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_iris

from cli import config, folder, seal
from cli.recipes import code
from cli.saved_run import Past
from pipeline import PipeError, files, load_run, log
from pipeline.errors import ConfigError
from tests.commands import run

TRAIN = ["train", "--data", "iris.csv", "--model", "mlp", "--epochs", "3", "--set", "keep=3", "--set", "save_minutes=0",
         "--no-compile"]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two runs that differ in the seed, an ensemble and a sweep."""
    root = tmp_path_factory.mktemp("seal")
    iris = load_iris(as_frame=True)
    iris.data.assign(kind=iris.target_names[iris.target]).to_csv(root / "iris.csv", index=False)
    for name, more in (("a", []), ("b", ["--seed", "1"]), ("many", ["--ensemble", "2"])):
        assert run(*TRAIN, *more, "--out", name, "-q", cwd=root).code == 0
    sweep = [
        "sweep",
        "--data",
        "iris.csv",
        "--model",
        "mlp",
        "--epochs",
        "4",
        "--lr",
        "0.03,0.1,0.3,1",
        "--halving",
        "--no-compile",
    ]
    assert run(*sweep, "--out", "sweep", "-q", cwd=root).code == 0
    return root


@pytest.fixture
def runs(made, tmp_path):
    """A copy to be damaged."""
    shutil.copytree(made, tmp_path / "runs", symlinks=True)
    return tmp_path / "runs"


def newest(path):
    return max((path / "checkpoints").glob("step-*"))


COMMANDS = {
    "eval": ["eval", "{}"],
    "predict": ["predict", "{}", "--data", "iris.csv"],
    "export": ["export", "{}", "--format", "weights", "--out", "out.safetensors"],
    "report": ["report", "{}", "--out", "out.html"],
    "again": ["train", "{}", "--out", "again"],
    "resume": ["train", "--resume", "{}", "--epochs", "4"],
}


@pytest.mark.parametrize("name", ["a", "many"])
@pytest.mark.parametrize("file", ["config.toml", "run.json"])
@pytest.mark.parametrize("harm", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b.replace(b"0", b"1")],
                         ids=["cut", "emptied", "changed"])  # fmt: skip
def test_a_config_that_is_not_the_runs_is_refused_by_every_command(runs, name, file, harm):
    """One line names the file; nothing is made."""
    path = runs / name / file
    path.write_bytes(harm(path.read_bytes()))
    for args in COMMANDS.values():
        before = sorted(p.name for p in runs.iterdir())
        ended = run(*(a.format(name) for a in args), cwd=runs)
        assert ended.code == 2, args
        assert file in ended.err
        assert len(ended.err.splitlines()) <= 2
        assert sorted(p.name for p in runs.iterdir()) == before


def test_data_of_the_run_that_were_changed_are_refused(runs):
    """Names of classes in another order would be other predictions."""
    path = runs / "a" / "data.json"
    path.write_text(path.read_text().replace("setosa", "virginica"))
    for name in ("predict", "export", "report"):
        assert "data.json is not as the run wrote it" in run(*(a.format("a") for a in COMMANDS[name]), cwd=runs).err


def test_what_is_accepted_is_recorded_and_goes_on(runs):
    """--accept takes what is there, says it, and is needed once."""
    path = runs / "a" / "config.toml"
    path.write_text(path.read_text() + "\n# a note\n")
    (runs / "a" / "run.json").write_text("{}")
    assert run("eval", "a", cwd=runs).code == 2
    ended = run("eval", "a", "--accept", cwd=runs)
    assert ended.code == 0
    assert "are accepted as found, which is recorded" in ended.err
    assert run("eval", "a", cwd=runs).err == ""
    assert seal.read(runs / "a").accepted[-1]["files"][0] == "run.json"
    assert run("train", "--resume", "a", "--epochs", "4", "-q", cwd=runs).code == 0


def test_a_checkpoint_of_another_run_is_not_taken(runs):
    """It has the same shapes, and another seed."""
    shutil.rmtree(newest(runs / "a"))
    shutil.copytree(newest(runs / "b"), runs / "a" / "checkpoints" / newest(runs / "b").name)
    ended = run("eval", "a", cwd=runs)
    assert ended.code == 2
    assert "is of another run" in ended.err
    assert "--weights 4" in ended.err
    assert "another run; using step-000000004 instead" in run("train", "--resume", "a", cwd=runs).err


@pytest.mark.parametrize("harm", [lambda p: (p / "state.safetensors").write_bytes(b"x"), shutil.rmtree],
                         ids=["damaged", "removed"])  # fmt: skip
@pytest.mark.parametrize("command", ["eval", "predict", "export"])
def test_no_older_weights_are_given_without_a_word(runs, command, harm):
    """They are refused, and the step that gives them is named; --resume goes on from them, and says so."""
    harm(newest(runs / "a"))
    args = [a.format("a") for a in COMMANDS[command]]
    ended = run(*args, cwd=runs)
    assert ended.code == 2
    assert "step-000000006" in ended.err
    assert ended.err.rstrip().endswith("--weights 4")
    assert run(*args, "--weights", "4", cwd=runs).code == 0
    assert "has no checkpoint of step 5; it has 4" in run(*args, "--weights", "5", cwd=runs).err
    assert "did you mean 'last'" in run(*args, "--weights", "lasst", cwd=runs).err
    assert "using step-000000004 instead" in run("train", "--resume", "a", "-q", cwd=runs).err


def test_weights_of_before_a_run_went_on_are_not_given(runs):
    """A file of weights is one of the run as it is now."""
    where = folder.gone_on(runs / "a")
    with where as one:
        one.goes_on()
    shutil.rmtree(runs / "a" / "checkpoints")
    assert "model.safetensors is not of the run as it is now" in run("predict", "a", "--data", "iris.csv", "--weights",
                                                                     "last", cwd=runs).err  # fmt: skip


@given(st.data())
def test_lines_of_metrics_are_one_chain(data):
    """Whatever is changed, left out, doubled or swapped in them is told from there on."""
    rows = [{"epoch": i, "step": 2 * i, "train/loss": 1 / i} for i in range(1, 6)]
    whole = seal.chained(rows, "run")
    assert seal.whole(whole, "run") == 5
    at = data.draw(st.integers(0, 3))
    harm = data.draw(st.sampled_from(["change", "drop", "swap", "run"]))
    other = [dict(row) for row in whole]
    if harm == "change":
        other[at]["train/loss"] += data.draw(st.sampled_from([1e-9, 1.0]))
    elif harm == "drop":
        del other[at]
    elif harm == "swap":
        other[at], other[at + 1] = other[at + 1], other[at]
    assert seal.whole(other, "another" if harm == "run" else "run") == (0 if harm == "run" else at)


@pytest.mark.parametrize(("find", "put", "said"), [('"epoch": 2', '"epoch": 2, "x": 1', "from line 2 on"),
                                                   (None, None, "has lost its last lines")])  # fmt: skip
def test_metrics_that_were_changed_are_told_where_they_are_shown(runs, find, put, said):
    """They are history: a warning names the file and the line."""
    path = runs / "a" / "metrics.jsonl"
    text = path.read_text()
    path.write_text(text.replace(find, put) if find else "".join(text.splitlines(True)[:-1]))
    for args in (["runs", "."], ["plot", "a"], COMMANDS["report"]):
        ended = run(*(a.format("a") for a in args), cwd=runs)
        assert ended.code == 0
        assert "metrics.jsonl" in ended.err
        assert said in ended.err


def test_metrics_that_were_changed_are_told_where_a_run_goes_on(runs):
    """The lines stay as they are."""
    path = runs / "a" / "metrics.jsonl"
    path.write_text(path.read_text().replace('"validate/loss": 0.', '"validate/loss": 1.', 1))
    for more in ([], ["--epochs", "4"]):
        shutil.copytree(runs / "a", runs / "c", dirs_exist_ok=True)
        assert (
            "c/metrics.jsonl is not as the run wrote it, from line"
            in run("train", "--resume", "c", *more, cwd=runs).err
        )
        shutil.rmtree(runs / "c")


def test_a_sweep_is_not_compared_by_rows_that_were_changed(runs):
    """What goes on would be another."""
    path = runs / "sweep" / "members" / "000" / "metrics.jsonl"
    path.write_text(path.read_text().replace('"validate/accuracy": 0.', '"validate/accuracy": 1.'))
    ended = run("sweep", "--resume", "sweep", cwd=runs)
    assert ended.code == 2
    assert "members/000/metrics.jsonl" in ended.err


def test_a_run_that_was_moved_or_copied_is_the_same(runs):
    """Nothing in a seal says where it is."""
    (runs / "a").rename(runs / "elsewhere")
    assert run("eval", "elsewhere", cwd=runs).err == ""
    assert run("train", "--resume", "elsewhere", "--epochs", "4", cwd=runs).err == ""


def test_settings_are_changed_on_purpose(runs):
    """What may change as a run goes on may be set, and is recorded; what would make it another run may not."""
    assert run("set", "a", "lr=0.05", "keep=1", "epochs=4", cwd=runs).out.startswith("a: ")
    assert config.make(config.read(runs / "a" / "config.toml")).optimizer.lr == 0.05
    assert seal.read(runs / "a").accepted[-1]["set"]["lr"][1] == "0.05"
    ended = run("set", "a", "seed=5", cwd=runs)
    assert ended.code == 2
    assert "would not be the same run" in ended.err
    assert run("eval", "a", cwd=runs).err == ""
    assert run("train", "--resume", "a", cwd=runs).err == ""


@pytest.mark.parametrize("odd", [{"files": 3}, {"files": {"config.toml": 3}}, {"checkpoints": {"a": ""}}, {"run": []},
                                 {"more": 1}, {"format": 2}])  # fmt: skip
def test_a_manifest_of_other_types_is_refused(runs, odd):
    """Even where its checksum fits."""
    path = runs / "a" / "run.json"
    facts = {**json.loads(path.read_text()), **odd}
    path.write_text(json.dumps({**facts, "checksum": files.checksum(facts)}))
    assert "run.json" in run("eval", "a", cwd=runs).err


def test_a_manifest_that_was_removed_is_missed(runs):
    """The config has the name of its run."""
    (runs / "a" / "run.json").unlink()
    for args in COMMANDS.values():
        assert "has lost its run.json" in run(*(a.format("a") for a in args), cwd=runs).err


LINKS = ["run.json", "metrics.jsonl", ".lock", "status.json", "model.safetensors", "best.safetensors", "curves.svg",
         "data.json", "config.toml", "checkpoints", "tensorboard"]  # fmt: skip


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic", "hard"])
@pytest.mark.parametrize("name", LINKS)
def test_no_link_in_a_run_reaches_a_file_elsewhere(runs, name, link):
    """Whatever ends the command, what the link leads to stays as it was."""
    path, victim = runs / "a" / name, runs / "victim"
    inside = name in ("checkpoints", "tensorboard")
    if inside and link is os.link:
        pytest.skip("folders have no hard links")
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    if inside:
        (victim / "step-000000002").mkdir(parents=True)
    else:
        victim.write_text("mine")
    link(victim, path)
    for args in (["train", "--resume", "a", "--epochs", "4", "--log", "tensorboard"], ["eval", "a"], ["report", "a"],
                 ["plot", "a"]):  # fmt: skip
        ended = run(*args, cwd=runs)
        assert ended.code in (0, 2), ended.err
    if inside:
        assert [p.name for p in victim.iterdir()] == ["step-000000002"]
        assert list((victim / "step-000000002").iterdir()) == []
    else:
        assert victim.read_text() == "mine"


@pytest.mark.parametrize("name", ["run.json", ".lock", "status.json", "data.json", "config.toml", "metrics.jsonl"])
def test_a_pipe_in_a_run_is_waited_for_by_nobody(runs, name):
    """It is no file that a run wrote."""
    (runs / "a" / name).unlink()
    os.mkfifo(runs / "a" / name)
    for args in (["train", "--resume", "a", "--epochs", "4"], ["eval", "a"], ["runs", "."], ["report", "a"]):
        assert run(*args, cwd=runs).code in (0, 2)


NAMES = ["net.py:make", "own.net:make"]


@pytest.mark.parametrize("name", NAMES)
def test_all_code_that_something_names_is_found(name):
    """Wherever it stands, and all of it."""
    nested = {"model": {"name": "mlp", "deep": [{"a": ("x", name)}]}, "data": {"source": "other.py:data"}}
    assert sorted(code.code_in(nested)) == sorted([name, "other.py:data"])
    assert code.code_in({"a": ["C:b", "table:x.csv", "12:30", "mlp", 3, None]}) == []


def test_nothing_but_what_is_code_is_loaded(monkeypatch):
    """Whatever a recipe loads is a name that `code_in` finds: there is one function that loads, and it is asked.
    (main.py imports the commands of its own table.)"""
    sources = {p: p.read_text() for p in (Path(config.__file__).parent).rglob("*.py")}
    for word in ("code.load(", "import_module(", "exec_module(", "__import__(", " eval(", " exec(", "entry_points("):
        where = {p.name for p, text in sources.items() if word in text}
        assert where <= {"code.py", "custom.py", "pipeline.py", "metric.py", "logger.py", "main.py"}, (word, where)
    with pytest.raises(ConfigError, match="is no code"):
        code.load("mlp")


@pytest.mark.parametrize("command", [["sweep", "--resume", "sweep"], ["eval", "sweep/best"], ["train", "sweep/best"]])
def test_code_that_a_sweep_names_is_not_run(runs, command):
    """Even where the seal fits: whoever made the folder made it too."""
    (runs / "evil.py").write_text("open('ran', 'w').close()\ndef make(): ...\n")
    plan = json.loads((runs / "sweep" / "sweep.json").read_text())
    plan["rows"] = [{"model": "evil.py:make"}]
    (runs / "sweep" / "sweep.json").write_text(json.dumps(plan))
    best = runs / "sweep" / "best" / "config.toml"
    best.write_text(best.read_text().replace('name = "mlp"', 'name = "evil.py:make"'))
    for where in ("sweep", "sweep/best"):
        folder.accept(runs / where)
    ended = run(*command, cwd=runs)
    assert ended.code == 2
    assert "names code, evil.py:make" in ended.err
    assert not (runs / "ran").exists()


def test_a_run_in_python_is_held_to_its_seal(runs, monkeypatch):
    """pipeline.load_run refuses what the command does."""
    monkeypatch.chdir(runs)
    assert load_run(runs / "a")[1].step == load_run(runs / "a", weights=str(int(load_run(runs / "a")[1].step)))[1].step
    shutil.rmtree(newest(runs / "a"))
    with pytest.raises(PipeError, match="is gone"):
        load_run(runs / "a")
    assert [row["epoch"] for row in log.read(runs / "a" / "metrics.jsonl")] == [1, 2, 3]
    assert len(Past(runs / "a").rows) == 3
