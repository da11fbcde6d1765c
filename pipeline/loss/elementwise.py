"""Losses that are means over elements."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline import means
from pipeline.loss.joint import WRITES, Loss, mean_chances, mean_outputs
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


def binary_cross_entropy() -> Loss:
    """Binary cross entropy of logits, as torch.nn.BCEWithLogitsLoss. Shapes as in mse; targets in [0, 1], any dtype."""
    per_element = partial(F.binary_cross_entropy_with_logits, reduction="none")
    return _elementwise("loss.binary_cross_entropy", per_element, mean_chances)


def _elementwise(name: str, per_element: Callable[[Tensor, Tensor], Tensor], join: Any = mean_outputs) -> Loss:
    return Loss(name, lambda outputs, targets: _mean(name, per_element, outputs, targets), writes=WRITES, join=join)


def _mean(name: str, per_element: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, targets: Tensor) -> Any:
    values = per_element(fitted(name, outputs, targets), targets.to(outputs.dtype))
    return values.mean(), means.number(values.numel(), values)
