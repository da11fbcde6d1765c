"""SGD, with and without momentum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.element import Number
from pipeline.errors import ConfigError
from pipeline.stage import Stage
from pipeline.update.rule import mapped, positive, zeros


def sgd(lr: Number = 1e-3, *, momentum: Number = 0.0, dampening: Number = 0.0, weight_decay: Number = 0.0,
        nesterov: bool = False, maximize: bool = False) -> Stage:  # fmt: skip
    """Stochastic gradient descent, equal to torch.optim.SGD; with momentum=0 it has no memory.

        g = grad + weight_decay * p;  m = momentum * m + (1 - dampening) * g  (m = g in the first step);  p = p - lr * m

    With `nesterov`: p = p - lr * (g + momentum * m). Source: Sutskever et al., On the importance of
    initialization and momentum in deep learning (2013), in torch's form.
    """
    positive("update.sgd", lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay)
    if nesterov and (momentum == 0 or dampening != 0):
        raise ConfigError("update.sgd: nesterov=True needs a momentum above 0 and no dampening")

    def plain(p: Tensor, g: Tensor, lr: Tensor, weight_decay: Tensor) -> Tensor:
        return p - lr * (g + weight_decay * p)

    def heavy(p: Tensor, g: Tensor, memory: Any, t: Tensor, lr: Tensor, momentum: Tensor, dampening: Tensor,
              weight_decay: Tensor) -> Any:  # fmt: skip
        g = g + weight_decay * p
        m = momentum * memory["velocity"] + torch.where(t == 1, 1.0, 1.0 - dampening) * g
        return p - lr * (g + momentum * m if nesterov else m), {"velocity": m}

    hyper = {"lr": lr, "weight_decay": weight_decay}
    if momentum == 0:
        return mapped("update.sgd", plain, hyper, maximize=maximize)
    hyper |= {"momentum": momentum, "dampening": dampening}
    return mapped("update.sgd", heavy, hyper, memory=zeros("velocity"), maximize=maximize)
