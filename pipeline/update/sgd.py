"""Stochastic gradient descent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.stage import Number, Stage
from pipeline.update.rule import Params, count_of, positive, zeros


def sgd(lr: Number, *, momentum: Number = 0.0, dampening: Number = 0.0, weight_decay: Number = 0.0,
        nesterov: bool = False) -> Stage:  # fmt: skip
    """Stochastic gradient descent, equal to torch.optim.SGD; a momentum of 0 builds it without a memory.

        g = grad + weight_decay * p;  m = momentum * m + (1 - dampening) * g  (at first m = g);  p = p - lr * m

    With `nesterov` the last line is p - lr * (g + momentum * m). Source: Sutskever et al. (2013), as torch.optim.SGD.
    """
    positive("update.sgd", lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay)
    if nesterov and (momentum == 0 or dampening != 0):
        raise ConfigError("update.sgd: nesterov=True needs a momentum above 0 and no dampening")

    def plain(params: Params, grads: Params, lr: Tensor, weight_decay: Tensor) -> Params:
        return {k: p - lr * (grads[k] + weight_decay * p) for k, p in params.items()}

    def heavy(params: Params, grads: Params, memory: Any, lr: Tensor, momentum: Tensor, dampening: Tensor,
              weight_decay: Tensor) -> tuple[Params, Any]:  # fmt: skip
        new, velocity = {}, {}
        keep = torch.where(memory["count"] == 0, 1.0, 1.0 - dampening)
        for k, p in params.items():
            g = grads[k] + weight_decay * p
            velocity[k] = momentum * memory["velocity"][k] + keep * g
            new[k] = p - lr * (g + momentum * velocity[k] if nesterov else velocity[k])
        return new, {"count": memory["count"] + 1, "velocity": velocity}

    def init(params: Params) -> Any:
        return {"count": count_of(params), "velocity": zeros(params)}

    hyper: dict[str, Number] = {"lr": lr, "weight_decay": weight_decay}
    if momentum == 0:
        return Stage("update.sgd", plain, writes=("params",), hyper=hyper)
    hyper |= {"momentum": momentum, "dampening": dampening}
    return Stage("update.sgd", heavy, writes=("params",), init=init, hyper=hyper)
