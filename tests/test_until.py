"""When a loop over Reports ends."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline import PipeError, Report, until

VALUES = st.lists(st.floats(allow_infinity=False), min_size=1, max_size=20)


def report(epoch, value, complete=True, metric="accuracy"):
    validate = {metric: value} if complete else {}
    return Report(epoch, 99, epoch, 1, 1, complete, {"loss": 0.0}, validate, better={"accuracy": "high", "loss": "low"})


@given(VALUES, st.integers(1, 5), st.sampled_from(["accuracy", "loss"]), st.integers(0, 19))
@example([float("nan")] * 3, 2, "loss", 0)
def test_no_better_is_as_defined(values, epochs, metric, cut):
    """It stops where the best of all before is so many epochs old, or none came; the same where it begins with what was
    best."""
    best, at = float("nan"), 0
    stop, resumed = until.no_better(metric, epochs=epochs), None
    for epoch, value in enumerate(values, 1):
        if (best != best and value == value) or (value < best if metric == "loss" else value > best):
            best, at = value, epoch
        told = stop(report(epoch, value, metric=metric))
        assert told == (epoch - at >= epochs)
        assert not stop(report(epoch, value, complete=False))
        if resumed is not None:
            assert resumed(report(epoch, value, metric=metric)) == told
        elif epoch > cut:
            resumed = until.no_better(metric, epochs=epochs, best=(best, at))


@pytest.mark.parametrize("metric", ["wer", "nll", "fid", "brier", "ece", "auc", "bleu", "loss"])
def test_the_direction_is_said_and_never_told_by_the_name(metric):
    """By the metric, or by better=, which has the last word; without either it is refused."""
    values = [0.2, 0.3, 0.4, 0.5]
    for said, asked in (("high", None), ("low", "high"), (None, "high"), ("low", None), ("high", "low"), (None, "low")):
        stop = until.no_better(metric, epochs=2, better=asked)
        better = {} if said is None else {metric: said}
        told = [stop(Report(k, 4, k, 1, 1, True, {metric: v}, better=better)) for k, v in enumerate(values, 1)]
        assert told == ([False] * 4 if (asked or said) == "high" else [False, False, True, True])
    stop = until.no_better(metric, epochs=2)
    with pytest.raises(PipeError, match=f"'{metric}' is better high or low: write better=.*; known of top1, mae"):
        stop(Report(1, 4, 1, 1, 1, True, {metric: 0.5}, better={"top1": "high", "mae": "low"}))
    with pytest.raises(PipeError, match="neither 'high' nor 'low'"):
        until.no_better(metric, epochs=2, better="lower")


def test_an_equal_value_is_not_better():
    """Patience waits for more than a tie, whatever the loss does."""
    stop = until.no_better("accuracy", epochs=2)
    rows = [Report(k, 4, k, 1, 1, True, {}, {"accuracy": 1.0, "loss": 1 / k}, better={"accuracy": "high"})
            for k in (1, 2, 3)]  # fmt: skip
    assert [stop(r) for r in rows] == [False, False, True]


def test_minutes_pass(monkeypatch):
    """They count from where the function is made."""
    now = [100.0]
    monkeypatch.setattr(until.time, "monotonic", lambda: now[0])
    stop = until.minutes(2)
    assert not stop(report(1, 0.5))
    now[0] = 219.9
    assert not stop(report(1, 0.5))
    now[0] = 220.0
    assert stop(report(1, 0.5, complete=False))


def test_wrong_ones_are_refused():
    """Counts that are none, and a metric that the run does not have."""
    for wrong in (0, -1, 1.5):
        with pytest.raises(PipeError, match="not a positive whole number"):
            until.no_better("loss", epochs=wrong)
    with pytest.raises(PipeError, match="not above 0"):
        until.minutes(0)
    with pytest.raises(PipeError, match="did you mean 'accuracy'"):
        until.no_better("acuracy", epochs=1)(report(1, 0.5))
