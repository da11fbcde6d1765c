"""Cross entropy."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline import means
from pipeline.errors import DataError
from pipeline.loss.joint import WRITES, Loss, full, mean_probabilities, votes
from pipeline.shapes import by_class


def cross_entropy(
    *, smoothing: float = 0.0, weight: Tensor | None = None, ignore_index: int = -100, dim: int | None = None
) -> Loss:
    """Cross entropy of logits and class indices or probabilities, as torch.nn.CrossEntropyLoss.

    Shapes: outputs (B, C, ...) or (B, ..., C) float, targets (B, ...) integers, or floats like the outputs -> (). `dim`
    is the class dimension, needed only if shapes are ambiguous, as (B, C, C) and (B, C). `smoothing` is the label
    smoothing, `weight` (C,) the class weights; targets equal to `ignore_index` don't count.

    >>> value, count = cross_entropy()(torch.zeros(4, 10), torch.arange(4))
    >>> round(value.item(), 4), count.item()
    (2.3026, 4.0)
    """

    def function(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits, goals = _by_class(full(outputs), targets, dim)
        given = logits, goals, None if weight is None else weight.to(logits)
        total = means.weight(F.cross_entropy, given, {"ignore_index": ignore_index})
        value = F.cross_entropy(*given, ignore_index=ignore_index, label_smoothing=smoothing, reduction="sum")
        # If nothing counts the loss is 0, not torch's 0 / 0.
        return value / torch.where(total > 0, total, 1.0).to(value.dtype), total

    def check(outputs: Tensor, targets: Tensor) -> None:
        logits, goals = _by_class(outputs, targets, dim)
        classes = logits.shape[1]
        wrong = ((goals < 0) | (goals >= classes)) & (goals != ignore_index)
        if not goals.is_floating_point() and bool(wrong.any()):
            at = wrong.nonzero()[0].tolist()
            label = f"label {goals[tuple(at)].item()} in sample {at[0]}"
            raise DataError(
                f"{label} is outside the {classes} classes that the model gives (0 to {classes - 1}); give it more "
                "outputs or correct the labels"
            )

    join, vote = partial(mean_probabilities, dim=dim), partial(votes, dim=dim)
    return Loss("loss.cross_entropy", function, writes=WRITES, join=join, vote=vote, check=check)


def _by_class(outputs: Tensor, targets: Tensor, dim: int | None) -> tuple[Tensor, Tensor]:
    """Logits (B, C, ...) and class indices (B, ...) or probabilities (B, C, ...). Raises DataError for others."""
    if outputs.ndim < 2:
        raise DataError(f"outputs are {tuple(outputs.shape)}, but loss.cross_entropy() takes logits (B, C, ...)")
    logits, goals = by_class("loss.cross_entropy", outputs, targets, dim)
    wrong = f"targets are {tuple(targets.shape)} {targets.dtype}, but loss.cross_entropy() takes class indices (B, ...)"
    if targets.is_floating_point():
        if goals.shape != logits.shape:
            raise DataError(f"{wrong}: take targets.long() if they are, or use loss.mse() for values")
        return logits, goals
    at = 1 if dim is None else dim
    if targets.ndim == outputs.ndim and targets.shape[at] == 1:
        raise DataError(f"{wrong}: take targets.squeeze({at})")
    if targets.shape == outputs.shape:
        raise DataError(f"{wrong}: of one-hot rows take targets.argmax({at}), or targets.float()")
    return logits, targets.long()
