"""Metrics of values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import ConfigError
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


def root_mean_squared_error() -> Stage:
    """The root of the mean of (output - target)^2 over all values; reported as `rmse`."""
    return _mean_error("evaluate.root_mean_squared_error", "rmse", torch.square, torch.sqrt)


def pinball(quantile: float = 0.5) -> Stage:
    """The mean over all values of the pinball loss of a quantile: quantile * e above the output, (quantile - 1) * e
    below, with e = target - output; reported as `pinball`.

    Source: Koenker and Bassett, Regression quantiles (1978); sklearn's mean_pinball_loss.

    >>> metric = pinball(0.9)
    >>> metric.finish(metric(torch.tensor([0.0, 0.0]), torch.tensor([1.0, -1.0])))["pinball"]
    tensor(0.5000, dtype=torch.float64)
    """
    if not 0 < quantile < 1:
        raise ConfigError(f"evaluate.pinball: quantile={quantile} is not between 0 and 1")
    # of(output - target): the negative error
    return _mean_error("evaluate.pinball", "pinball", lambda e: torch.maximum(-quantile * e, (1 - quantile) * e))


def poisson_deviance(*, log: bool = False) -> Stage:
    """The mean Poisson deviance 2 (y log(y / output) - y + output) of counts y, over all values; reported as
    `poisson deviance`. Outputs are means above 0, or their logarithms if `log`, as for loss.poisson(); at a mean of 0
    or below it is infinite.

    Source: McCullagh and Nelder, Generalized linear models (1989), 2.3; sklearn's mean_poisson_deviance.

    >>> metric = poisson_deviance()
    >>> metric.finish(metric(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0])))["poisson deviance"]
    tensor(2., dtype=torch.float64)
    """
    name = "evaluate.poisson_deviance"

    def measure(outputs: Tensor, targets: Tensor) -> Tree:
        mean, y = fitted(name, outputs, targets).to(FLOAT), targets.to(FLOAT)
        logs = mean if log else torch.where(mean > 0, mean, 1.0).log()
        each = 2 * (torch.xlogy(y, y) - y * logs - y + (mean.exp() if log else mean))
        each = each if log else torch.where(mean > 0, each, torch.inf)
        return {"sum": each.sum(), "count": count_of(targets)}

    return metric(name, measure, ratio("poisson deviance"), {"sum": FLOAT, "count": INT}, better="low")


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


def _mean_error(
    name: str, short: str, of: Callable[[Tensor], Tensor], then: Callable[[Tensor], Tensor] | None = None
) -> Stage:
    """The mean of a function of output - target, and a function of that."""

    def measure(outputs: Tensor, targets: Tensor) -> Tree:
        error = fitted(name, outputs, targets).to(FLOAT) - targets.to(FLOAT)
        return {"sum": of(error).sum(), "count": count_of(targets)}

    def finish(sums: Any) -> dict[str, Any]:
        mean = sums["sum"] / sums["count"]
        return {short: mean if then is None else then(mean)}

    return metric(name, measure, finish, {"sum": FLOAT, "count": INT}, better="low")
