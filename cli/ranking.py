"""Ranking of runs by a metric, in the direction that its run declares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cli import folder as folders
from cli import seal as seals
from cli.progress import warn
from cli.seal import METRICS
from pipeline import log, plot
from pipeline.direction import Direction, direction, rank


def read(folder: Path) -> list[log.Row]:
    """The metrics of a run, an epoch each. Warns if they were changed."""
    rows, seal = log.read(folder / METRICS), seals.read(folder)
    fault = None if seal is None or folders.is_busy(folder) else seals.broken(seal, rows)
    if fault is not None:
        warn(f"{fault}: its numbers may be wrong")
    return [{k: v for k, v in row.items() if k != seals.CHAIN} for row in rows]


def validation(row: Mapping[str, Any]) -> dict[str, Any]:
    """The validation metrics of a row, by their own names."""
    metrics = {k.removeprefix("validate/"): v for k, v in row.items() if k.startswith("validate/")}
    return {k: v for k, v in metrics.items() if isinstance(v, int | float | None)}  # a damaged row may have lists


def direction_of(metric: str, rows: Iterable[log.Row]) -> Direction:
    """The better direction of a metric: declared by rows. Raises ConfigError if none does."""
    return direction(metric, log.declared(rows))


def ranking(metric: str, rows: Iterable[log.Row]) -> Callable[[Mapping[str, Any]], tuple[float, float]]:
    """A sort key for rows, lower for better runs; `rows` declare the direction."""
    better = direction_of(metric, rows)
    return lambda row: rank(metric, better, validation(row))


def best_epoch(rows: Sequence[log.Row], metric: str | None) -> tuple[int, str, float] | None:
    """The best epoch of a run, or None if the metric declares no direction."""
    return plot.best_epoch(rows, metric) if metric is None or metric in log.declared(rows) else None
