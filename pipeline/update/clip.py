"""What is done to gradients before a rule, and to weights beside it: clipping, noise, centring, decay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipeline import mesh
from pipeline.stage import Number, Stage
from pipeline.update.rule import Params, positive
from pipeline.update.select import Which, holds


def _clip(name: str, function: Callable[..., Params], limit: Number, sharded: bool = True) -> Stage:
    positive(name, limit=limit)
    return Stage(name, function, writes=("grads",), hyper={"limit": limit}, sharded=sharded)


def clip_norm(limit: Number, *, norm_type: float = 2.0) -> Stage:
    """Gradients scaled down so that their norm together is at most `limit`, as torch.nn.utils.clip_grad_norm_.

    >>> grads = clip_norm(1.0)({"w": torch.tensor([3.0, 4.0])}, limit=torch.tensor(1.0))
    >>> [round(x, 3) for x in grads["w"].tolist()]
    [0.6, 0.8]
    """

    def function(grads: Params, limit: Tensor) -> Params:
        # The norm of norms, in torch's own order of operations.
        norms = torch.stack([torch.linalg.vector_norm(g, norm_type) for g in grads.values()])
        norm = mesh.norm_over_shards(torch.linalg.vector_norm(norms, norm_type), norm_type)
        scale = (limit / (norm + 1e-6)).clamp(max=1.0).to(norm.dtype)
        return {k: g * scale for k, g in grads.items()}

    return _clip("update.clip_norm", function, limit)


def clip_value(limit: Number) -> Stage:
    """Each gradient entry clamped to [-limit, limit], as torch.nn.utils.clip_grad_value_."""

    def function(grads: Params, limit: Tensor) -> Params:
        return {k: torch.minimum(torch.maximum(g, -limit.to(g.dtype)), limit.to(g.dtype)) for k, g in grads.items()}

    return _clip("update.clip_value", function, limit)


def clip_adaptive(limit: Number = 0.01, *, eps: float = 1e-3, only: Which = "*") -> Stage:
    """Adaptive gradient clipping: the gradient of each unit is scaled down to `limit` times the norm of its weights.

    A unit is a row of a matrix, or all that makes one channel; vectors are one. Weights count for at least `eps`. The
    paper leaves out the last layer: only="!head.*". Source: Brock et al., High-performance large-scale image
    recognition without normalization (2021), equation 3.
    """

    def function(params: Params, grads: Params, limit: Tensor) -> Params:
        def clipped(p: Tensor, g: Tensor) -> Tensor:
            most, norm = limit * _unit_norm(p).clamp(min=eps), _unit_norm(g)
            return torch.where(norm > most, g * (most / norm.clamp(min=1e-6)), g)

        return {k: clipped(params[k], g) if holds(only, k, params[k]) else g for k, g in grads.items()}

    return _clip("update.clip_adaptive", function, limit, sharded=False)


def _unit_norm(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, dim=tuple(range(1 if x.ndim > 1 else 0, x.ndim)), keepdim=True)
    return norm


def noise(eta: Number = 0.01, *, gamma: Number = 0.55) -> Stage:
    """Gaussian noise added to the gradients, of variance eta / (1 + step)**gamma.

    Source: Neelakantan et al., Adding gradient noise improves learning for very deep networks (2015), equation 1.
    """
    positive("update.noise", eta=eta, gamma=gamma)

    def function(grads: Params, step: Tensor, eta: Tensor, gamma: Tensor) -> Params:
        deviation = torch.sqrt(eta / (1.0 + step) ** gamma)
        return {k: g + deviation * torch.randn_like(g) for k, g in grads.items()}

    return Stage("update.noise", function, writes=("grads",), hyper={"eta": eta, "gamma": gamma}, draws=True)


def centralize(*, only: Which = "*") -> Stage:
    """The gradient of each unit of a matrix or a convolution moved to a mean of 0.

    Source: Yong et al., Gradient centralization (2020), equation 1.

    >>> centralize()({"w": torch.ones(2, 3)}, {"w": torch.tensor([[1.0, 2.0, 3.0], [4.0, 4.0, 4.0]])})["w"].tolist()
    [[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    """

    def function(params: Params, grads: Params) -> Params:
        def centred(g: Tensor) -> Tensor:
            return g - g.mean(dim=tuple(range(1, g.ndim)), keepdim=True) if g.ndim > 1 else g

        return {k: centred(g) if holds(only, k, params[k]) else g for k, g in grads.items()}

    return Stage("update.centralize", function, writes=("grads",))


def weight_decay(rate: Number, *, only: Which = "*") -> Stage:
    """Weights made smaller beside any rule: p * (1 - rate), with no learning rate in it.

    Before a rule, with a rate of lr * weight_decay, it is what update.adamw does itself. Source: Loshchilov and Hutter,
    Decoupled weight decay regularization (2019), algorithm 1.
    """
    positive("update.weight_decay", rate=rate)

    def function(params: Params, rate: Any) -> Params:
        return {k: p * (1.0 - rate) if holds(only, k, p) else p for k, p in params.items()}

    return Stage("update.weight_decay", function, writes=("params",), hyper={"rate": rate}, sharded=True)
