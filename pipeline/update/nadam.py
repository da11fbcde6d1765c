"""NAdam: Adam with Nesterov momentum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.element import Number
from pipeline.stage import Stage
from pipeline.update.adam import Betas, decayed, hyperparameters, moments
from pipeline.update.rule import mapped, root, zeros


def nadam(lr: Number = 2e-3, *, betas: Betas = (0.9, 0.999), eps: Number = 1e-8, weight_decay: Number = 0.0,
          momentum_decay: Number = 4e-3, decoupled_weight_decay: bool = False,
          maximize: bool = False) -> Stage:  # fmt: skip
    """Adam with Nesterov momentum, equal to torch.optim.NAdam.

        mu(t) = beta1 * (1 - 0.96**(t * momentum_decay) / 2);  product = mu(1) * ... * mu(t)
        p = p - lr * ((1 - mu(t)) / (1 - product) * g + mu(t + 1) / (1 - product * mu(t + 1)) * m)
                / (sqrt(v / (1 - beta2**t)) + eps)

    Source: Dozat, Incorporating Nesterov momentum into Adam (2016), in torch's form.
    """

    def rule(p: Tensor, g: Tensor, memory: Any, t: Tensor, lr: Tensor, beta1: Tensor, beta2: Tensor, eps: Tensor,
             weight_decay: Tensor, momentum_decay: Tensor) -> Any:  # fmt: skip
        p, g = decayed(p, g, lr, weight_decay, decoupled_weight_decay)
        m, v = moments(g, memory, beta1, beta2)
        mu, following = (beta1 * (1.0 - 0.5 * 0.96 ** (s * momentum_decay)) for s in (t, t + 1))
        product = memory["product"] * mu
        denominator = root(v / (1.0 - beta2**t)) + eps
        own, mean = (1.0 - mu) / (1.0 - product), following / (1.0 - product * following)
        p = p - lr * own * (g / denominator) - lr * mean * (m / denominator)
        return p, {"first": m, "second": v, "product": product}

    def memory(p: Tensor) -> dict[str, Tensor]:
        return {**zeros("first", "second")(p), "product": p.new_ones((), dtype=torch.float64)}

    hyper = {**hyperparameters("update.nadam", lr, betas, eps, weight_decay), "momentum_decay": momentum_decay}
    return mapped("update.nadam", rule, hyper, memory=memory, maximize=maximize)
