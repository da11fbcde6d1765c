"""Metrics of classes and labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from attrs import evolve
from torch import Tensor
from torch.nn import functional as F

from pipeline import means
from pipeline.direction import Direction
from pipeline.element import counts
from pipeline.errors import DataError
from pipeline.evaluate.metric import FLOAT, INT, metric, ratio
from pipeline.evaluate.per_class import COUNTS, counting
from pipeline.shapes import by_class, by_label, classes_at
from pipeline.stage import Stage
from pipeline.tree import Tree

_SCORES: Mapping[str, Direction] = {"precision": "high", "recall": "high", "f1": "high"}


def accuracy(*, dim: int | None = None, ignore_index: int = -100, several: bool | None = None) -> Stage:
    """The fraction of targets with the largest logit; for several labels (B, L), of logits on the right side of 0.

    Float targets of the outputs' shape are class probabilities if they sum to 1 for every evaluated sample, otherwise
    labels; `several` says which.

    >>> metric, soft = accuracy(), torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    >>> metric.finish(metric(torch.tensor([[2.0, 1.0], [2.0, 1.0]]), soft))["accuracy"]
    tensor(0.5000, dtype=torch.float64)
    """

    def tell(outputs: Tensor, targets: Tensor, at: int | None) -> Tree:
        right, counted = _hits(outputs, targets, at, ignore_index)
        return {"sum": right.sum(), "count": counted.sum()}

    sums = {"sum": INT, "count": INT}
    return _by_class_or_label("evaluate.accuracy", tell, ratio("accuracy"), sums, dim, several, better="high")


def calibration_error(
    bins: int = 15, *, dim: int | None = None, ignore_index: int = -100, several: bool | None = None
) -> Stage:
    """The expected calibration error over `bins` of probability of equal width, reported as `calibration error`:
    sum over bins of n(bin) / n * |accuracy(bin) - mean probability(bin)|.

    Shapes and `several` as accuracy; for several labels, with the probability of the predicted side of 0.

    Source: Guo et al., On calibration of modern neural networks (2017), equation 3.

    >>> metric = calibration_error()
    >>> metric.finish(metric(torch.tensor([[0.8, 0.2], [0.8, 0.2]]).log(), torch.tensor([0, 1])))["calibration error"]
    tensor(0.3000, dtype=torch.float64)
    """
    counts("evaluate.calibration_error: ", bins=bins)

    def tell(outputs: Tensor, targets: Tensor, at: int | None) -> Tree:
        right, counted = _hits(outputs, targets, at, ignore_index)
        confidence = outputs.abs().sigmoid() if at is None else outputs.softmax(at).amax(at)
        edges = torch.arange(1, bins, device=outputs.device) / bins
        bin = (confidence.unsqueeze(-1) > edges).sum(-1, keepdim=True)
        inside = (bin == torch.arange(bins, device=outputs.device)) & counted.unsqueeze(-1)
        inside = inside.flatten(0, -2).to(FLOAT)
        correct, confidence = right.flatten().to(FLOAT), confidence.flatten().to(FLOAT)
        return {"right": correct @ inside, "sure": confidence @ inside, "count": counted.sum()}

    def finish(sums: Any) -> dict[str, Any]:
        return {"calibration error": (sums["right"] - sums["sure"]).abs().sum(-1) / sums["count"]}

    sums = {"right": (FLOAT, (bins,)), "sure": (FLOAT, (bins,)), "count": INT}
    return _by_class_or_label("evaluate.calibration_error", tell, finish, sums, dim, several, better="low")


def log_loss(*, dim: int | None = None, ignore_index: int = -100, several: bool = False) -> Stage:
    """The mean negative log-likelihood of the targets, in nats, as `log loss`: of classes or class probabilities, or,
    for several labels (B, L), of each label. Without class weights and smoothing, which a loss may have.

    >>> metric = log_loss()
    >>> metric.finish(metric(torch.zeros(3, 2), torch.tensor([0, 1, 1])))["log loss"]
    tensor(0.6931, dtype=torch.float64)
    """

    def measure(outputs: Tensor, targets: Tensor) -> Tree:
        if not several:
            return _likelihood("evaluate.log_loss", outputs, targets, dim, ignore_index)
        logits, goals, counted = by_label("evaluate.log_loss", outputs, targets)
        each = F.binary_cross_entropy_with_logits(logits.to(FLOAT), goals.to(FLOAT), reduction="none")
        return {"sum": torch.where(counted, each, 0.0).sum(), "count": counted.sum()}

    return metric("evaluate.log_loss", measure, ratio("log loss"), {"sum": FLOAT, "count": INT}, better="low")


def top_k(k: int = 5, *, dim: int | None = None, ignore_index: int = -100) -> Stage:
    """The fraction of targets, or of likeliest classes, among the k largest logits; reported as `top<k>`."""
    counts("evaluate.top_k: ", k=k)

    def measure(outputs: Tensor, targets: Tensor) -> Tree:
        logits, goals = _logits_and_classes(f"evaluate.top_{k}", outputs, targets, dim)
        right, counted = (logits.topk(k, 1).indices == goals.unsqueeze(1)).any(1), goals != ignore_index
        return {"sum": (right & counted).sum(), "count": counted.sum()}

    return metric(f"evaluate.top_{k}", measure, ratio(f"top{k}"), {"sum": INT, "count": INT}, better="high")


def confusion(classes: int, *, dim: int | None = None) -> Stage:
    """Confusion matrix (C, C), rows true and columns predicted, and each class's precision, recall and F1 (C,).

    0 / 0, for a class without samples or predictions, is 0. Labels outside the classes don't count, and `fit` refuses
    data with such labels. Of target probabilities, the likeliest class is the true one.
    """

    def measure(outputs: Tensor, targets: Tensor) -> Tree:
        logits, goals = _logits_and_classes("evaluate.confusion", outputs, targets, dim, classes)
        # A product of one-hot matrices, which has a static shape and vmaps, unlike bincount. Compared, because
        # F.one_hot reads the labels' values.
        kinds = torch.arange(classes, device=targets.device)
        true = (goals.reshape(-1, 1) == kinds).to(FLOAT)
        guess = (logits.argmax(1).reshape(-1, 1) == kinds).to(FLOAT)
        return {"matrix": (true.T @ guess).to(INT)}

    def check(outputs: Tensor, targets: Tensor) -> None:
        goals = _logits_and_classes("evaluate.confusion", outputs, targets, dim)[1]
        wrong = goals[(goals < 0) | (goals >= classes)]
        if len(wrong):
            raise DataError(f"label {wrong[0].item()} is outside the {classes} classes of evaluate.confusion()")

    def finish(sums: Any) -> dict[str, Any]:
        m = sums["matrix"].to(FLOAT)
        return {"confusion": sums["matrix"], **_scores(m.diagonal(dim1=-2, dim2=-1), m.sum(-2), m.sum(-1))}

    stage = metric("evaluate.confusion", measure, finish, {"matrix": (INT, (classes, classes))}, better=_SCORES)
    return evolve(stage, check=check)


def labels(count: int) -> Stage:
    """Precision, recall and F1 (L,) of each of several labels (B, L), predicted by logits above 0; 0 / 0 is 0."""

    def finish(sums: Any) -> dict[str, Any]:
        return _scores(*(sums[k].to(FLOAT) for k in COUNTS))

    return counting("evaluate.labels", count, True, finish, better=_SCORES)


def perplexity(*, dim: int | None = None, ignore_index: int = -100) -> Stage:
    """Exp of the mean cross entropy of classes or class probabilities."""

    def measure(outputs: Tensor, targets: Tensor) -> Tree:
        return _likelihood("evaluate.perplexity", outputs, targets, dim, ignore_index)

    def finish(sums: Any) -> dict[str, Any]:
        return {"perplexity": torch.exp(sums["sum"] / sums["count"])}

    return metric("evaluate.perplexity", measure, finish, {"sum": FLOAT, "count": INT}, better="low")


def _likelihood(name: str, outputs: Tensor, targets: Tensor, dim: int | None, ignore_index: int) -> Tree:
    """Sums of the cross entropy of classes or class probabilities."""
    given = by_class(name, outputs, targets, dim)
    total = F.cross_entropy(*given, ignore_index=ignore_index, reduction="sum")
    count = means.weight(F.cross_entropy, given, {"ignore_index": ignore_index})
    return {"sum": total.to(FLOAT), "count": count.to(INT)}


def _by_class_or_label(
    name: str, measure_as: Callable[..., Tree], finish: Callable[[Any], dict[str, Any]], sums: Mapping[str, Any],
    dim: int | None, several: bool | None, better: Direction,
) -> Stage:  # fmt: skip
    """A metric of classes or of several labels; if targets may be either, sums both and decides at the end.

    `measure_as(outputs, targets, dim)`: dim is the class dimension, or None for labels.
    """
    both = {**sums, **{f"classes.{k}": v for k, v in sums.items()}, "like": INT}

    def measure(outputs: Tensor, targets: Tensor) -> Tree:
        ambiguous = outputs.shape == targets.shape
        soft = ambiguous and several is False
        if (
            ambiguous and several is None and targets.is_floating_point() and targets.ndim > 1
        ):  # a single class means labels
            soft = (min(targets.shape[1], targets.shape[-1]) if dim is None else targets.shape[dim]) > 1
        hint = ", or several=True if each is a label of its own" if ambiguous else ""
        at = classes_at(name, outputs, targets, dim, hint) if soft or not ambiguous else None
        if at is not None and outputs.shape[at] == 1:
            outputs, at = outputs.squeeze(at), None
        of_classes = of_labels = measure_as(outputs, targets.argmax(at) if soft else targets, at)
        if several is not None:
            return of_labels
        like = of_classes["count"]
        if soft:
            of_labels = measure_as(outputs, targets, None)
            like = like - ((targets.sum(at, dtype=FLOAT) - 1).abs() > 1e-4).sum()
        return {**of_labels, **{f"classes.{k}": x for k, x in of_classes.items()}, "like": like}

    def chosen(s: Any) -> dict[str, Any]:
        of_classes = s["like"] == s["classes.count"]
        shaped = {k: of_classes.reshape(of_classes.shape + (1,) * (s[k].ndim - of_classes.ndim)) for k in sums}
        return finish({k: torch.where(mask, s[f"classes.{k}"], s[k]) for k, mask in shaped.items()})

    return metric(name, measure, *((chosen, both) if several is None else (finish, sums)), better=better)


def _hits(outputs: Tensor, targets: Tensor, at: int | None, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Masks: targets predicted by the largest logit in dimension `at`, or by the logit's sign; and targets not
    ignored."""
    guess = (outputs > 0).to(targets.dtype) if at is None else outputs.argmax(at)
    counted = targets != ignore_index
    return (guess == targets) & counted, counted


def _logits_and_classes(
    name: str, outputs: Tensor, targets: Tensor, dim: int | None, classes: int | None = None
) -> tuple[Tensor, Tensor]:
    """Logits (B, C, ...) and classes (B, ...); of probabilities, the likeliest class."""
    logits, goals = by_class(name, outputs, targets, dim, classes)
    return logits, goals.argmax(1) if goals.shape == logits.shape else goals


def _scores(right: Tensor, guessed: Tensor, true: Tensor) -> dict[str, Any]:
    both = (true + guessed).clamp(min=1)
    return {"precision": right / guessed.clamp(min=1), "recall": right / true.clamp(min=1), "f1": 2 * right / both}
