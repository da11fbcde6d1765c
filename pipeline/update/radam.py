"""RAdam: rectified Adam."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.element import Number
from pipeline.stage import Stage
from pipeline.update.adam import Betas, decayed, hyperparameters, moments
from pipeline.update.rule import mapped, root, zeros


def radam(lr: Number = 1e-3, *, betas: Betas = (0.9, 0.999), eps: Number = 1e-8, weight_decay: Number = 0.0,
          decoupled_weight_decay: bool = False, maximize: bool = False) -> Stage:  # fmt: skip
    """Rectified Adam, equal to torch.optim.RAdam: plain momentum while the variance of the adaptive rate is unbounded.

    Source: Liu et al., On the variance of the adaptive learning rate and beyond (2020), algorithm 2.
    """

    def rule(p: Tensor, g: Tensor, memory: Any, t: Tensor, lr: Tensor, beta1: Tensor, beta2: Tensor, eps: Tensor,
             weight_decay: Tensor) -> Any:  # fmt: skip
        p, g = decayed(p, g, lr, weight_decay, decoupled_weight_decay)
        m, v = moments(g, memory, beta1, beta2)
        corrected = 1.0 - beta2**t
        most = 2.0 / (1.0 - beta2) - 1.0
        length = most - 2.0 * t * beta2**t / corrected
        bounded = length > 5.0
        rectified = (length - 4.0) * (length - 2.0) * most / ((most - 4.0) * (most - 2.0) * length)
        rectified = torch.where(bounded, rectified, 1.0).sqrt() * corrected.sqrt()
        adaptive = torch.where(bounded, rectified / (root(v) + eps), 1.0)
        return p - lr * (m / (1.0 - beta1**t) * adaptive), {"first": m, "second": v}

    hyper = hyperparameters("update.radam", lr, betas, eps, weight_decay)
    return mapped("update.radam", rule, hyper, memory=zeros("first", "second"), maximize=maximize)
