"""Gradient noise."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.element import Number
from pipeline.stage import Stage
from pipeline.update.rule import Params, positive


def noise(eta: Number = 0.01, *, gamma: Number = 0.55) -> Stage:
    """Add Gaussian noise of variance eta / (1 + step)**gamma to the gradients.

    Source: Neelakantan et al., Adding gradient noise improves learning for very deep networks (2015), equation 1.
    """
    positive("update.noise", eta=eta, gamma=gamma)

    def function(grads: Params, step: Tensor, eta: Tensor, gamma: Tensor) -> Params:
        deviation = torch.sqrt(eta / (1.0 + step) ** gamma)
        return {k: g + deviation * torch.randn_like(g) for k, g in grads.items()}

    return Stage("update.noise", function, writes=("grads",), hyper={"eta": eta, "gamma": gamma}, draws=True)
