"""Adam and its kin."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.stage import Number, Stage
from pipeline.update.rule import Params, below_one, count_of, positive, zeros


def adam(lr: Number = 1e-3, *, betas: tuple[Number, Number] = (0.9, 0.999), eps: Number = 1e-8,
         weight_decay: Number = 0.0) -> Stage:  # fmt: skip
    """Adam, equal to torch.optim.Adam; its weight decay is added to the gradient.

    Source: Kingma and Ba, Adam: a method for stochastic optimization (2015), algorithm 1.
    """
    return _adam("update.adam", False, lr, betas, eps, weight_decay)


def adamw(lr: Number = 1e-3, *, betas: tuple[Number, Number] = (0.9, 0.999), eps: Number = 1e-8,
          weight_decay: Number = 0.01) -> Stage:  # fmt: skip
    """Adam with decoupled weight decay, equal to torch.optim.AdamW.

    Source: Loshchilov and Hutter, Decoupled weight decay regularization (2019), algorithm 2.
    """
    return _adam("update.adamw", True, lr, betas, eps, weight_decay)


def _adam(name: str, decoupled: bool, lr: Number, betas: tuple[Number, Number], eps: Number, decay: Number) -> Stage:
    positive(name, lr=lr, eps=eps, weight_decay=decay)
    below_one(name, beta1=betas[0], beta2=betas[1])

    def rule(params: Params, grads: Params, memory: Any, lr: Tensor, beta1: Tensor, beta2: Tensor, eps: Tensor,
             weight_decay: Tensor) -> tuple[Params, Any]:  # fmt: skip
        count = memory["count"] + 1
        rate = lr / (1.0 - beta1**count)
        scale = torch.sqrt(1.0 - beta2**count)
        new, first, second = {}, {}, {}
        for k, p in params.items():
            g = grads[k] if decoupled else grads[k] + weight_decay * p
            first[k] = m = memory["first"][k] + (1.0 - beta1) * (g - memory["first"][k])
            second[k] = v = beta2 * memory["second"][k] + (1.0 - beta2) * g * g
            kept = p * (1.0 - lr * weight_decay) if decoupled else p
            new[k] = kept - rate * (m / (torch.sqrt(v) / scale + eps))
        return new, {"count": count, "first": first, "second": second}

    def init(params: Params) -> Any:
        return {"count": count_of(params), "first": zeros(params), "second": zeros(params)}

    hyper = {"lr": lr, "beta1": betas[0], "beta2": betas[1], "eps": eps, "weight_decay": decay}
    return Stage(name, rule, writes=("params",), init=init, hyper=hyper)
