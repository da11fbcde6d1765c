"""Adam and AdamW."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.element import Number
from pipeline.stage import Stage
from pipeline.update.rule import below_one, mapped, root, zeros

Betas = tuple[Number, Number]


def adam(lr: Number = 1e-3, *, betas: Betas = (0.9, 0.999), eps: Number = 1e-8, weight_decay: Number = 0.0,
         amsgrad: bool = False, maximize: bool = False) -> Stage:  # fmt: skip
    """Adam, equal to torch.optim.Adam; its weight decay is added to the gradient.

        m = beta1 * m + (1 - beta1) * g;  v = beta2 * v + (1 - beta2) * g**2
        p = p - lr * m / (1 - beta1**t) / (sqrt(v / (1 - beta2**t)) + eps)

    With `amsgrad`, the second line uses the largest v so far. Sources: Kingma and Ba, Adam: a method for stochastic
    optimization (2015), algorithm 1; Reddi et al., On the convergence of Adam and beyond (2018), algorithm 2.
    """
    return _adam("update.adam", False, lr, betas, eps, weight_decay, amsgrad, maximize)


def adamw(lr: Number = 1e-3, *, betas: Betas = (0.9, 0.999), eps: Number = 1e-8, weight_decay: Number = 0.01,
          amsgrad: bool = False, maximize: bool = False) -> Stage:  # fmt: skip
    """Adam with decoupled weight decay, p * (1 - lr * weight_decay), equal to torch.optim.AdamW.

    Source: Loshchilov and Hutter, Decoupled weight decay regularization (2019), algorithm 2.
    """
    return _adam("update.adamw", True, lr, betas, eps, weight_decay, amsgrad, maximize)


def _adam(name: str, decoupled: bool, lr: Number, betas: Betas, eps: Number, decay: Number, amsgrad: bool,
          maximize: bool) -> Stage:  # fmt: skip
    def rule(p: Tensor, g: Tensor, memory: Any, t: Tensor, lr: Tensor, beta1: Tensor, beta2: Tensor, eps: Tensor,
             weight_decay: Tensor) -> Any:  # fmt: skip
        p, g = decayed(p, g, lr, weight_decay, decoupled)
        m, v = moments(g, memory, beta1, beta2)
        after = {"first": m, "second": v}
        if amsgrad:
            after["largest"] = v = torch.maximum(memory["largest"], v)
        rate, scale = lr / (1.0 - beta1**t), 1.0 / torch.sqrt(1.0 - beta2**t)
        return p - rate * (m / (root(v) * scale + eps)), after

    fields = ("first", "second", "largest") if amsgrad else ("first", "second")
    return mapped(name, rule, hyperparameters(name, lr, betas, eps, decay), memory=zeros(*fields), maximize=maximize)


def decayed(p: Tensor, g: Tensor, lr: Tensor, weight_decay: Tensor, decoupled: bool) -> tuple[Tensor, Tensor]:
    """Parameter and gradient after weight decay: of the parameter if decoupled, else added to the gradient."""
    return (p * (1.0 - lr * weight_decay), g) if decoupled else (p, g + weight_decay * p)


def moments(g: Tensor, memory: Any, beta1: Tensor, beta2: Tensor) -> tuple[Tensor, Tensor]:
    """Running means of the gradient and of its square."""
    m, v = memory["first"], memory["second"]
    return m + (1.0 - beta1) * (g - m), beta2 * v + (1.0 - beta2) * g * g


def hyperparameters(name: str, lr: Number, betas: Betas, eps: Number, weight_decay: Number) -> dict[str, Number]:
    below_one(name, beta1=betas[0], beta2=betas[1])
    return {"lr": lr, "beta1": betas[0], "beta2": betas[1], "eps": eps, "weight_decay": weight_decay}
