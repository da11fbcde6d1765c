"""Adding is one file and one line: each is written as a newcomer would, entered in its table, and used."""

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from cli import config
from cli.build import job
from cli.recipes import code, data, logger, loss, metric, model, rule, schedule
from pipeline import fit
from pipeline.errors import ConfigError

ROOT = Path(__file__).parent.parent

RULE = """
from pipeline import stage

@stage(writes="params")
def descend(params, grads, lr=0.1):
    return {name: p - lr * grads[name].sign() for name, p in params.items()}

def sign(lr):
    return descend.with_hyper(lr=lr)
"""
SCHEDULE = """
from pipeline.schedules import Schedule

def halved(base, after):
    return Schedule(base, lambda step, after: 1.0 - (step >= after) * 0.5, {"after": after})
"""
LOSS = """
from pipeline import loss

def focal(dim):
    return loss.cross_entropy(dim=dim, smoothing=0.5).named("added.focal")
"""
METRIC = """
import torch
from pipeline import evaluate

def sure(classes):
    def measure(outputs):
        return {"sum": outputs.softmax(1).amax(1).double().sum(), "count": torch.tensor(len(outputs))}
    return evaluate.metric(
        "added.sure", measure, lambda s: {"sure": s["sum"] / s["count"] * classes},
        {"sum": torch.float64, "count": torch.int64}, better="high",
    )
"""
FORMAT = """
from typing import ClassVar
from attrs import frozen
from cli.recipes.data.base import Data

@frozen
class Lines(Data):
    ends: ClassVar = (".lines",)

    def prepare(self, split):
        import numpy, torch
        from pipeline import sources
        rows = torch.from_numpy(numpy.loadtxt(self.path, dtype=numpy.float32))
        return sources.given({"inputs": rows[:, :-1], "targets": rows[:, -1].long()}, split)
"""
MODEL = """
from attrs import frozen
from cli.recipes.model.base import Model
from cli.recipes.setting import at_least, setting

@frozen
class Narrow(Model):
    rank: int = setting(2, "width of the bottleneck", at_least(1), fixed=True)

    def make(self, fixed):
        from torch import nn
        layers = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, self.rank), nn.Linear(self.rank, fixed.outputs))
        return layers, f"narrow {self.rank}", "inputs"
"""
LOGGER = """
def names(reports, path):
    for report in reports:
        with open(path, "a") as file:
            print(report.epoch, file=file)
        yield report
"""
ADDED = {
    "update rule": ("rule", RULE, rule.OPTIMIZERS, lambda: rule.Optimizer("added_rule:sign", lr=0.01, decays=False)),
    "schedule": ("schedule", SCHEDULE, schedule.SCHEDULES,
                 lambda: schedule.Shape("to 1/2", "added_schedule:halved", lambda steps: {"after": steps / 2})),
    "loss": ("loss", LOSS, loss.LOSSES, lambda: loss.Criterion("smooth", "added_loss:focal", ("classification",))),
    "metric": ("metric", METRIC, metric.METRICS, lambda: metric.Metric("added_metric:sure", ("classification",))),
    "kind of data": ("data", FORMAT, data.DATA, lambda: importlib.import_module("added_data").Lines),
    "model": ("model", MODEL, model.MODELS, lambda: importlib.import_module("added_model").Narrow),
    "logger": ("logger", LOGGER, logger.LOGGERS, lambda: logger.Logger("added_logger:names", "names.txt")),
}  # fmt: skip


@pytest.fixture
def add(tmp_path, monkeypatch):
    """Write the file of a new thing, and enter it as "added" by the one line of its table."""
    monkeypatch.syspath_prepend(tmp_path)

    def added(what):
        name, source, table, entry = ADDED[what]
        (tmp_path / f"added_{name}.py").write_text(source)
        monkeypatch.setitem(table, "added", entry())

    yield added
    for name, *_ in ADDED.values():
        sys.modules.pop(f"added_{name}", None)


def trained(**settings):
    """The job of a run, and its last Report."""
    made = job(config.make({"batch_size": 512, "epochs": 2, **settings}))
    *_, last = fit(made.pipe, epochs=2, validate=made.validation, compile=False)
    return made, last


def test_a_rule(add):
    """--optimizer names it, with its own learning rate."""
    add("update rule")
    made, last = trained(optimizer="added")
    assert made.stages["descend"].hyper["lr"].at(0) == pytest.approx(0.01)
    assert last.validate["accuracy"] > 0.2
    with pytest.raises(ConfigError, match="belongs to --optimizer sgd or rmsprop, not to added"):
        config.make({"optimizer": "added", "momentum": 0.5})


def test_a_schedule(add):
    """--schedule names it, for any rule."""
    add("schedule")
    made = config.make({"schedule": "added"})
    rate = made.schedule.learning_rate(0.2, 10)
    assert [rate.at(step) for step in (0, 4, 5, 9)] == [0.2, 0.2, 0.1, 0.1]


def test_a_loss(add):
    """--loss names it, for its tasks alone."""
    add("loss")
    made, _ = trained(loss="added")
    assert "added.focal" in str(made.pipe)
    with pytest.raises(ConfigError, match="is not for regression"):
        trained(data="sklearn:diabetes", loss="added")


def test_a_metric(add):
    """--metric names it, beside those that a task always has, and it may tell the best epoch."""
    add("metric")
    _, last = trained(metric=["added", "top5"], best="sure")
    assert 1 <= last.validate["sure"] <= 10
    assert {"accuracy", "top5"} < {*last.validate}
    with pytest.raises(ConfigError, match="is not for regression; use mse"):
        trained(data="sklearn:diabetes", metric=["added"])
    with pytest.raises(ConfigError, match="unknown metric 'addd'; did you mean 'added'"):
        config.make({"metric": ["addd"]})


def test_a_kind_of_data(add, tmp_path):
    """A file is told by its ending, or by the kind before its name."""
    add("kind of data")
    rows = np.column_stack([np.random.default_rng(0).normal(size=(40, 3)), np.arange(40) % 2])
    for name in ("x.lines", "y.txt"):
        np.savetxt(tmp_path / name, rows)
    made, _ = trained(data=str(tmp_path / "x.lines"))
    assert made.data == "32 training and 8 held-out samples, inputs 3, 2 classes"
    assert job(config.make({"data": f"added:{tmp_path / 'y.txt'}"})).data == made.data


def test_a_model(add):
    """--model names it, and its settings are flags and keys of [model]."""
    add("model")
    made, _ = trained(model="added", rank=3)
    assert made.model == "narrow 3"
    assert config.make({"model": "added"}).tables["model"] == {"name": "added", "rank": 2}
    with pytest.raises(ConfigError, match="--rank belongs to --model added, not to mlp"):
        config.make({"rank": 3})


def test_a_logger(add, tmp_path):
    """--log names it, beside others."""
    add("logger")
    names = config.make({"log": ["added", "csv"]}).run.log
    made = job(config.make({"batch_size": 512}))
    folders = {name: tmp_path / name for name in names}
    for folder in folders.values():
        folder.mkdir()
    reports = fit(made.pipe, epochs=2, compile=False)
    assert [r.epoch for r in logger.logged(names, reports, folders.__getitem__)] == [1, 2]
    assert (folders["added"] / "names.txt").read_text() == "1\n2\n"
    assert len((folders["csv"] / "metrics.csv").read_text().splitlines()) == 3


def test_a_backend():
    """Any backend that torch knows by name, registered or by an entry point, compiles a step."""
    from torch._dynamo import register_backend
    from torch._dynamo.backends.registry import _BACKENDS, _COMPILER_FNS

    graphs = []

    def added(graph, inputs):
        graphs.append(graph)
        return graph.forward

    register_backend(added)
    try:
        made = job(config.make({"batch_size": 512}))
        list(fit(made.pipe, epochs=1, compile=made.pipe.compile(backend="added")))
    finally:
        _BACKENDS.pop("added"), _COMPILER_FNS.pop("added")
    assert graphs


def test_the_users_own_code_needs_no_line(tmp_path, monkeypatch):
    """FILE.py:FUNCTION is a metric or a logger as well, and is found by whoever asks what code a config names."""
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(METRIC + LOGGER)
    made = config.make({"metric": ["own.py:sure"], "log": ["own.py:names"], "batch_size": 512})
    assert code.code_in(made.tables) == ["own.py:sure", "own.py:names"]
    made_job = job(made)
    reports = logger.logged(made.run.log, fit(made_job.pipe, epochs=1, compile=False), lambda name: Path(name))
    assert "sure" in [*reports][-1].train
    assert Path("names").read_text() == "1\n"
    Path("own.py").write_text("def sure(): return 3\n")
    with pytest.raises(ConfigError, match="made int, not a metric"):
        job(config.make({"metric": ["own.py:sure"]}))


ROW = re.compile(r"^ *\| (an?) (?P<what>[^|]+?) \| `(?P<file>[^`]+)` \| `(?P<table>\w+)` in `(?P<home>[^`]+)` \|", re.M)


def test_contributing_names_each_file_and_table():
    """Its table has a row for each, with a file and a table that are there."""
    rows = {m["what"]: m for m in ROW.finditer((ROOT / "CONTRIBUTING.md").read_text())}
    assert {*ADDED} <= {*rows}
    for what, row in rows.items():
        assert (ROOT / row["file"]).is_file(), what
    for what in ADDED:
        row = rows[what]
        assert re.search(rf"^{row['table']}\b.* = {{$", (ROOT / row["home"]).read_text(), re.M), what
