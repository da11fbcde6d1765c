"""Adagrad: learning rates by the sum of squared gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.element import Number
from pipeline.stage import Stage
from pipeline.update.rule import mapped, positive, root


def adagrad(lr: Number = 1e-2, *, lr_decay: Number = 0.0, weight_decay: Number = 0.0,
            initial_accumulator_value: float = 0.0, eps: Number = 1e-10, maximize: bool = False) -> Stage:  # fmt: skip
    """Adagrad, equal to torch.optim.Adagrad.

        g = grad + weight_decay * p;  sum = sum + g**2;  p = p - lr / (1 + (t - 1) * lr_decay) * g / (sqrt(sum) + eps)

    Source: Duchi et al., Adaptive subgradient methods for online learning and stochastic optimization (2011).
    """
    positive("update.adagrad", initial_accumulator_value=initial_accumulator_value)

    def rule(p: Tensor, g: Tensor, memory: Any, t: Tensor, lr: Tensor, lr_decay: Tensor, weight_decay: Tensor,
             eps: Tensor) -> Any:  # fmt: skip
        g = g + weight_decay * p
        total = memory["sum"] + g * g
        return p - lr / (1.0 + (t - 1) * lr_decay) * (g / (root(total) + eps)), {"sum": total}

    def memory(p: Tensor) -> dict[str, Tensor]:
        return {"sum": torch.full_like(p, initial_accumulator_value)}

    hyper = {"lr": lr, "lr_decay": lr_decay, "weight_decay": weight_decay, "eps": eps}
    return mapped("update.adagrad", rule, hyper, memory=memory, maximize=maximize)
