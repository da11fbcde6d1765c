"""Lion: evolved sign momentum."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pipeline.element import Number
from pipeline.stage import Stage
from pipeline.update.rule import below_one, mapped, zeros


def lion(lr: Number = 1e-4, *, betas: tuple[Number, Number] = (0.9, 0.99), weight_decay: Number = 0.0,
         maximize: bool = False) -> Stage:  # fmt: skip
    """Lion: the sign of an interpolated momentum, with decoupled weight decay.

        p = p * (1 - lr * weight_decay) - lr * sign(beta1 * m + (1 - beta1) * g);  m = beta2 * m + (1 - beta2) * g

    Source: Chen et al., Symbolic discovery of optimization algorithms (2023), algorithm 2.
    """
    below_one("update.lion", beta1=betas[0], beta2=betas[1])

    def rule(p: Tensor, g: Tensor, memory: Any, lr: Tensor, beta1: Tensor, beta2: Tensor, weight_decay: Tensor) -> Any:
        m = memory["first"]
        step = (beta1 * m + (1.0 - beta1) * g).sign()
        return p * (1.0 - lr * weight_decay) - lr * step, {"first": beta2 * m + (1.0 - beta2) * g}

    hyper = {"lr": lr, "beta1": betas[0], "beta2": betas[1], "weight_decay": weight_decay}
    return mapped("update.lion", rule, hyper, memory=zeros("first"), maximize=maximize)
