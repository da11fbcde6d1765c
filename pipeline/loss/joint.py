"""Loss: a stage that writes a loss, and ways to combine the outputs of several models for it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from attrs import field, frozen
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import StageError
from pipeline.stage import Stage

WRITES = ("loss", "loss.weight")


@frozen(eq=False, repr=False)
class Loss(Stage):
    """A loss stage. `join` combines the outputs of M models, (M, B, ...) -> (B, ...), by their meaning for the loss."""

    join: Callable[[Tensor], Tensor] = field(kw_only=True)
    vote: Callable[[Tensor], Tensor] | None = field(default=None, kw_only=True)
    """For classes: outputs whose maximum is the class that most models predict."""


def full(x: Tensor) -> Tensor:
    """At least float32, in which autocast computes losses too."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def mean_probabilities(outputs: Tensor, dim: int | None = 1) -> Tensor:
    """Class logits (M, B, C, ...) -> (B, C, ...), whose softmax over `dim` is the mean softmax of the models.

    >>> mean_probabilities(torch.tensor([[[0.9, 0.1]], [[0.5, 0.5]]]).log()).softmax(1)
    tensor([[0.7000, 0.3000]])
    """
    return outputs.log_softmax(_within(outputs, dim)).logsumexp(0) - math.log(len(outputs))


def mean_chances(outputs: Tensor) -> Tensor:
    """Logits (M, B, ...) -> (B, ...), whose sigmoid is the mean sigmoid of the models."""
    return F.logsigmoid(outputs).logsumexp(0) - F.logsigmoid(-outputs).logsumexp(0)


def mean_rates(outputs: Tensor) -> Tensor:
    """Logarithms of means (M, B, ...) -> (B, ...), the logarithm of the models' mean.

    >>> mean_rates(torch.tensor([[1.0], [3.0]]).log()).exp().round()
    tensor([2.])
    """
    return outputs.logsumexp(0) - math.log(len(outputs))


def mean_outputs(outputs: Tensor) -> Tensor:
    """Values (M, B, ...) -> their mean (B, ...)."""
    return outputs.mean(0)


def votes(outputs: Tensor, dim: int | None = 1) -> Tensor:
    """Class logits (M, B, C, ...) -> (B, C, ...): votes for each class. Mean probabilities, times 0.49, break ties.

    >>> votes(torch.tensor([[[0.9, 0.1]], [[0.4, 0.6]], [[0.4, 0.6]]]).log()).round()
    tensor([[1., 2.]])
    """
    at = _within(outputs, dim)
    classes = torch.arange(outputs.shape[at], device=outputs.device)
    chosen = outputs.movedim(at, -1).argmax(-1, keepdim=True) == classes
    share = mean_probabilities(outputs, dim).softmax(at)
    return chosen.sum(0).movedim(-1, at).to(share.dtype) + 0.49 * share


def _within(outputs: Tensor, dim: int | None) -> int:
    """The class dimension as a negative index, which holds for stacked and for single outputs."""
    if dim is None and outputs.ndim > 3:
        shape = tuple(outputs.shape[1:])
        raise StageError("loss.cross_entropy", f"can't join outputs {shape}: pass dim=1, or dim=-1 if classes are last")
    dim = 1 if dim is None else dim
    return dim if dim < 0 else dim + 1 - outputs.ndim
