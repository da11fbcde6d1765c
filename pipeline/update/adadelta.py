"""Adadelta: learning rates by running means of squared gradients and steps."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pipeline.element import Number
from pipeline.errors import ConfigError
from pipeline.schedules import Schedule
from pipeline.stage import Stage
from pipeline.update.rule import mapped, number, root, zeros


def adadelta(lr: Number = 1.0, *, rho: Number = 0.9, eps: Number = 1e-6, weight_decay: Number = 0.0,
             maximize: bool = False) -> Stage:  # fmt: skip
    """Adadelta, equal to torch.optim.Adadelta.

        g = grad + weight_decay * p;  v = rho * v + (1 - rho) * g**2;  d = sqrt(u + eps) / sqrt(v + eps) * g
        u = rho * u + (1 - rho) * d**2;  p = p - lr * d

    Source: Zeiler, Adadelta: an adaptive learning rate method (2012), algorithm 1.
    """
    first = number("update.adadelta", "rho", rho)
    if not isinstance(first, Schedule) and not 0 <= first <= 1:
        raise ConfigError(f"update.adadelta: rho={first} is not in [0, 1]")

    def rule(p: Tensor, g: Tensor, memory: Any, lr: Tensor, rho: Tensor, eps: Tensor, weight_decay: Tensor) -> Any:
        g = g + weight_decay * p
        v = rho * memory["second"] + (1.0 - rho) * g * g
        step = root(memory["steps"] + eps) / root(v + eps) * g
        return p - lr * step, {"second": v, "steps": rho * memory["steps"] + (1.0 - rho) * step * step}

    hyper = {"lr": lr, "rho": rho, "eps": eps, "weight_decay": weight_decay}
    return mapped("update.adadelta", rule, hyper, memory=zeros("second", "steps"), maximize=maximize)
