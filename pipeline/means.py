"""Means: the count that each loss of torch averages over, as weight for exact means over unequal batches."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def _classes(target: Tensor, weight: Tensor | None = None, ignore_index: int = -100, **_: Any) -> Any:
    """Weights of the targets that are not ignored; for probabilities, their number of rows."""
    if target.is_floating_point():
        return target.numel() // target.shape[min(1, target.ndim - 1)]
    counted = target != ignore_index
    return counted if weight is None else weight[torch.where(counted, target, 0).long()] * counted


def _elements(input: Tensor, target: Tensor, **_: Any) -> Any:
    return torch.broadcast_shapes(input.shape, target.shape).numel()  # type: ignore[no-untyped-call]  # torch's


LOSSES: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys((F.cross_entropy, F.nll_loss, getattr(F, "linear_cross_entropy", None)), _classes),
    **dict.fromkeys((F.mse_loss, F.l1_loss), lambda weight, **given: _elements(**given) if weight is None else weight),
    **dict.fromkeys((F.smooth_l1_loss, F.huber_loss, F.binary_cross_entropy, F.binary_cross_entropy_with_logits,
                     F.kl_div, F.poisson_nll_loss, F.gaussian_nll_loss, F.soft_margin_loss, F.hinge_embedding_loss),
                    _elements),
    **dict.fromkeys((F.multi_margin_loss, F.multilabel_margin_loss, F.multilabel_soft_margin_loss,
                     F.triplet_margin_loss, F.triplet_margin_with_distance_loss),
                    lambda **given: next(iter(given.values())).shape[:-1].numel()),
    **dict.fromkeys((F.cosine_embedding_loss, F.margin_ranking_loss), lambda target, **_: target.numel()),
    F.ctc_loss: lambda target_lengths, **_: len(target_lengths),
}  # fmt: skip


def number(count: Any, like: Tensor | None = None) -> Tensor:
    """A weight, 0-d float64: a count, or the sum of a mask or of weights."""
    if isinstance(count, Tensor):
        return count.detach().sum().to(torch.float64)
    return torch.full((), count, dtype=torch.float64, device=None if like is None else like.device)


def weight(loss: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The count that a call of a loss of torch averages over, 0-d float64; None for a sum.

    >>> weight(F.cross_entropy, (torch.zeros(3, 2), torch.tensor([0, 1, -100])), {})
    tensor(2., dtype=torch.float64)
    """
    bound = inspect.signature(loss).bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    first = next(iter(given.values()))
    if given.get("size_average") is not None or given.get("reduce") is not None:
        return None
    if given["reduction"] == "batchmean":
        return number(len(first), first)
    return number(LOSSES[loss](**given), first) if given["reduction"] == "mean" else None


class Calls(TorchFunctionMode):
    """Mode in which results of torch's losses record their calls, in any code."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in LOSSES and isinstance(result, Tensor):
            setattr(result, "call_of_loss", (func, args, kwargs or {}))  # noqa: B010  # no attribute of a Tensor
        return result


def weighed(written: Mapping[str, Any]) -> dict[str, Any]:
    """Named values, with `<name>.weight` for each that a loss of torch returned."""
    calls = {f"{name}.weight": x.call_of_loss for name, x in written.items() if hasattr(x, "call_of_loss")}
    weights = {name: weight(*call) for name, call in calls.items() if name not in written}
    return {**written, **{name: x for name, x in weights.items() if x is not None}}
