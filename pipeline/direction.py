"""Direction: whether a metric is better high or low, as who made it says, and which of two results is better."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias

from pipeline.errors import ConfigError

Direction: TypeAlias = Literal["high", "low"]
Better: TypeAlias = Direction | Mapping[str, Direction] | None
"""Of all results of a metric, or by their names."""


def directions(declared: Mapping[str, Direction | None], results: Iterable[str]) -> dict[str, Direction]:
    """Those of results by their names: of a view of a metric, such as "ema.accuracy", the metric's own.

    >>> directions({"accuracy": "high", "x.loss": None, "loss": "low"}, ["ema.accuracy", "x.loss", "loss"])
    {'ema.accuracy': 'high', 'loss': 'low'}
    """

    def of(name: str) -> Direction | None:
        return declared[name] if name in declared else of(name.partition(".")[2]) if name else None

    return {name: said for name in results if (said := of(name)) is not None}


def direction(metric: str, declared: Mapping[str, Direction], better: Direction | None = None) -> Direction:
    """That of a metric, as given, or else as declared. Raises ConfigError where neither says it."""
    if better not in ("high", "low", None):
        raise ConfigError(f"better={better!r} of {metric!r} is neither 'high' nor 'low'")
    if (said := better or declared.get(metric)) is None:
        known = f"; known of {', '.join(declared)}" if declared else ""
        raise ConfigError(f"nothing says whether {metric!r} is better high or low: write better='high' or 'low'{known}")
    return said


def rank(metric: str, better: Direction, results: Mapping[str, Any]) -> tuple[float, float]:
    """What is lower of better results: by a metric, and of equal ones by the loss, of "ema.accuracy" by "ema.loss"; NaN
    and what is not there come last."""
    value, loss = results.get(metric), results.get(f"{metric.rpartition('.')[0]}.loss", results.get("loss"))
    value, loss = (math.nan if x is None else float(x) for x in (-value if better == "high" and value else value, loss))
    return math.inf if value != value else value, math.inf if loss != loss else loss
