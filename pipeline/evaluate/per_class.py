"""Metrics of classes that weigh each class alike, whatever its share: from counts for each class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.evaluate.metric import FLOAT, INT, metric
from pipeline.shapes import by_class, by_label
from pipeline.stage import Stage
from pipeline.tree import Tree

COUNTS = ("right", "predicted", "true")


def balanced_accuracy(classes: int) -> Stage:
    """The mean over classes of the share of their samples that are predicted right (recall), as `balanced accuracy`.

    Outputs (B, C) float, targets (B,) int64 or probabilities (B, C); classes without samples don't count. A constant
    prediction has 1 / C, whatever the shares of the classes.

    Source: Brodersen et al., The balanced accuracy and its posterior distribution (2010); sklearn's
    balanced_accuracy_score.

    >>> metric = balanced_accuracy(2)
    >>> always = torch.tensor([[1.0, 0.0]]).expand(4, 2)
    >>> metric.finish(metric(always, torch.tensor([0, 0, 0, 1])))["balanced accuracy"]
    tensor(0.5000, dtype=torch.float64)
    """

    def finish(sums: Any) -> dict[str, Any]:
        right, true = sums["right"].to(FLOAT), sums["true"]
        return {"balanced accuracy": _mean(right / true.clamp(min=1), true > 0)}

    return counting("evaluate.balanced_accuracy", classes, False, finish)


def f1(classes: int, *, several: bool = False) -> Stage:
    """F1 = 2 * right / (true + predicted), as `f1 score`: for two classes, F1 of class 1; for more, or for
    several labels, the mean over all that occur or are predicted.

    Outputs (B, C) float, targets (B,) int64 or (B, C). Source: sklearn's f1_score, average "binary" and "macro".

    >>> metric = f1(2)
    >>> metric.finish(metric(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor([1, 0])))["f1 score"]
    tensor(0.6667, dtype=torch.float64)
    """

    def finish(sums: Any) -> dict[str, Any]:
        both = sums["true"] + sums["predicted"]
        second = torch.arange(classes, device=both.device) == 1
        counted = second if classes == 2 and not several else both > 0
        return {"f1 score": _mean(2 * sums["right"].to(FLOAT) / both.clamp(min=1), counted)}

    return counting("evaluate.f1", classes, several, finish)


def counts(classes: int) -> Stage:
    """Samples of each class (C,): `true`, `predicted`, and `right`, both at once."""
    return counting("evaluate.counts", classes, False, dict, better=None)


def _mean(each: Tensor, counted: Tensor) -> Tensor:
    """Mean of the counted values over the last dimension."""
    return (each * counted).sum(-1) / counted.sum(-1).clamp(min=1)


def counting(name: str, classes: int, several: bool, finish: Any, better: Any = "high") -> Stage:
    """A metric of the counts of each class, or of each of several labels."""

    def measure(outputs: Tensor, targets: Tensor) -> Tree:
        if several:
            logits, goals, counted = by_label(name, outputs, targets, classes)
            guess, true = (logits > 0) & counted, goals > 0.5
        else:
            logits, goals = by_class(name, outputs, targets, None, classes)
            goals = goals.argmax(1) if goals.shape == logits.shape else goals
            kinds = torch.arange(classes, device=targets.device)
            guess, true = (x.reshape(-1, 1) == kinds for x in (logits.argmax(1), goals))
            guess = guess & ((goals >= 0) & (goals < classes)).reshape(-1, 1)  # others are ignored
        return {"right": (guess & true).sum(0), "predicted": guess.sum(0), "true": true.sum(0)}

    return metric(name, measure, finish, dict.fromkeys(COUNTS, (INT, (classes,))), better=better)
