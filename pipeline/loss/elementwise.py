"""Losses that are means over elements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from attrs import evolve
from torch import Tensor
from torch.nn import functional as F

from pipeline import means
from pipeline.errors import ConfigError, DataError
from pipeline.loss.joint import WRITES, Loss, full, mean_chances, mean_outputs, mean_rates
from pipeline.shapes import fitted


def mse() -> Loss:
    """Mean squared error. Shapes: outputs and targets of one shape, or (B, 1) and (B,) -> ()."""
    return _elementwise("loss.mse", lambda x, y: (x - y) ** 2)


def l1() -> Loss:
    """Mean absolute error. Shapes as in mse."""
    return _elementwise("loss.l1", lambda x, y: (x - y).abs())


def huber(delta: float = 1.0) -> Loss:
    """Huber loss (1964): squared within `delta`, linear beyond, as torch.nn.HuberLoss. Shapes as in mse.

    >>> huber(1.0)(torch.tensor([3.0]), torch.tensor([0.0]), delta=1.0)[0]
    tensor(2.5000)
    """

    def function(outputs: Tensor, targets: Tensor, delta: Any) -> Any:
        def per_element(x: Tensor, y: Tensor) -> Tensor:
            error = (x - y).abs()
            return torch.where(error <= delta, 0.5 * error**2, delta * (error - 0.5 * delta))

        return _mean("loss.huber", per_element, outputs, targets)

    return Loss("loss.huber", function, writes=WRITES, join=mean_outputs, hyper={"delta": delta})


def quantile(quantile: float = 0.5) -> Loss:
    """Pinball loss, which a quantile of the targets minimizes: quantile * e above the output, (quantile - 1) * e below,
    with e = target - output. Shapes as in mse.

    Source: Koenker and Bassett, Regression quantiles (1978).

    >>> value, count = quantile(0.9)(torch.tensor([0.0]), torch.tensor([2.0]), quantile=0.9)
    >>> round(value.item(), 4)
    1.8
    """
    if not 0 < quantile < 1:
        raise ConfigError(f"loss.quantile: quantile={quantile} is not between 0 and 1")

    def function(outputs: Tensor, targets: Tensor, quantile: Any) -> Any:
        def per_element(x: Tensor, y: Tensor) -> Tensor:
            return torch.maximum(quantile * (y - x), (quantile - 1) * (y - x))

        return _mean("loss.quantile", per_element, outputs, targets)

    return Loss("loss.quantile", function, writes=WRITES, join=mean_outputs, hyper={"quantile": quantile})


def poisson() -> Loss:
    """Negative log-likelihood of counts, without the term of the targets alone: exp(output) - target * output, as
    torch.nn.PoissonNLLLoss. Outputs are logarithms of means. Shapes as in mse; targets of at least 0.

    Source: McCullagh and Nelder, Generalized linear models (1989), 6.2.

    >>> round(poisson()(torch.tensor([0.0]), torch.tensor([3.0]))[0].item(), 4)
    1.0
    """
    name = "loss.poisson"

    def check(outputs: Tensor, targets: Tensor) -> None:
        if bool((targets < 0).any()):
            raise DataError(f"{name}() takes counts, and a target is {targets.min():.4g}; use loss.mse()")

    loss = _elementwise(name, lambda x, y: x.exp() - y * x, mean_rates)
    return evolve(loss, check=check)


def binary_cross_entropy(*, weight: Tensor | None = None) -> Loss:
    """Binary cross entropy of logits, as torch.nn.BCEWithLogitsLoss. Shapes as in mse; targets in [0, 1], any dtype.

    `weight` (L,), for labels (B, L): how many times a label that is there counts, torch's `pos_weight`. The loss stays
    a mean over elements.

    >>> value, _ = binary_cross_entropy(weight=torch.tensor([3.0]))(torch.zeros(2, 1), torch.tensor([[1.0], [0.0]]))
    >>> round(value.item(), 4)  # (3 * log 2 + log 2) / 2
    1.3863
    """
    name = "loss.binary_cross_entropy"

    def per_element(x: Tensor, y: Tensor) -> Tensor:
        times = None if weight is None else weight.to(x)
        return F.binary_cross_entropy_with_logits(x, y, pos_weight=times, reduction="none")

    def check(outputs: Tensor, targets: Tensor) -> None:
        if len(wrong := targets[(targets < 0) | (targets > 1)]):
            raise DataError(f"{name}() takes targets in [0, 1], and one is {wrong[0]:.4g}; use loss.mse() for values")

    return evolve(_elementwise(name, per_element, mean_chances), check=check)


def _elementwise(name: str, per_element: Callable[[Tensor, Tensor], Tensor], join: Any = mean_outputs) -> Loss:
    return Loss(name, lambda outputs, targets: _mean(name, per_element, outputs, targets), writes=WRITES, join=join)


def _mean(name: str, per_element: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, targets: Tensor) -> Any:
    outputs = full(fitted(name, outputs, targets))
    values = per_element(outputs, targets.to(outputs.dtype))
    return values.mean(), means.number(values.numel(), values)
