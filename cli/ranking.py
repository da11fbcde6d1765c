"""Better: which values of a run's metrics are better, as its rows tell it, and which of two runs is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from cli import folder as folders
from cli import seal as seals
from cli.progress import warn
from cli.seal import METRICS
from pipeline import log, plot
from pipeline.direction import Direction, direction, directions, rank


def read(folder: Path) -> list[log.Row]:
    """The rows of a run. The first one says which values are better, also where it is of before runs did."""
    rows, seal = log.read(folder / METRICS), seals.read(folder)
    fault = None if seal is None or folders.is_busy(folder) else seals.broken(seal, rows)
    if fault is not None:
        warn(f"{fault}: what it says may be wrong")
    rows = [{k: v for k, v in row.items() if k != seals.CHAIN} for row in rows]
    if rows and not log.declared(rows):
        names = dict.fromkeys(name.partition("/")[2] for r in rows for name in r if "/" in name)
        rows[0]["better"] = directions(built_in(), names)
    return rows


@cache
def built_in() -> Mapping[str, Direction | None]:
    """What the metrics of evaluate declare, by the names of their results."""
    from torch import nn

    from pipeline import Pipeline, backward, evaluate, forward, loss
    from pipeline.programs.evaluate import better

    measured = (
        evaluate.accuracy(), evaluate.calibration_error(), *map(evaluate.top_k, range(1, 11)), evaluate.confusion(2),
        evaluate.mean_absolute_error(), evaluate.mean_squared_error(), evaluate.r2(), evaluate.perplexity(),
    )  # fmt: skip
    model = forward.model(lambda: nn.Linear(2, 2))
    pipe = Pipeline(model, loss.cross_entropy(), *measured, backward.gradients())
    return better(pipe.program, pipe.init())


def last(r: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of a row's validation, by their own names."""
    found = {k.removeprefix("validate/"): v for k, v in r.items() if k.startswith("validate/")}
    return {k: v for k, v in found.items() if isinstance(v, int | float | None)}  # a damaged row may have lists


def of(metric: str, rows: Iterable[log.Row]) -> Direction:
    """That of a metric, as some rows say, or else the metrics of evaluate. Raises ConfigError where none does."""
    return direction(metric, log.declared(rows) or directions(built_in(), [metric]))


def ranking(metric: str, rows: Iterable[log.Row]) -> Callable[[Mapping[str, Any]], tuple[float, float]]:
    """What is lower of the row of a better run, by some rows that say which values are better."""
    better = of(metric, rows)
    return lambda r: rank(metric, better, last(r))


def best_epoch(rows: Sequence[log.Row], metric: str | None) -> tuple[int, str, float] | None:
    """The best epoch of a run, or None if the metric declares no direction."""
    return plot.best_epoch(rows, metric) if metric is None or metric in log.declared(rows) else None
