"""Clipping of gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.stage import Number, Stage
from pipeline.update.rule import Params, positive


def _clip(name: str, function: Callable[..., Params], limit: Number) -> Stage:
    positive(name, limit=limit)
    return Stage(name, function, writes=("grads",), hyper={"limit": limit})


def clip_norm(limit: Number) -> Stage:
    """Gradients scaled down so that their norm together is at most `limit`, as torch.nn.utils.clip_grad_norm_.

    >>> grads = clip_norm(1.0)({"w": torch.tensor([3.0, 4.0])}, limit=torch.tensor(1.0))
    >>> [round(x, 3) for x in grads["w"].tolist()]
    [0.6, 0.8]
    """

    def function(grads: Params, limit: Tensor) -> Params:
        # The norm of norms, in torch's own order of operations.
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads.values()]))
        scale = (limit / (norm + 1e-6)).clamp(max=1.0).to(norm.dtype)
        return {k: g * scale for k, g in grads.items()}

    return _clip("update.clip_norm", function, limit)


def clip_value(limit: Number) -> Stage:
    """Each gradient entry clamped to [-limit, limit], as torch.nn.utils.clip_grad_value_."""

    def function(grads: Params, limit: Tensor) -> Params:
        return {k: torch.minimum(torch.maximum(g, -limit.to(g.dtype)), limit.to(g.dtype)) for k, g in grads.items()}

    return _clip("update.clip_value", function, limit)
