"""From a gradient for each sample, as `backward.gradients(per_example=True)` takes them, to one for the batch.

Shapes: grads {name: (B, *shape)} of params {name: shape} -> {name: shape}.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.errors import StageError
from pipeline.stage import Number, Stage
from pipeline.update.rule import Params, positive


def clip_per_example(limit: Number) -> Stage:
    """Each sample's gradient scaled down to a norm of at most `limit` over all parameters, and the mean of these.

    Raises StageError for gradients that are not of each sample.

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
    """Each sample's gradient clipped to a norm of at most `limit`, their sum with normal noise of the deviation
    `noise * limit` added to every entry, and that divided by B: the mechanism of DP-SGD.

    That is all: it makes no claim of privacy. What a run gives away also depends on how batches are drawn (`load` has a
    shuffle, where the accounting of the paper has samples drawn independently) and on how many steps there are, which
    is the user's to account for. The noise is a function of (seed, step), so whoever knows the seed can take it away,
    and its generator is made for training, not for secrets. Raises StageError for gradients that are not of each
    sample.

    Source: Abadi et al., Deep learning with differential privacy (2016), algorithm 1.
    """
    positive("update.private", limit=limit, noise=noise)

    def function(params: Params, grads: Params, limit: Tensor, noise: Tensor) -> Params:
        total, deviation = _clipped("update.private", params, grads, limit), noise * limit
        return {k: (g + torch.randn_like(g) * deviation.to(g.dtype)) / len(grads[k]) for k, g in total.items()}

    return Stage("update.private", function, writes=("grads",), hyper={"limit": limit, "noise": noise}, draws=True)


def mean_gradients() -> Stage:
    """The mean over the samples, each counting alike; for looking at them in an ordinary run.

    It is the gradient of the batch where each sample has as much weight in the loss as any other.

    >>> mean_gradients()({"w": torch.zeros(1)}, {"w": torch.tensor([[1.0], [3.0]])})
    {'w': tensor([2.])}
    """

    def function(params: Params, grads: Params) -> Params:
        _check("update.mean_gradients", params, grads)
        return {k: g.mean(0) for k, g in grads.items()}

    return Stage("update.mean_gradients", function, writes=("grads",))


def _clipped(stage: str, params: Params, grads: Params, limit: Tensor) -> Params:
    """The sum over the samples of their gradients, each clipped."""
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
                f"takes a gradient for each sample, (B, ...), but that of {k!r} is {tuple(g.shape)} as the parameter; "
                "write backward.gradients(per_example=True)",
            )
