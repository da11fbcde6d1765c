"""Loss: one number to make small. Each writes the batch's mean and its weight, the count that the mean was taken over.

The weight makes means over unequal batches exact: an epoch's loss is sum(loss * weight) / sum(weight).
A loss of your own is a plain function: `@stage(writes="loss")`, or `loss.function(f)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from pipeline.errors import DataError, WiringError
from pipeline.stage import Stage, fitted, stage

WRITES = ("loss", "loss.weight")


@frozen(eq=False, repr=False)
class Loss(Stage):
    """A loss that knows what outputs mean, and so how those of several models are one: (M, B, ...) -> (B, ...)."""

    join: Callable[[Tensor], Tensor] = field(kw_only=True)
    vote: Callable[[Tensor], Tensor] | None = field(default=None, kw_only=True)
    """Where outputs tell classes: outputs whose largest is the class that most models tell."""


def mean_probabilities(outputs: Tensor, dim: int = 1) -> Tensor:
    """Logits of classes (M, B, C, ...) -> (B, C, ...), whose softmax over `dim` is the mean of that of each.

    >>> mean_probabilities(torch.tensor([[[0.9, 0.1]], [[0.5, 0.5]]]).log()).softmax(1)
    tensor([[0.7000, 0.3000]])
    """
    return outputs.log_softmax(_within(dim)).logsumexp(0) - math.log(len(outputs))


def mean_chances(outputs: Tensor) -> Tensor:
    """Logits (M, B, ...) -> (B, ...), whose sigmoid is the mean of that of each."""
    return F.logsigmoid(outputs).logsumexp(0) - F.logsigmoid(-outputs).logsumexp(0)


def mean_outputs(outputs: Tensor) -> Tensor:
    """Values (M, B, ...) -> (B, ...), their mean."""
    return outputs.mean(0)


def votes(outputs: Tensor, dim: int = 1) -> Tensor:
    """Logits of classes (M, B, C, ...) -> (B, C, ...), for how many models each class is the likeliest. Of as many
    votes, those for what is likelier by the mean probabilities count as more, by less than half of one.

    >>> votes(torch.tensor([[[0.9, 0.1]], [[0.4, 0.6]], [[0.4, 0.6]]]).log()).round()
    tensor([[1., 2.]])
    """
    kinds = torch.arange(outputs.shape[_within(dim)], device=outputs.device)
    chosen = outputs.movedim(_within(dim), -1).argmax(-1, keepdim=True) == kinds
    share = mean_probabilities(outputs, dim).softmax(dim)
    return chosen.sum(0).movedim(-1, dim).to(share.dtype) + 0.49 * share


def _within(dim: int) -> int:
    """A dimension of outputs where those of several models are stacked."""
    return dim if dim < 0 else dim + 1


def _stage(name: str, function: Callable[..., Any], join: Callable[[Tensor], Tensor], **fields: Any) -> Loss:
    return Loss(f"loss.{name}", function, writes=WRITES, join=join, **fields)


def cross_entropy(
    *, smoothing: float = 0.0, weight: Tensor | None = None, ignore_index: int = -100, dim: int = 1
) -> Loss:
    """Cross entropy of logits and class indices, as torch.nn.CrossEntropyLoss.

    Shapes: outputs (B, C, ...) float, targets (B, ...) integers -> (); for (B, T, C), as of transformers, pass dim=-1.
    `smoothing` is the label smoothing, `weight` (C,) weighs the classes, targets equal to `ignore_index` do not count.

    >>> value, count = cross_entropy()(torch.zeros(4, 10), torch.arange(4))
    >>> round(value.item(), 4), count.item()
    (2.3026, 4.0)
    """

    def function(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        _indices(outputs, targets, dim)
        targets = targets.long()
        logits = outputs.movedim(dim, 1)
        per_class = None if weight is None else weight.to(logits)
        counted = targets != ignore_index
        if weight is None:
            total = counted.sum().to(torch.float64)
        else:
            assert per_class is not None
            total = (per_class[torch.where(counted, targets, 0)] * counted).sum().to(torch.float64)
        value = F.cross_entropy(
            logits, targets, per_class, ignore_index=ignore_index, label_smoothing=smoothing, reduction="sum"
        )
        # Where nothing counts the loss is 0, not torch's 0 / 0.
        return value / torch.where(total > 0, total, 1.0).to(value.dtype), total

    def check(outputs: Tensor, targets: Tensor) -> None:
        _indices(outputs, targets, dim)
        classes, targets = outputs.shape[dim], targets.long()
        wrong = (targets < 0) | (targets >= classes)
        wrong &= targets != ignore_index
        if bool(wrong.any()):
            at = wrong.nonzero()[0].tolist()
            raise DataError(
                f"label {targets[tuple(at)].item()} in sample {at[0]} is outside the {classes} classes that the model "
                f"gives (0 to {classes - 1}); give the model more outputs or correct the labels"
            )

    join, vote = partial(mean_probabilities, dim=dim), partial(votes, dim=dim)
    return _stage("cross_entropy", function, join, vote=vote, check=check)


def _indices(outputs: Tensor, targets: Tensor, dim: int) -> None:
    """Raise DataError for targets that are no class indices."""
    if outputs.ndim < 2:
        raise DataError(f"outputs are {tuple(outputs.shape)}, but loss.cross_entropy() takes logits (B, C, ...)")
    has = f"targets are {tuple(targets.shape)} {targets.dtype}, but loss.cross_entropy() takes class indices (B, ...)"
    if targets.ndim == outputs.ndim and outputs.shape[dim] > 1 and targets.shape[dim] == outputs.shape[dim]:
        raise DataError(
            f"{has}: of one-hot rows take targets.argmax({dim}); for probabilities write "
            "loss.function(torch.nn.CrossEntropyLoss())"
        )
    if targets.is_floating_point():
        raise DataError(f"{has}: take targets.long() if they are, or use loss.mse() for values")
    if targets.ndim == outputs.ndim and targets.shape[dim] == 1:
        raise DataError(f"{has}: take targets.squeeze({dim})")


def _elementwise(
    name: str, per_element: Callable[..., Tensor], join: Callable[[Tensor], Tensor] = mean_outputs, **hyper: float
) -> Loss:
    def mean(outputs: Tensor, targets: Tensor, **numbers: Tensor) -> tuple[Tensor, Tensor]:
        values = per_element(fitted(f"loss.{name}", outputs, targets), targets.to(outputs.dtype), **numbers)
        return values.mean(), torch.full((), values.numel(), dtype=torch.float64, device=values.device)

    if not hyper:
        return _stage(name, lambda outputs, targets: mean(outputs, targets), join)
    return _stage(name, lambda outputs, targets, delta: mean(outputs, targets, delta=delta), join, hyper=hyper)


def mse() -> Loss:
    """Mean squared error. Shapes: outputs and targets alike, or (B, 1) and (B,) -> ()."""
    return _elementwise("mse", lambda x, y: (x - y) ** 2)


def l1() -> Loss:
    """Mean absolute error. Shapes: outputs and targets alike, or (B, 1) and (B,) -> ()."""
    return _elementwise("l1", lambda x, y: (x - y).abs())


def huber(delta: float = 1.0) -> Loss:
    """Squared within `delta`, linear beyond (Huber, 1964), as torch.nn.HuberLoss. Shapes as mse.

    >>> huber(1.0)(torch.tensor([3.0]), torch.tensor([0.0]), delta=1.0)[0]
    tensor(2.5000)
    """

    def per_element(x: Tensor, y: Tensor, delta: Any) -> Tensor:
        error = (x - y).abs()
        return torch.where(error <= delta, 0.5 * error**2, delta * (error - 0.5 * delta))

    return _elementwise("huber", per_element, delta=delta)


def binary_cross_entropy() -> Loss:
    """Binary cross entropy of logits, as torch.nn.BCEWithLogitsLoss. Shapes as mse; targets in [0, 1] of any dtype."""

    def per_element(x: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(x, y, reduction="none")

    return _elementwise("binary_cross_entropy", per_element, mean_chances)


def function(f: Callable[..., Tensor], name: str | None = None) -> Stage:
    """Any function of named values that returns a mean over the batch, 0-d; or a loss of torch.nn, of outputs and
    targets.

    >>> function(lambda outputs, inputs: ((outputs - inputs) ** 2).mean(), "loss.reconstruction").reads
    ('outputs', 'inputs')
    >>> function(torch.nn.CrossEntropyLoss(label_smoothing=0.1)).name
    'loss.CrossEntropyLoss'
    """
    if isinstance(f, type):
        raise WiringError(f"loss.function() takes a function or a module, not a class: write {f.__name__}()")
    if isinstance(f, nn.Module):
        criterion, name = f, name or f"loss.{type(f).__name__}"

        if any(True for _ in criterion.parameters()):
            raise WiringError(f"{name} has parameters, which State holds: write forward.model(..., outputs='loss')")

        def f(outputs: Tensor, targets: Tensor) -> Tensor:
            # Copies beside the outputs, as of cross_entropy's weight: a stage holds them, so place does not know them.
            held = {name: b.clone().to(outputs.device) for name, b in criterion.named_buffers()}
            value: Tensor = functional_call(criterion, held, (outputs, targets))
            return value

    made: Stage = stage(writes="loss", name=name or getattr(f, "__name__", "loss.function"))(f)
    return made
