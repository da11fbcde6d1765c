"""Baseline: what a constant prediction would have, printed beside a result, so that a model that learned nothing is
seen at once; and the classes that a model never predicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from cli import goal
from cli.build import Job
from cli.classes import measuring, unseen
from cli.decision import Decision, decided
from cli.recipes.loss import LOG, TARGET_MEAN
from cli.recipes.task import CLASSES, LABELS, VALUES
from pipeline import Pipeline, State, evaluate, order
from pipeline.direction import rank
from pipeline.load import batches
from pipeline.programs.evaluate import Measured, better, finished
from pipeline.programs.program import Program
from pipeline.sources import Tensors
from pipeline.stage import Stage
from pipeline.state import format_metric

SHOWN = {CLASSES: ("accuracy",), LABELS: ("accuracy",), VALUES: ("r2", "rmse", "mae")}
"""Metrics of a baseline to print, if a run measures them, besides the metric of its best epoch."""


@frozen
class Baseline:
    """The metrics of a constant prediction."""

    metrics: dict[str, Any]
    words: str
    """The prediction: `always predicting '0'`."""
    task: str

    def line(self, best: str | None) -> str:
        names = dict.fromkeys([*([best] if best else []), *SHOWN[self.task]])
        values = {k: self.metrics.get(k.rpartition(".")[2]) for k in names}  # of "ema.accuracy" too
        shown = [format_metric(k, v) for k, v in values.items() if isinstance(v, float)]
        return f"baseline  {', '.join(shown)} by {self.words}"

    def warning(self, job: Job, state: State, metric: str, value: float) -> list[str]:
        """A line if a result is no better, by the metric of the best epoch."""
        own = metric.rpartition(".")[2]
        way, always = better(job.pipe.program, state).get(own), self.metrics.get(own)
        if (
            way is None
            or not isinstance(always, float)
            or rank(own, way, {own: value})[0] < rank(own, way, self.metrics)[0]
        ):
            return []
        return [f"warning the model is no better than that by {metric}"]


def baseline(job: Job, data: Any = None) -> Baseline | None:
    """The baseline of the held-out samples, or of others; None if the task has none, or its targets would have to be
    read sample by sample."""
    made = constant(job, data)
    if made is None or job.prepared is None:
        return None
    always, data, words = made
    return Baseline(always.evaluate(always.init(0), data), words, job.prepared.task)


def of_folds(program: Program, parts: Sequence[tuple[Measured, str]], task: str) -> Baseline:
    """The baseline of all folds: what the metrics measured of each one's own constant, and these in words."""
    words = list(dict.fromkeys(words for _, words in parts))
    said = words[0] if len(words) == 1 else "the constant of each fold"
    return Baseline(finished(program, [sums for sums, _ in parts]), said, task)


def constant(job: Job, data: Any = None) -> tuple[Pipeline, Any, str] | None:
    """The pipeline that gives the best constant for the held-out samples, or others; these; and the constant in
    words."""
    if job.prepared is None or job.fixed is None or job.prepared.task not in SHOWN:
        return None
    found = goal.targets(job.held_out) if data is None and job.held_out is not None else None
    made = _constant(job)
    if made is None or (data is None and found is None):
        return None
    outputs, words = made
    if found is not None:
        size = -(-len(found) // order.count(len(found), 1 << 16))
        data = batches(Tensors({"targets": found}), size=size, shuffle=False)

    def repeated(targets: Tensor) -> Tensor:
        return outputs.expand(len(targets), *outputs.shape)

    return job.measuring(Stage("constant", repeated, writes=("outputs",))), data, words


def _constant(job: Job) -> tuple[Tensor, str] | None:
    """Outputs (O,) of the best constant by the training targets, and the prediction in words."""
    data = job.prepared
    assert data is not None
    assert job.fixed is not None
    if data.task == VALUES:
        if TARGET_MEAN not in data.fitted:
            return None
        means = data.fitted[TARGET_MEAN]
        words = "always predicting the mean of the training targets"
        if len(means) == 1 and LOG not in data.fitted:
            words = f"always predicting the mean, {means[0]:.4g}"
        return torch.zeros(job.fixed.outputs), words  # targets are scaled by their mean
    counts = goal.class_counts(data)
    if counts is None:
        return None
    shares = (counts.double() / len(data.train)).clamp(1e-9, 1 - 1e-9)
    if data.task == LABELS:
        return shares.logit().float(), "always predicting the more frequent side of each label"
    outputs = torch.full((job.fixed.outputs,), 1e-9, dtype=torch.float64)
    outputs[: len(shares)] = shares
    name = goal.names_of(data, job.fixed.outputs)[int(shares.argmax())]
    return outputs.log().float(), f"always predicting {name!r}"


def never_predicted(job: Job, state: State, data: Any, decision: Decision) -> list[str]:
    """Warnings: the classes that occur in some data, and that a model never predicts."""
    if job.prepared is None or job.prepared.task != CLASSES or job.fixed is None:
        return []
    counting = decided(measuring(job.pipe, evaluate.counts(job.fixed.outputs)), decision)
    found = counting.evaluate(state, data)
    return unseen(goal.names_of(job.prepared, job.fixed.outputs), found["true"], found["predicted"])
