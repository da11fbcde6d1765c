"""Muon: orthogonalized momentum."""

from __future__ import annotations

from typing import Any

import torch
from attrs import evolve
from torch import Tensor

from pipeline.element import Number
from pipeline.errors import ConfigError
from pipeline.stage import Stage
from pipeline.text import some
from pipeline.update.adam import adamw
from pipeline.update.groups import groups
from pipeline.update.rule import Params, mapped, zeros
from pipeline.update.select import Which, holds


def muon(lr: Number = 1e-3, *, weight_decay: Number = 0.1, momentum: Number = 0.95, nesterov: bool = True,
         ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315), eps: float = 1e-7,
         ns_steps: int = 5, adjust_lr_fn: str | None = None, matrices: Which = "*",
         rest: Stage | None = None) -> Stage:  # fmt: skip
    """Muon for `matrices`, equal to torch.optim.Muon, and the rule `rest`, by default update.adamw(), for all else.

        m = momentum * m + (1 - momentum) * g;  p = p * (1 - lr * weight_decay) - lr * s * orthogonal(m)

    `orthogonal` is `ns_steps` of the Newton-Schulz iteration, in bfloat16; with `nesterov`, of
    momentum * m + (1 - momentum) * g. s is sqrt(max(1, rows / columns)), or 0.2 * sqrt(max(rows, columns)) for
    adjust_lr_fn="match_rms_adamw". A filter (out, in, height, width) is the matrix (out, in * height * width).
    Exclude embeddings and the last layer by `matrices`, a pattern of names or a predicate as in update.groups: a stage
    can't tell which these are. Vectors always go to `rest`. Hyperparameters in State: "update.muon.matrices.lr",
    "update.muon.otherwise.lr". Sources: Jordan et al., Muon: an optimizer for hidden
    layers in neural networks (2024); Liu et al., Muon is scalable for LLM training (2025).

    >>> stage = muon(0.02, matrices="!tokens.*, !head.*", rest=adamw(3e-4))
    >>> stage.hyper["matrices.lr"], stage.hyper["otherwise.lr"]
    (0.02, 0.0003)
    """
    if adjust_lr_fn not in (None, "original", "match_rms_adamw"):
        raise ConfigError(f"update.muon: adjust_lr_fn={adjust_lr_fn!r} is neither 'original' nor 'match_rms_adamw'")

    def rule(p: Tensor, g: Tensor, memory: Any, lr: Tensor, weight_decay: Tensor, momentum: Tensor) -> Any:
        m = memory["velocity"] + (1.0 - momentum) * (g - memory["velocity"])
        step = g + momentum * (m - g) if nesterov else m
        rows, columns = len(p), p.numel() // len(p)
        matched = adjust_lr_fn == "match_rms_adamw"
        rate = lr * (0.2 * max(rows, columns) ** 0.5 if matched else max(1.0, rows / columns) ** 0.5)
        step = _orthogonal(step.reshape(rows, columns), ns_coefficients, ns_steps, eps).reshape(p.shape)
        return p * (1.0 - lr * weight_decay) - rate * step.to(p.dtype), {"velocity": m}

    def selected(name: str, tensor: Tensor) -> bool:
        return tensor.ndim > 1 and not tensor.is_complex() and holds(matrices, name, tensor)

    def init(params: Params) -> Any:
        if isinstance(matrices, str) and matrices != "*" and not any(selected(k, p) for k, p in params.items()):
            raise ConfigError(f"update.muon: matrices={matrices!r} matches no matrix of {some(params)}")
        return stage.init(params)  # type: ignore[misc]  # groups have one

    selected.__name__ = "matrices"
    hyper = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
    own = mapped("update.muon", rule, hyper, memory=zeros("velocity"), elementwise=False)
    stage = groups({selected: own}, otherwise=adamw() if rest is None else rest, name="update.muon")
    return evolve(stage, init=init)


def _orthogonal(g: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Approximately U V^T, from the singular value decomposition U S V^T of g."""
    a, b, c = coefficients
    x = g.bfloat16()
    x = x.T if g.shape[0] > g.shape[1] else x
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.T if g.shape[0] > g.shape[1] else x
