"""Adamax: Adam with the infinity norm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.element import Number
from pipeline.stage import Stage
from pipeline.update.adam import Betas, hyperparameters
from pipeline.update.rule import mapped, zeros


def adamax(lr: Number = 2e-3, *, betas: Betas = (0.9, 0.999), eps: Number = 1e-8, weight_decay: Number = 0.0,
           maximize: bool = False) -> Stage:  # fmt: skip
    """Adam with the infinity norm of past gradients as second moment, equal to torch.optim.Adamax.

        m = beta1 * m + (1 - beta1) * g;  u = max(beta2 * u, |g| + eps);  p = p - lr * m / (1 - beta1**t) / u

    Source: Kingma and Ba, Adam: a method for stochastic optimization (2015), algorithm 2.
    """

    def rule(p: Tensor, g: Tensor, memory: Any, t: Tensor, lr: Tensor, beta1: Tensor, beta2: Tensor, eps: Tensor,
             weight_decay: Tensor) -> Any:  # fmt: skip
        g = g + weight_decay * p
        m = memory["first"] + (1.0 - beta1) * (g - memory["first"])
        u = torch.maximum(beta2 * memory["largest"], g.abs() + eps)
        return p - lr / (1.0 - beta1**t) * (m / u), {"first": m, "largest": u}

    hyper = hyperparameters("update.adamax", lr, betas, eps, weight_decay)
    return mapped("update.adamax", rule, hyper, memory=zeros("first", "largest"), maximize=maximize)
