"""Losses of models whose outputs in training are of several members."""

from __future__ import annotations

from functools import wraps
from typing import Any

from attrs import evolve
from torch import Tensor

from pipeline.loss.joint import Loss
from pipeline.stage import Stage, stage

EACH = "each"
"""The members' outputs in training, (B, M, ...)."""


def of_members(criterion: Loss) -> list[Stage]:
    """In training, the mean of the members' losses of outputs (B, M, ...), which are joined for the metrics; in
    evaluation, the loss of outputs that the model has joined, (B, ...). A loss of joined outputs would let members make
    up for each other, and learn less each.

    >>> import torch
    >>> from pipeline import loss
    >>> join, each, joined = of_members(loss.mse())
    >>> each(torch.tensor([[[1.0], [3.0]]]), torch.tensor([[0.0]]))[0], each.reads
    (tensor(5.), ('each', 'targets'))
    """

    @wraps(criterion.function)
    def each(outputs: Tensor, targets: Tensor, **others: Any) -> Any:
        return criterion.function(outputs.flatten(0, 1), targets.repeat_interleave(outputs.shape[1], 0), **others)

    def join(outputs: Tensor) -> tuple[Tensor, Tensor]:
        return outputs, criterion.join(outputs.movedim(1, 0))

    apart: Stage = stage(writes=(EACH, "outputs"), name="loss.join", when="train")(join)
    own = evolve(criterion, name=f"{criterion.name}.members", function=each, when="train", check=None)
    return [apart, own.rename(outputs=EACH), criterion.only("evaluation")]
