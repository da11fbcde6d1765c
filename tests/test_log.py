"""Loggers pass Reports through and write them down."""

import csv
import json
import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import PipeError, Report, fit, log
from tests import pipes

NUMBERS = st.one_of(st.floats(allow_nan=True), st.integers(-(2**40), 2**40))
METRICS = st.dictionaries(st.sampled_from(["loss", "accuracy", "gradient norm", "update ratio/0"]), NUMBERS, min_size=1)


def reports(metrics, epochs=None):
    """A run whose epochs have these metrics, with a Report inside each."""
    found = []
    for epoch, (train, validate) in enumerate(metrics, 1):
        found.append(Report(epoch, epochs or len(metrics), 2 * epoch - 1, 1, 2, False, train))
        found.append(Report(epoch, epochs or len(metrics), 2 * epoch, 2, 2, True, train, validate, 0.5, 10))
    return found


def test_directions_are_declared_once_and_those_of_new_metrics_where_they_begin():
    """A run that goes on may measure more."""
    first, second = (Report(k, 1, k, 1, 1.0, True, {}, {}, better=better) for k, better in
                     enumerate(({"loss": "low"}, {"loss": "low", "f1 score": "high"}), 1))  # fmt: skip
    rows = [log.line(first)]
    rows.append(log.line(first, rows))
    rows.append(log.line(second, rows))
    assert [row.get("better") for row in rows] == [{"loss": "low"}, None, {"f1 score": "high"}]
    assert log.declared(rows) == second.better


@given(st.lists(st.tuples(METRICS, METRICS), min_size=1, max_size=5))
def test_what_is_written_is_what_passes(tmp_path_factory, metrics):
    """All Reports pass, in their order; lines and rows are those of complete epochs, and are read back."""
    folder = tmp_path_factory.getbasetemp()
    given_, seen = reports(metrics), []
    for name in ("m.jsonl", "m.csv"):
        (folder / name).unlink(missing_ok=True)
    for report in log.csv(log.jsonl(given_, folder / "m.jsonl"), folder / "m.csv"):
        seen.append(report)
    assert seen == given_
    rows = [log.row(r) for r in given_ if r.complete]
    assert log.read(folder / "m.jsonl") == rows
    with (folder / "m.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    for wanted, found in zip(rows, table, strict=True):
        assert {k: float(v) for k, v in found.items() if v} == {k: v for k, v in wanted.items() if v is not None}
    assert len(pd.read_json(folder / "m.jsonl", lines=True)) == len(rows)
    for row in rows:
        assert all(v is None or math.isfinite(v) for v in json.loads(json.dumps(row, allow_nan=False)).values())


@pytest.mark.parametrize("written", [log.jsonl, log.csv])
def test_a_run_that_goes_on_continues_its_file(tmp_path, written):
    """Of epochs that are done again, the later rows count; a run that begins anew begins the file anew."""
    path = tmp_path / "deep" / "log"
    run = reports([({"loss": float(k)}, {}) for k in range(4)])
    list(written(run[:6], path))
    list(written(run[4:], path))
    table = pd.read_json(path, lines=True) if written is log.jsonl else pd.read_csv(path)
    assert table["epoch"].to_list() == [1, 2, 3, 4]
    list(written(run[:2], path))
    table = pd.read_json(path, lines=True) if written is log.jsonl else pd.read_csv(path)
    assert table["epoch"].to_list() == [1]


def test_reports_inside_an_epoch_are_written_where_asked(tmp_path):
    """With `inside`, each Report is a line."""
    run = reports([({"loss": 1.0}, {"loss": 2.0})] * 2)
    list(log.jsonl(run, tmp_path / "a", inside=True))
    list(log.csv(run, tmp_path / "b", inside=True))
    assert [(r["epoch"], r["step"]) for r in log.read(tmp_path / "a")] == [(1, 1), (1, 2), (2, 3), (2, 4)]
    table = pd.read_csv(tmp_path / "b")
    assert table["validate/loss"].isna().to_list() == [True, False, True, False]


def test_a_state_that_is_sent_reaches_fit(tmp_path):
    """Through any number of loggers; the same Report comes back, and is written once."""
    pipe = pipes.digits(size=512)
    made = log.csv(log.jsonl(fit(pipe, epochs=3, compile=False), tmp_path / "m.jsonl"), tmp_path / "m.csv")
    for report in made:
        if report.epoch == 1:
            again = made.send(report.state.with_hyper(lr=0.0))
            assert again.step == report.step
            params = again.state.clone().params
    assert (report.state.params["1.weight"] == params["1.weight"]).all()
    assert [r["epoch"] for r in log.read(tmp_path / "m.jsonl")] == [1, 2, 3]


def test_tensorboards_own_reader_finds_every_scalar(tmp_path):
    """With its step; a run that goes on replaces what it does again."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    pipe = pipes.digits(size=512)
    whole = list(fit(pipe, epochs=3, validate=pipe.load.data, compile=False))
    list(log.tensorboard(whole[:2], tmp_path / "tb"))
    list(log.tensorboard(whole[1:], tmp_path / "tb"))
    found = events.EventAccumulator(str(tmp_path / "tb"))
    found.Reload()
    rows = [log.row(r) for r in whole]
    assert {*found.Tags()["scalars"]} == {*rows[0]} - {"step"}
    for name in found.Tags()["scalars"]:
        scalars = found.Scalars(name)
        assert [s.step for s in scalars] == [r["step"] for r in rows]
        assert [s.value for s in scalars] == pytest.approx([r[name] for r in rows])


def test_what_cannot_be_written_is_one_line(tmp_path):
    """A folder in the place of a file; a file that is none of ours is read as far as it goes."""
    with pytest.raises(PipeError, match="is not a regular file"):
        list(log.jsonl(reports([({"loss": 1.0}, {})]), tmp_path))
    (tmp_path / "odd").write_text('{"epoch": 1, "step": 2, "train/loss": 0.5}\n[]\n{"epoch": "x"}\n{"epo')
    assert log.read(tmp_path / "odd") == [{"epoch": 1, "step": 2, "train/loss": 0.5}]
