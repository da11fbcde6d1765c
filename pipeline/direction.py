"""Direction: whether a metric is better high or low, as it declares, and the ranking of results by it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias

from pipeline.errors import ConfigError

Direction: TypeAlias = Literal["high", "low"]
Better: TypeAlias = Direction | Mapping[str, Direction] | None
"""Of all results of a metric, or by their names."""


def directions(declared: Mapping[str, Direction | None], results: Iterable[str]) -> dict[str, Direction]:
    """Directions of results by name. A view of a metric, such as "ema.accuracy", has the metric's.

    >>> directions({"accuracy": "high", "x.loss": None, "loss": "low"}, ["ema.accuracy", "x.loss", "loss"])
    {'ema.accuracy': 'high', 'loss': 'low'}
    """

    def lookup(name: str) -> Direction | None:
        return declared[name] if name in declared else lookup(name.partition(".")[2]) if name else None

    return {name: way for name in results if (way := lookup(name)) is not None}


def direction(metric: str, declared: Mapping[str, Direction], better: Direction | None = None) -> Direction:
    """`better` if given, else the declared direction. Raises ConfigError if there is neither."""
    if better not in ("high", "low", None):
        raise ConfigError(f"better={better!r} of {metric!r} is neither 'high' nor 'low'")
    if (way := better or declared.get(metric)) is None:
        known = f"; known of {', '.join(declared)}" if declared else ""
        raise ConfigError(f"nothing says whether {metric!r} is better high or low: write better='high' or 'low'{known}")
    return way


def rank(metric: str, better: Direction, results: Mapping[str, Any]) -> tuple[float, float]:
    """A sort key, lower for better results: by the metric, then by its loss ("ema.loss" for "ema.accuracy"). NaN and
    missing values come last."""
    value, loss = results.get(metric), results.get(f"{metric.rpartition('.')[0]}.loss", results.get("loss"))
    value, loss = (math.nan if x is None else float(x) for x in (-value if better == "high" and value else value, loss))
    return math.inf if value != value else value, math.inf if loss != loss else loss
