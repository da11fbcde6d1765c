"""Trackers have every number of every Report at its step, by their own readers."""

import json
import math
import struct
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline import PipeError, Report, log
from pipeline.trackers import _tracked

CONFIG = {"lr": 0.1, "hidden": [8, 4]}
REPORTS = [
    Report(e, 4, 3 * e, 3, 3, True, {"loss": 1 / e, "gradient norm": 2.0**-e}, {"f1/a b": math.pi * e}, 0.5 * e, 10)
    for e in range(1, 5)
]


def wandb(config=False):
    """The files of W&B: LevelDB's log of records, in blocks of 32 KiB after a head of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    values, settings = {}, {}
    for path in sorted(Path().glob("wandb/offline-run-*/*.wandb")):
        raw, at, record = path.read_bytes(), 7, b""
        while at + 7 <= len(raw):
            if (1 << 15) - at % (1 << 15) < 7:
                at += (1 << 15) - at % (1 << 15)
                continue
            _, size, kind = struct.unpack("<IHB", raw[at : at + 7])
            record += raw[at + 7 : at + 7 + size]
            at += 7 + size
            if kind in (1, 4):  # a whole record, or the last part of one
                found, record = Record.FromString(record), b""
                for item in found.history.item:
                    name = item.key or "/".join(item.nested_key)
                    values.setdefault(name, []).append((found.history.step.num, json.loads(item.value_json)))
                settings |= {item.key: json.loads(item.value_json) for item in found.config.update}
    return settings if config else values


def mlflow(config=False):
    from mlflow import MlflowClient

    client = MlflowClient()
    [run] = client.search_runs([client.get_experiment_by_name("p").experiment_id])
    if config:
        return run.data.params
    every = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {name: [(m.step, m.value) for m in metrics] for name, metrics in every.items()}


def trackio(config=False):
    from trackio.sqlite_storage import SQLiteStorage

    [run] = SQLiteStorage.get_runs("p")
    if config:
        return SQLiteStorage.get_run_config("p", run)
    values = {}
    for row in SQLiteStorage.get_logs("p", run):
        for name, value in row.items():
            values.setdefault(name, []).append((row["step"], value))
    return values


@pytest.fixture(params=[wandb, mlflow, trackio], ids=lambda f: f.__name__)
def read(request, tmp_path, monkeypatch):
    """The reader of a tracker that keeps its runs in a clean folder."""
    name = request.param.__name__
    pytest.importorskip(name, reason=f"{name} is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    if name == "mlflow":
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # SQLite's takes 7 s to make
        sys.modules[name].set_tracking_uri(f"file://{tmp_path}/mlflow")
    if name == "trackio":
        for module in ("utils", "sqlite_storage"):
            monkeypatch.setattr(f"trackio.{module}.TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.chdir(tmp_path)
    yield request.param
    if name == "wandb":
        sys.modules[name].teardown()  # it keeps the first folder otherwise


def earlier():
    """Let W&B's folders be of another second, by which it names them."""
    for at, path in enumerate(sorted(Path().glob("wandb/offline-run-*"))):
        path.rename(path.with_name(f"offline-run-{at}-{path.name.split('-', 3)[3]}"))


def test_every_number_is_found_once(read):
    """With its step; a run that goes on leaves out the steps that it has, and keeps its settings."""
    logger = getattr(log, read.__name__)
    for part in (REPORTS[:2], REPORTS[1:]):
        assert list(logger(part, "p", run="a-run", config=CONFIG)) == part
        earlier()
    rows = [log.row(r) for r in REPORTS]
    found = read()
    for name in {*rows[0]} - {"step"}:
        assert found[name] == [(r["step"], r[name]) for r in rows]
    config = read(config=True)
    assert {name: str(config[name]) for name in CONFIG} == {name: str(value) for name, value in CONFIG.items()}


def test_a_command_logs_to_a_project_and_goes_on(read, pipe):
    """The numbers are those of metrics.jsonl, epoch by epoch, after a resumption too."""
    name = read.__name__
    few = ("--data", "sklearn:iris", "--model", "mlp", "--no-compile", "-q", "--epochs")
    assert pipe("train", *few, 2, "--log", f"{name}:p", "--out", "a-run")[0] == 0
    earlier()
    assert pipe("train", "--resume", "a-run", "--epochs", 3, "-q")[0] == 0
    found, rows = read(), log.read("a-run/metrics.jsonl")
    for value in ("train/loss", "validate/accuracy"):
        assert found[value] == [(r["step"], r[value]) for r in rows]
    assert len(rows) == 3
    assert read(config=True)["data"] == "sklearn:iris"


def test_another_training_in_the_same_run_is_warned_of():
    """Its first steps are left out, as if it were the first done again; one that goes on is not."""

    @contextmanager
    def opened():
        yield 6, lambda points, step: None

    with pytest.warns(UserWarning, match="steps up to 6 are left out, which the tracked run has"):
        assert list(_tracked(REPORTS, "mlflow", opened, inside=False)) == REPORTS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(_tracked(REPORTS[1:], "mlflow", opened, inside=False)) == REPORTS[1:]


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_missing_package_is_one_line(name, monkeypatch):
    """It says what to install."""
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PipeError, match=rf"log.{name}\(\) needs the package {name}: pip install {name}"):
        list(getattr(log, name)(REPORTS))


def test_names_of_trackers_are_checked(pipe):
    """Only services have a project, and each is named once."""
    for names, said in ((["csv:p"], "unknown log 'csv:p'"), (["wandb:a", "wandb"], "--log names one twice: wandb:a")):
        code, _, err = pipe("train", *(word for name in names for word in ("--log", name)))
        assert (code, err.count("\n")) == (2, 1), err
        assert said in err
