"""Muon: momentum made orthogonal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.stage import Number, Stage
from pipeline.update.adam import adamw
from pipeline.update.groups import groups
from pipeline.update.rule import mapped, zeros


def matrices(name: str, tensor: Tensor) -> bool:
    """What Muon is for."""
    return tensor.ndim == 2


def muon(lr: Number = 1e-3, *, weight_decay: Number = 0.1, momentum: Number = 0.95, nesterov: bool = True,
         ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315), eps: float = 1e-7,
         ns_steps: int = 5, adjust_lr_fn: str | None = None, rest: Stage | None = None) -> Stage:  # fmt: skip
    """Muon for matrices, equal to torch.optim.Muon, and for all else `rest`, update.adamw() by default.

        m = momentum * m + (1 - momentum) * g;  p = p * (1 - lr * weight_decay) - lr * s * orthogonal(m)

    A matrix is made orthogonal by `ns_steps` of Newton and Schulz's iteration, in bfloat16; with `nesterov`, it is
    momentum * m + (1 - momentum) * g. s is sqrt(max(1, rows / columns)), or 0.2 * sqrt(max(rows, columns)) for
    adjust_lr_fn="match_rms_adamw". State has "update.muon.matrices.lr" and "update.muon.otherwise.lr". For embeddings
    and the last layer, which are matrices too, take update.groups. Sources: Jordan et al., Muon: an optimizer for
    hidden layers in neural networks (2024); Liu et al., Muon is scalable for LLM training (2025).
    """
    if adjust_lr_fn not in (None, "original", "match_rms_adamw"):
        raise ConfigError(f"update.muon: adjust_lr_fn={adjust_lr_fn!r} is neither 'original' nor 'match_rms_adamw'")

    def rule(p: Tensor, g: Tensor, memory: Any, lr: Tensor, weight_decay: Tensor, momentum: Tensor) -> Any:
        m = memory["velocity"] + (1.0 - momentum) * (g - memory["velocity"])
        step = _orthogonal(g + momentum * (m - g) if nesterov else m, ns_coefficients, ns_steps, eps)
        rows, columns = p.shape
        matched = adjust_lr_fn == "match_rms_adamw"
        rate = lr * (0.2 * max(rows, columns) ** 0.5 if matched else max(1.0, rows / columns) ** 0.5)
        return p * (1.0 - lr * weight_decay) - rate * step.to(p.dtype), {"velocity": m}

    hyper = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
    own = mapped("update.muon", rule, hyper, memory=zeros("velocity"), elementwise=False)
    return groups({matrices: own}, otherwise=adamw() if rest is None else rest, name="update.muon")


def _orthogonal(g: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """About U V^T of a matrix U S V^T: its singular values near 1."""
    a, b, c = coefficients
    x = g.bfloat16()
    x = x.T if g.shape[0] > g.shape[1] else x
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.T if g.shape[0] > g.shape[1] else x
