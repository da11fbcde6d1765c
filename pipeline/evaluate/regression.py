"""Metrics of values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipeline.evaluate.metric import FLOAT, INT, count_of, metric, ratio
from pipeline.shapes import fitted
from pipeline.stage import Stage
from pipeline.tree import Tree


def mean_absolute_error() -> Stage:
    """The mean of |output - target| over all values; reported as `mae`."""
    return _mean_error("evaluate.mean_absolute_error", "mae", torch.abs)


def mean_squared_error() -> Stage:
    """The mean of (output - target)^2 over all values; reported as `mse`."""
    return _mean_error("evaluate.mean_squared_error", "mse", torch.square)


def r2() -> Stage:
    """1 - residual sum of squares / total sum of squares about the mean of the targets, over all values."""

    def measure(outputs: Tensor, targets: Tensor) -> Tree:
        y = targets.to(FLOAT)
        residual = ((fitted("evaluate.r2", outputs, targets).to(FLOAT) - y) ** 2).sum()
        return {"residual": residual, "y": y.sum(), "y2": (y * y).sum(), "count": count_of(targets)}

    def finish(s: Any) -> dict[str, Any]:
        return {"r2": 1.0 - s["residual"] / (s["y2"] - s["y"] * s["y"] / s["count"])}

    sums = {"residual": FLOAT, "y": FLOAT, "y2": FLOAT, "count": INT}
    return metric("evaluate.r2", measure, finish, sums, better="high")


def _mean_error(name: str, short: str, of: Callable[[Tensor], Tensor]) -> Stage:
    def measure(outputs: Tensor, targets: Tensor) -> Tree:
        error = fitted(name, outputs, targets).to(FLOAT) - targets.to(FLOAT)
        return {"sum": of(error).sum(), "count": count_of(targets)}

    return metric(name, measure, ratio(short), {"sum": FLOAT, "count": INT}, better="low")
