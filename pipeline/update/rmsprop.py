"""RMSprop: learning rates by a running mean of squared gradients."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pipeline.element import Number
from pipeline.stage import Stage
from pipeline.update.rule import mapped, root, zeros


def rmsprop(lr: Number = 1e-2, *, alpha: Number = 0.99, eps: Number = 1e-8, weight_decay: Number = 0.0,
            momentum: Number = 0.0, centered: bool = False, maximize: bool = False) -> Stage:  # fmt: skip
    """RMSprop, equal to torch.optim.RMSprop; with momentum=0 it keeps no velocity.

        g = grad + weight_decay * p;  v = alpha * v + (1 - alpha) * g**2;  d = g / (sqrt(v) + eps);  p = p - lr * d

    With `centered`, v is the variance. With momentum: b = momentum * b + d;  p = p - lr * b.
    Sources: Hinton, lecture 6e of Neural networks for machine learning (2012); Graves, Generating sequences with
    recurrent neural networks (2013), equations 38 to 41.
    """

    def rule(p: Tensor, g: Tensor, memory: Any, lr: Tensor, alpha: Tensor, eps: Tensor, weight_decay: Tensor,
             momentum: Tensor | None = None) -> Any:  # fmt: skip
        g = g + weight_decay * p
        after = {"second": alpha * memory["second"] + (1.0 - alpha) * g * g}
        v = after["second"]
        if centered:
            after["first"] = m = memory["first"] + (1.0 - alpha) * (g - memory["first"])
            v = v - m * m
        step = g / (root(v) + eps)
        if momentum is not None:
            after["velocity"] = step = momentum * memory["velocity"] + step
        return p - lr * step, after

    hyper = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay}
    fields = ["second", *(["first"] if centered else [])]
    if momentum != 0:
        hyper["momentum"] = momentum
        fields.append("velocity")
    return mapped("update.rmsprop", rule, hyper, memory=zeros(*fields), maximize=maximize)
