"""ASGD: averaged stochastic gradient descent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.element import Number
from pipeline.stage import Stage
from pipeline.update.rule import mapped, zeros


def asgd(lr: Number = 1e-2, *, lambd: Number = 1e-4, alpha: Number = 0.75, t0: Number = 1e6,
         weight_decay: Number = 0.0, maximize: bool = False) -> Stage:  # fmt: skip
    """Averaged stochastic gradient descent, equal to torch.optim.ASGD; its memory holds the average as "average".

        g = grad + weight_decay * p;  eta = lr / (1 + lambd * lr * (t - 1))**alpha;  p = p * (1 - lambd * eta) - eta * g
        average = average + (p - average) / max(1, t - 1 - t0)

    Source: Polyak and Juditsky, Acceleration of stochastic approximation by averaging (1992), in torch's form.
    """

    def rule(p: Tensor, g: Tensor, memory: Any, t: Tensor, lr: Tensor, lambd: Tensor, alpha: Tensor, t0: Tensor,
             weight_decay: Tensor) -> Any:  # fmt: skip
        g = g + weight_decay * p
        eta = lr / (1.0 + lambd * lr * (t - 1)) ** alpha
        p = p * (1.0 - lambd * eta) - eta * g
        mu = 1.0 / (t - 1 - t0).clamp(min=1.0)
        # Before averaging starts (mu = 1) take p itself: average + (p - average) would round.
        return p, {"average": torch.where(mu == 1.0, p, memory["average"] + mu * (p - memory["average"]))}

    hyper = {"lr": lr, "lambd": lambd, "alpha": alpha, "t0": t0, "weight_decay": weight_decay}
    return mapped("update.asgd", rule, hyper, memory=zeros("average"), maximize=maximize)
