"""Gradient clipping."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline import mesh
from pipeline.alike import traced_once
from pipeline.element import Number
from pipeline.stage import Stage
from pipeline.update.rule import Params, positive
from pipeline.update.select import Which, chosen


def clip_norm(limit: Number, *, norm_type: float = 2.0) -> Stage:
    """Scale gradients so that their total norm is at most `limit`, as torch.nn.utils.clip_grad_norm_.

    >>> grads = clip_norm(1.0)({"w": torch.tensor([3.0, 4.0])}, limit=torch.tensor(1.0))
    >>> [round(x, 3) for x in grads["w"].tolist()]
    [0.6, 0.8]
    """

    def function(grads: Params, limit: Tensor) -> Params:
        # The norm of norms, in torch's own order of operations.
        measure = traced_once(lambda g: torch.linalg.vector_norm(g, norm_type))
        norms = [measure(g) for g in grads.values()]
        norm = mesh.norm_over_shards(norms, [g.ndim == 0 for g in grads.values()], norm_type)
        scale = (limit / (norm + 1e-6)).clamp(max=1.0).to(norm.dtype)
        scaled = traced_once(torch.mul)
        return {k: scaled(g, scale) for k, g in grads.items()}

    return _clip("update.clip_norm", function, limit)


def clip_value(limit: Number) -> Stage:
    """Clamp each gradient element to [-limit, limit], as torch.nn.utils.clip_grad_value_."""

    def function(grads: Params, limit: Tensor) -> Params:
        return {k: torch.minimum(torch.maximum(g, -limit.to(g.dtype)), limit.to(g.dtype)) for k, g in grads.items()}

    return _clip("update.clip_value", function, limit)


def clip_adaptive(limit: Number = 0.01, *, eps: float = 1e-3, only: Which = "*") -> Stage:
    """Adaptive gradient clipping: scale each unit's gradient to at most `limit` times the norm of its weights.

    A unit is a row of a matrix, the filter of an output channel, or a whole vector. `eps` is the minimum norm of
    weights. The paper excludes the last layer: only="!head.*". Source: Brock et al., High-performance large-scale image
    recognition without normalization (2021), equation 3.
    """

    def function(params: Params, grads: Params, limit: Tensor) -> Params:
        def clipped(p: Tensor, g: Tensor) -> Tensor:
            most, norm = limit * _unit_norm(p).clamp(min=eps), _unit_norm(g)
            return torch.where(norm > most, g * (most / norm.clamp(min=1e-6)), g)

        own = chosen(name, only, params)
        return {k: clipped(params[k], g) if k in own else g for k, g in grads.items()}

    name = "update.clip_adaptive"
    return _clip(name, function, limit, sharded=False)


def _clip(name: str, function: Callable[..., Params], limit: Number, sharded: bool = True) -> Stage:
    positive(name, limit=limit)
    return Stage(name, function, writes=("grads",), hyper={"limit": limit}, sharded=sharded)


def _unit_norm(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, dim=tuple(range(1 if x.ndim > 1 else 0, x.ndim)), keepdim=True)
    return norm
