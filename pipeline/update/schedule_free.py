"""Schedule-free AdamW: averaged steps in place of a decaying schedule."""

from __future__ import annotations

from typing import Any

import torch
from attrs import evolve
from torch import Tensor

from pipeline.element import Number
from pipeline.stage import Average, Stage
from pipeline.update.adam import Betas, hyperparameters
from pipeline.update.rule import Params, mapped, root, zeros


def schedule_free_adamw(lr: Number = 2.5e-3, *, betas: Betas = (0.9, 0.999), eps: Number = 1e-8,
                        weight_decay: Number = 0.0, maximize: bool = False) -> Stage:  # fmt: skip
    """AdamW with averaged steps in place of a decaying learning rate; a warm-up still helps.

        rate = lr * sqrt(1 - beta2**t);  base = base - rate * (g / (sqrt(v) + eps) + weight_decay * p)
        average = average + rate**2 / (sum of all rate**2 so far) * (base - average)
        p = (1 - beta1) * base + beta1 * average

    Evaluate and save the average: `fit` reports it as "schedule_free_adamw.loss", and pipe.averaged() returns it.
    Source: Defazio et al., The road less scheduled (2024), algorithm 1, with schedules.warmup in place of its own.
    """

    def rule(p: Tensor, g: Tensor, memory: Any, t: Tensor, lr: Tensor, beta1: Tensor, beta2: Tensor, eps: Tensor,
             weight_decay: Tensor) -> Any:  # fmt: skip
        v = beta2 * memory["second"] + (1.0 - beta2) * g * g
        rate = lr * (1.0 - beta2**t).sqrt()
        base = memory["base"] - rate * (g / (root(v) + eps) + weight_decay * p)
        total = memory["total"] + rate**2
        average = memory["average"] + rate**2 / torch.where(total > 0, total, 1.0) * (base - memory["average"])
        after = {"second": v, "base": base, "average": average, "total": total}
        return (1.0 - beta1) * base + beta1 * average, after

    def memory(p: Tensor) -> dict[str, Tensor]:
        total = p.new_zeros((), dtype=torch.float64)
        return {**zeros("second")(p), "base": p.clone(), "average": p.clone(), "total": total}

    def view(params: Params, memory: Any) -> dict[str, Params]:
        average = memory["average"]
        return {"params": {k: torch.view_as_complex(x) if params[k].is_complex() else x for k, x in average.items()}}

    name = "update.schedule_free_adamw"
    stage = mapped(name, rule, hyperparameters(name, lr, betas, eps, weight_decay), memory=memory, maximize=maximize)
    return evolve(stage, average=Average(view, refresh=True), overwrites=True)
