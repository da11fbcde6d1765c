"""Metrics of rankings: areas under curves, and a threshold, from counts of scores in bins.

Scores are logits. They are counted in bins of equal width in asinh(logit) from -FAR to FAR: for two classes, 0.002
wide around 0 and 0.2 % of the logit far from it, so that overconfident models have a resolution too. The results equal
scikit-learn's for scores rounded to their bins. If a bin holds the share p of the positives and n of the negatives, the
error of rounding is

- for the area under the ROC curve, by at most sum(p * n) / 2 over bins: only the order of pairs inside a bin is lost,
  and they count one half (Hanley and McNeil, The meaning and use of the area under a receiver operating characteristic
  curve, 1982: P(score+ > score-) + P(equal) / 2);
- for average precision, by at most sum(p * (best - worst)) over bins, with the best and the worst precision that a
  bin's positives can have, if its negatives come after or before them all.

Measured over 30 draws of 10,000 scores from normal distributions of deviation 1, 1 % of them positive and higher by
1.5: off by at most 0.00004 and 0.0024; with half of them positive, 0.00001 and 0.0002.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.evaluate.metric import FLOAT, INT, metric
from pipeline.shapes import by_label
from pipeline.stage import Stage
from pipeline.tree import Tree

LEAST, MOST = 4096, 16384
"""Bins of each class: MOST over all classes together, but at least LEAST for each: 32 KiB of counts, twice."""
FAR = math.asinh(1e6)
"""Logits beyond this, of either sign, share the last bins."""
GOALS = ("f1", "balanced-accuracy")
"""What a threshold may be chosen by."""


def roc_auc(classes: int, *, several: bool = False) -> Stage:
    """The area under the ROC curve, as `roc auc`: for two classes, class 1 against class 0; for more, or for several
    labels, the mean over each against the rest. Classes without positives, or without negatives, don't count.

    Outputs (B, C) float; targets (B,) int64, or, for several labels, (B, C) of 0 and 1. A constant score has 0.5.
    The module says how far it may be from sklearn's roc_auc_score (multi_class="ovr").

    >>> metric = roc_auc(2)
    >>> outputs, targets = torch.tensor([[0.0, -1.0], [0.0, 1.0], [0.0, 2.0]]), torch.tensor([0, 1, 0])
    >>> metric.finish(metric(outputs, targets))["roc auc"]
    tensor(0.5000, dtype=torch.float64)
    """

    def finish(positives: Tensor, negatives: Tensor) -> Tensor:
        below = negatives.cumsum(-1) - negatives / 2
        return (positives * below).sum(-1) / (positives.sum(-1) * negatives.sum(-1)).clamp(min=1)

    return _ranked("evaluate.roc_auc", "roc auc", classes, several, finish, need_negatives=True)


def average_precision(classes: int, *, several: bool = False) -> Stage:
    """Average precision, the sum over thresholds of (increase of recall) * precision, as `average precision`: of two
    classes, class 1 against class 0; for more, or for several labels, the mean over each against the rest.

    Shapes as roc_auc. A constant score has the share of the positives. The module says how far it may be from
    sklearn's average_precision_score.

    >>> metric = average_precision(2)
    >>> outputs, targets = torch.tensor([[0.0, -1.0], [0.0, 1.0], [0.0, 2.0]]), torch.tensor([0, 1, 0])
    >>> metric.finish(metric(outputs, targets))["average precision"]
    tensor(0.5000, dtype=torch.float64)
    """

    def finish(positives: Tensor, negatives: Tensor) -> Tensor:
        true, false = _above(positives), _above(negatives)
        precision = true / (true + false).clamp(min=1)
        return (positives * precision).sum(-1) / positives.sum(-1).clamp(min=1)

    return _ranked("evaluate.average_precision", "average precision", classes, several, finish)


def threshold(by: str = "f1") -> Stage:
    """The logit of class 1 above which a binary task predicts it best, by its F1 or by balanced accuracy, as
    `threshold`; and `at threshold` and `at 0`, its value there and at logit 0, which is probability 0.5.

    Outputs (B, 2), targets (B,) int64. One of the borders between bins; of several equal ones, the middle one. The
    values are exact. Raises ConfigError for another `by`.

    >>> metric = threshold("f1")
    >>> found = metric.finish(metric(torch.tensor([[0.0, -3.0], [0.0, -1.0]]), torch.tensor([0, 1])))
    >>> round(found["threshold"].item()), found["at threshold"].item(), found["at 0"].item()
    (-2, 1.0, 0.0)
    """
    if by not in GOALS:
        raise ConfigError(f"evaluate.threshold: by={by!r} is none of {', '.join(GOALS)}")

    bins = bins_of(1)

    def finish(sums: Any) -> dict[str, Any]:
        positives, negatives = (sums[k].to(FLOAT).sum(-2) for k in ("positives", "negatives"))  # of the one row
        true, false = _above(positives), _above(negatives)  # of a threshold at the lower border of each bin
        of, against = (x.sum(-1, keepdim=True).clamp(min=1) for x in (positives, negatives))
        value = 2 * true / (true + false + of) if by == "f1" else (true / of + 1 - false / against) / 2
        best = (value == value.amax(-1, keepdim=True)).to(INT)
        first = best.argmax(-1, keepdim=True)
        at = torch.arange(bins, device=best.device)
        worse = (1 - best) * (at > first)
        run = best * (worse.cumsum(-1) == 0)  # the first stretch of equal borders
        middle = first + run.sum(-1, keepdim=True) // 2
        border = torch.sinh((middle.squeeze(-1).to(FLOAT) / bins * 2 - 1) * FAR)
        return {"threshold": border, "at threshold": value.gather(-1, first).squeeze(-1),
                "at 0": (value * (at == bins // 2)).sum(-1)}  # fmt: skip

    name = "evaluate.threshold"
    return metric(name, _measured(name, 2, False), finish, _sums(1))


def bins_of(rows: int) -> int:
    """Bins of each of some classes."""
    return max(LEAST, MOST // rows)


def _above(counts: Tensor) -> Tensor:
    """Counts in each bin and all above it."""
    return counts.flip(-1).cumsum(-1).flip(-1)


def _ranked(
    name: str, short: str, classes: int, several: bool, of: Callable[[Tensor, Tensor], Tensor],
    need_negatives: bool = False,
) -> Stage:  # fmt: skip
    if classes < 2 and not several:
        raise ConfigError(f"{name}: classes={classes} is below 2")

    def finish(sums: Any) -> dict[str, Any]:
        positives, negatives = sums["positives"].to(FLOAT), sums["negatives"].to(FLOAT)
        counted = positives.sum(-1) > 0
        if need_negatives:
            counted &= negatives.sum(-1) > 0
        each = torch.where(counted, of(positives, negatives), 0.0)
        return {short: each.sum(-1) / counted.sum(-1)}  # NaN if none counts: it is undefined

    rows = 1 if classes == 2 and not several else classes
    return metric(name, _measured(name, classes, several), finish, _sums(rows), better="high")


def _sums(rows: int) -> dict[str, Any]:
    return dict.fromkeys(("positives", "negatives"), (INT, (rows, bins_of(rows))))


def _measured(name: str, classes: int, several: bool) -> Callable[[Tensor, Tensor], Tree]:
    """Counts of the positives' and of the negatives' scores in bins, (C, bins), or (1, bins) for class 1 of two."""

    def measure(outputs: Tensor, targets: Tensor) -> Tree:
        if several:
            scores, targets, _ = by_label(name, outputs, targets, classes)
            true = targets > 0.5
        elif outputs.ndim != 2 or outputs.shape[1] != classes:
            raise ConfigError(f"{name} takes outputs (B, {classes}), not {tuple(outputs.shape)}")
        elif classes == 2:
            scores = outputs[:, 1:] - outputs[:, :1]
            true = (targets == 1).reshape(-1, 1)
        else:
            scores = _logits(outputs)
            true = targets.reshape(-1, 1) == torch.arange(classes, device=targets.device)
        rows = scores.shape[1]
        bins = bins_of(rows)
        at = ((torch.asinh(scores.to(FLOAT)) / FAR + 1) * (bins / 2)).nan_to_num(0.0)
        bin = at.clamp(0, bins - 1).to(INT) + torch.arange(rows, device=outputs.device) * bins
        counted = (targets >= 0).reshape(len(targets), -1)  # an ignored target is below 0
        empty = torch.zeros(rows * bins, dtype=INT, device=outputs.device)

        def counts(which: Tensor) -> Tensor:
            return empty.scatter_add(0, bin.flatten(), (which & counted).to(INT).flatten()).reshape(rows, bins)

        return {"positives": counts(true), "negatives": counts(~true)}

    return measure


def _logits(outputs: Tensor) -> Tensor:
    """Log p - log(1 - p) of each class's probability, (B, C) float64, without cancellation if p is near 1."""
    z = outputs.to(FLOAT)
    share = z.log_softmax(1)
    largest = z.argmax(1, keepdim=True) == torch.arange(z.shape[1], device=z.device)
    others = z.masked_fill(largest, -torch.inf).logsumexp(1, keepdim=True) - z.logsumexp(1, keepdim=True)
    return share - torch.where(largest, others, torch.log1p(-share.exp()))
