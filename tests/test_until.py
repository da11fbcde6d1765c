"""When a loop over Reports ends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import PipeError, Report, until
from pipeline.state import is_better

VALUES = st.lists(st.floats(allow_infinity=False), min_size=1, max_size=20)


def report(epoch, value, complete=True, metric="accuracy"):
    return Report(epoch, 99, epoch, 1, 1, complete, {"loss": 0.0}, {metric: value} if complete else {})


@given(VALUES, st.integers(1, 5), st.sampled_from(["accuracy", "loss"]), st.integers(0, 19))
def test_no_better_is_as_defined(values, epochs, metric, cut):
    """It stops where the best of all before is so many epochs old; the same where it begins with what was best."""
    best = at = None
    stop, resumed = until.no_better(metric, epochs=epochs), None
    for epoch, value in enumerate(values, 1):
        if best is None or best != best or is_better(metric, value, best):
            best, at = value, epoch
        told = stop(report(epoch, value, metric=metric))
        assert told == (epoch - at >= epochs)
        assert not stop(report(epoch, value, complete=False))
        if resumed is not None:
            assert resumed(report(epoch, value, metric=metric)) == told
        elif epoch > cut:
            resumed = until.no_better(metric, epochs=epochs, best=(best, at))


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
