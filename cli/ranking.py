"""Ranking of runs by a metric, in the direction that its run declares."""

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
    """The metrics of a run, an epoch each. Warns if they were changed; the first one declares directions."""
    rows, seal = log.read(folder / METRICS), seals.read(folder)
    fault = None if seal is None or folders.is_busy(folder) else seals.broken(seal, rows)
    if fault is not None:
        warn(f"{fault}: its numbers may be wrong")
    rows = [{k: v for k, v in row.items() if k != seals.CHAIN} for row in rows]
    if rows and not log.declared(rows):
        names = dict.fromkeys(name.partition("/")[2] for r in rows for name in r if "/" in name)
        rows[0]["better"] = directions(built_in(), names)
    return rows


@cache
def built_in() -> Mapping[str, Direction | None]:
    """Directions of the metrics of `pipeline.evaluate`, by the names of their results."""
    from torch import nn

    from pipeline import Pipeline, backward, evaluate, forward, loss
    from pipeline.programs.evaluate import better

    metrics = (
        evaluate.accuracy(), evaluate.calibration_error(), *map(evaluate.top_k, range(1, 11)), evaluate.confusion(2),
        evaluate.mean_absolute_error(), evaluate.mean_squared_error(), evaluate.r2(), evaluate.perplexity(),
        evaluate.balanced_accuracy(2), evaluate.f1(2), evaluate.roc_auc(2), evaluate.average_precision(2),
        evaluate.log_loss(), evaluate.root_mean_squared_error(), evaluate.pinball(), evaluate.poisson_deviance(),
    )  # fmt: skip
    model = forward.model(lambda: nn.Linear(2, 2))
    pipe = Pipeline(model, loss.cross_entropy(), *metrics, backward.gradients())
    return better(pipe.program, pipe.init())


def validation(row: Mapping[str, Any]) -> dict[str, Any]:
    """The validation metrics of a row, by their own names."""
    metrics = {k.removeprefix("validate/"): v for k, v in row.items() if k.startswith("validate/")}
    return {k: v for k, v in metrics.items() if isinstance(v, int | float | None)}  # a damaged row may have lists


def direction_of(metric: str, rows: Iterable[log.Row]) -> Direction:
    """The better direction of a metric: declared by rows, or else by a built-in metric. Raises ConfigError if neither
    does."""
    return direction(metric, log.declared(rows) or directions(built_in(), [metric]))


def ranking(metric: str, rows: Iterable[log.Row]) -> Callable[[Mapping[str, Any]], tuple[float, float]]:
    """A sort key for rows, lower for better runs; `rows` declare the direction."""
    better = direction_of(metric, rows)
    return lambda row: rank(metric, better, validation(row))


def best_epoch(rows: Sequence[log.Row], metric: str | None) -> tuple[int, str, float] | None:
    """The best epoch of a run, or None if the metric declares no direction."""
    return plot.best_epoch(rows, metric) if metric is None or metric in log.declared(rows) else None
