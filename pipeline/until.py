"""Until: when to stop, as plain functions of a Report, for the `for` loop over fit.

    stop = until.no_better("accuracy", epochs=10)
    for report in fit(pipe, epochs=200, validate=test):
        if stop(report):
            break

The State of the last Report is whole: it can be saved, and gone on with.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

from pipeline.direction import Direction, direction, rank
from pipeline.errors import ConfigError, did_you_mean
from pipeline.stage import is_count
from pipeline.state import Report

Stop: TypeAlias = Callable[[Report], bool]


def no_better(
    metric: str, *, epochs: int, better: Direction | None = None, best: tuple[float, int] | None = None
) -> Stop:
    """Whether the metric has not been better than its best for so many epochs.

    It is looked at where an epoch is complete: the validation's, or without one, the training's. `better` is "high" or
    "low", by default what the metric declares. `best` is the value and the epoch to begin with, for a run that goes on.
    NaN is never better, nor is an equal value.

    >>> stop = no_better("loss", epochs=2, better="low")
    >>> [stop(Report(k, 4, k, 1, 1, True, {"loss": x})) for k, x in enumerate([0.5, 0.4, 0.41, 0.42], 1)]
    [False, False, False, True]
    """
    direction(metric, {}, better or "low")  # raises for another word
    if not is_count(epochs):
        raise ConfigError(f"until.no_better: epochs={epochs!r} is not a positive whole number")
    value, at = best or (float("nan"), 0)

    def stop(report: Report) -> bool:
        nonlocal value, at
        if not report.complete:
            return False
        found = report.validate or report.train
        new = found.get(metric)
        if not isinstance(new, int | float):
            raise ConfigError(f"until.no_better: {metric!r} is no number of this run{did_you_mean(metric, found)}")
        way = direction(metric, report.better, better)
        if value != value or rank(metric, way, {metric: new}) < rank(metric, way, {metric: value}):
            value, at = new, report.epoch
        return report.epoch - at >= epochs

    return stop


def minutes(count: float) -> Stop:
    """Whether so many minutes have passed since this was called. Between epochs, give `fit` an `interval`.

    >>> minutes(30)(Report(1, 4, 1, 1, 1, True, {"loss": 0.5}))
    False
    """
    if not count > 0:
        raise ConfigError(f"until.minutes: {count!r} is not above 0")
    end = time.monotonic() + 60 * count
    return lambda report: time.monotonic() >= end
