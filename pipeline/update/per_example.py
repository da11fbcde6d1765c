"""Reduce per-sample gradients, from `backward.gradients(per_example=True)`, to one for the batch.

Shapes: grads {name: (B, *shape)} of params {name: shape} -> {name: shape}.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.element import Number
from pipeline.errors import StageError
from pipeline.stage import Stage
from pipeline.update.rule import Params, positive


def clip_per_example(limit: Number) -> Stage:
    """Clip each sample's gradient to a norm of at most `limit` over all parameters, and average.

    Raises StageError unless gradients are per sample.

    >>> grads = {"w": torch.tensor([[3.0, 4.0], [0.0, 0.5]])}
    >>> clipped = clip_per_example(1.0)({"w": torch.zeros(2)}, grads, limit=torch.tensor(1.0))
    >>> [round(x, 3) for x in clipped["w"].tolist()]
    [0.3, 0.65]
    """
    positive("update.clip_per_example", limit=limit)

    def function(params: Params, grads: Params, limit: Tensor) -> Params:
        total = _clipped("update.clip_per_example", params, grads, limit)
        return {k: g / len(grads[k]) for k, g in total.items()}

    return Stage("update.clip_per_example", function, writes=("grads",), hyper={"limit": limit})


def private(limit: Number, noise: Number) -> Stage:
    """The mechanism of DP-SGD: clip each sample's gradient to a norm of at most `limit`, sum, add normal noise of
    standard deviation `noise * limit`, divide by B.

    This alone is no privacy guarantee. Privacy also depends on the number of steps and on the sampling of batches:
    `load` shuffles, while the accounting of the paper assumes independent sampling. The noise is a function of
    (seed, step): anyone who knows the seed can subtract it, and the generator is not cryptographic. Raises StageError
    unless gradients are per sample.

    Source: Abadi et al., Deep learning with differential privacy (2016), algorithm 1.
    """
    positive("update.private", limit=limit, noise=noise)

    def function(params: Params, grads: Params, limit: Tensor, noise: Tensor) -> Params:
        total, deviation = _clipped("update.private", params, grads, limit), noise * limit
        return {k: (g + torch.randn_like(g) * deviation.to(g.dtype)) / len(grads[k]) for k, g in total.items()}

    return Stage("update.private", function, writes=("grads",), hyper={"limit": limit, "noise": noise}, draws=True)


def mean_gradients() -> Stage:
    """Mean of the per-sample gradients: the batch's gradient, if all samples have equal weight in the loss.

    >>> mean_gradients()({"w": torch.zeros(1)}, {"w": torch.tensor([[1.0], [3.0]])})
    {'w': tensor([2.])}
    """

    def function(params: Params, grads: Params) -> Params:
        _check("update.mean_gradients", params, grads)
        return {k: g.mean(0) for k, g in grads.items()}

    return Stage("update.mean_gradients", function, writes=("grads",))


def _clipped(stage: str, params: Params, grads: Params, limit: Tensor) -> Params:
    """Sum of the clipped gradients of all samples."""
    _check(stage, params, grads)
    norms = [torch.linalg.vector_norm(g.unsqueeze(-1).flatten(1), dim=1) for g in grads.values()]
    norm = torch.linalg.vector_norm(torch.stack(norms), dim=0)
    scale = (limit / torch.where(norm > 0, norm, 1.0)).clamp(max=1.0)
    return {k: torch.tensordot(scale.to(g.dtype), g, 1) for k, g in grads.items()}


def _check(stage: str, params: Params, grads: Params) -> None:
    for k, g in grads.items():
        if g.shape[1:] != params[k].shape or g.ndim == 0:
            raise StageError(
                stage,
                f"takes a gradient for each sample, (B, ...), but {k!r} has one of {tuple(g.shape)} for the batch; "
                "write backward.gradients(per_example=True)",
            )
