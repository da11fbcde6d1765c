"""Until: stopping rules, as functions of a Report, for the `for` loop over fit.

    stop = until.no_better("accuracy", epochs=10)
    for report in fit(pipe, epochs=200, validate=test):
        if stop(report):
            break

The State of the last Report can be saved and trained further.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

from pipeline.direction import Direction, direction, rank
from pipeline.element import counts
from pipeline.errors import ConfigError, did_you_mean
from pipeline.state import Report

Stop: TypeAlias = Callable[[Report], bool]


def no_better(
    metric: str, *, epochs: int, better: Direction | None = None, best: tuple[float, int] | None = None
) -> Stop:
    """Stop once the metric has not improved for `epochs` epochs: early stopping.

    The metric of complete epochs: of the validation, or of the training if there is none. NaN and ties are no
    improvement.

    - `better`: "high" or "low"; by default what the metric declares.
    - `best`: value and epoch of the best so far, for a resumed run.

    >>> stop = no_better("loss", epochs=2, better="low")
    >>> [stop(Report(k, 4, k, 1, 1, True, {"loss": x})) for k, x in enumerate([0.5, 0.4, 0.41, 0.42], 1)]
    [False, False, False, True]
    """
    direction(metric, {}, better or "low")  # raises for another word
    counts("until.no_better: ", epochs=epochs)
    value, at = best or (float("nan"), 0)

    def stop(report: Report) -> bool:
        nonlocal value, at
        if not report.complete:
            return False
        metrics = report.validate or report.train
        new = metrics.get(metric)
        if not isinstance(new, int | float):
            hint = did_you_mean(metric, metrics)
            raise ConfigError(f"until.no_better: {metric!r} is no numeric metric of this run{hint}")
        way = direction(metric, report.better, better)
        if rank(metric, way, {metric: new}) < rank(metric, way, {metric: value}):  # NaN comes last
            value, at = new, report.epoch
        return report.epoch - at >= epochs

    return stop


def minutes(count: float) -> Stop:
    """Stop `count` minutes from now. To stop inside an epoch, give `fit` an `interval`.

    >>> minutes(30)(Report(1, 4, 1, 1, 1, True, {"loss": 0.5}))
    False
    """
    if not count > 0:
        raise ConfigError(f"until.minutes: {count!r} is not above 0")
    end = time.monotonic() + 60 * count
    return lambda report: time.monotonic() >= end
