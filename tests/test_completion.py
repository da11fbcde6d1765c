"""What a shell completes, as bash asks for it."""

import os
import shutil
import subprocess
import sys
from unittest import mock

import polars as pl
import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner

from cli.config import CONFIG
from cli.main import cli
from cli.recipes import TABLES
from cli.recipes.metric import METRICS
from tests.commands import run as pipe


def completed(*words):
    """The completions of the last word: values, and `file` or `dir` for paths."""
    line = {"COMP_WORDS": " ".join(("pipe", *words)), "COMP_CWORD": str(len(words))}
    with mock.patch.dict(os.environ, line):
        asked = BashComplete(cli, {}, "pipe", "_PIPE_COMPLETE")
        found = asked.get_completions(*asked.get_completion_args())
    return [item.value if item.type == "plain" else item.type for item in found]


@pytest.mark.parametrize("table", ["model", "loss", "optimizer", "schedule"])
def test_names_of_each_table(table):
    """Each table of settings is completed by its own names, also after a comma."""
    names = [*TABLES[table].names]
    assert completed("train", f"--{table}", "") == names
    assert completed("sweep", f"--{table}", f"{names[0]},{names[1]}")[0] == f"{names[0]},{names[1]}"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["train", "--metric", "r"], [name for name in METRICS if name.startswith("r")]),
        (["plot", "x", "--metric", "f1"], ["f1-score"]),
        (["train", "--precision", "b"], ["bf16"]),
        (["train", "--log", ""], ["csv", "tensorboard", "wandb", "mlflow", "trackio"]),
        (["train", "--device", "c"], ["cpu", "cuda"]),
        (["train", "--help"], ["--help-all", "--help"]),
        (["cache", "v"], ["verify"]),
        (["completion", "f"], ["fish"]),
        (["comp"], ["compare", "completion"]),
        (["train", "--out", ""], ["dir"]),
        (["predict", "x", "--data", "other"], ["file"]),
    ],
)
def test_values(words, found):
    """Values that have names are completed, and paths are left to the shell."""
    assert completed(*words) == found


def test_columns_of_a_table(tmp_path, monkeypatch):
    """Columns of the table that the line names are completed, whatever separates its cells."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("age;big size;label\n1;2;a\n")
    (tmp_path / "b[1].tsv").write_text("x,y\tz\n")
    (tmp_path / "c[1].jsonl").write_text('{"left": 1, "right": 2}\n')
    pl.DataFrame({"p": [1], "q": [2]}).write_parquet("d[1].parquet")
    (tmp_path / "e.csv").write_bytes(b"\xff\xfe\0\0")
    assert completed("train", "--data", "a.csv", "--target", "") == ["age", "big size", "label"]
    assert completed("train", "--data", "a.csv", "--ignore", "age,l") == ["age,label"]
    assert completed("data", "a.csv", "--numeric", "a") == ["age"]
    assert completed("train", "--data", "b[1].tsv", "--target", "") == ["x,y", "z"]
    assert completed("train", "--data", "c[1].jsonl", "--target", "r") == ["right"]
    assert completed("train", "--data", "d[1].parquet", "--target", "") == ["p", "q"]
    for none in ("gone.csv", ".", "digits"):
        assert completed("train", "--data", none, "--target", "") == []
    assert isinstance(completed("train", "--data", "e.csv", "--target", ""), list)


def test_runs_and_data(tmp_path, monkeypatch):
    """Runs are completed, newest first, and data by their names and files."""
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("runs/old-1", "runs/new-1", "other/mine")):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / CONFIG).write_text("")
        os.utime(tmp_path / name, (age, age))
    (tmp_path / "runs/none").mkdir()
    (tmp_path / "dirty.csv").write_text("a,b\n")
    for words in (["eval"], ["train", "--resume"], ["runs"], ["show"]):
        assert completed(*words, "") == ["runs/new-1", "runs/old-1"]
    assert completed("eval", "runs/o") == ["runs/old-1"]
    assert completed("eval", "other/") == ["other/mine"]
    assert completed("train", "oth") == ["file"]
    assert completed("train", "--data", "di") == ["digits", "dirty.csv"]
    assert completed("train", "--data", "dirty") == ["file"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script(shell):
    """`pipe completion` prints the script of each shell; any other is refused."""
    out = CliRunner().invoke(cli, ["completion", shell], prog_name="pipe").stdout
    assert f"_PIPE_COMPLETE={shell}_complete" in out
    if shutil.which(shell):
        assert subprocess.run([shell, "-n"], input=out, text=True).returncode == 0
    assert pipe("completion", "csh").code == 2


@pytest.mark.parametrize("words", ["train --model re", "train --data x.csv --target a", "eval ", "runs "])
def test_completion_imports_no_torch(words, tmp_path):
    """A shell waits for no torch."""
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    code = (
        "import sys; from cli.main import main\ntry: main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    )
    env = {"COMP_WORDS": f"pipe {words}", "COMP_CWORD": str(len(words.split(" "))), "_PIPE_COMPLETE": "bash_complete"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
