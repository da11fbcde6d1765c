"""Rprop: resilient backpropagation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.element import Number
from pipeline.stage import Stage
from pipeline.update.rule import mapped, zeros


def rprop(lr: Number = 1e-2, *, etas: tuple[Number, Number] = (0.5, 1.2),
          step_sizes: tuple[Number, Number] = (1e-6, 50.0), maximize: bool = False) -> Stage:  # fmt: skip
    """Resilient backpropagation, equal to torch.optim.Rprop: uses only signs, so it is for full-batch training.

        size = clamp(size * (etas[1] if the gradient kept its sign, etas[0] if it flipped), *step_sizes)
        p = p - size * sign(grad), unless the sign flipped;  size starts at lr

    Source: Riedmiller and Braun, A direct adaptive method for faster backpropagation learning (1993).
    """

    def rule(p: Tensor, g: Tensor, memory: Any, t: Tensor, lr: Tensor, eta_minus: Tensor, eta_plus: Tensor,
             step_min: Tensor, step_max: Tensor) -> Any:  # fmt: skip
        agreement = g * memory["before"]
        factor = torch.where(agreement > 0, eta_plus, torch.where(agreement < 0, eta_minus, 1.0)).to(p.dtype)
        size = torch.where(t == 1, lr.to(p.dtype), memory["size"]) * factor
        size = torch.minimum(torch.maximum(size, step_min.to(p.dtype)), step_max.to(p.dtype))
        g = torch.where(agreement < 0, 0.0, g)
        return p - size * g.sign(), {"before": g, "size": size}

    hyper = {"lr": lr, "eta_minus": etas[0], "eta_plus": etas[1], "step_min": step_sizes[0], "step_max": step_sizes[1]}
    return mapped("update.rprop", rule, hyper, memory=zeros("before", "size"), maximize=maximize)
