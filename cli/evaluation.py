"""Evaluation of a run, or of the runs of all folds, as `pipe eval` prints it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import frozen

from cli import baseline, classes
from cli.baseline import Baseline
from cli.build import Job
from cli.classes import Figures
from cli.decision import PLAIN, Decision, decided, mean
from cli.folds import out_of_fold
from cli.new_data import Batches, MeanBatches
from cli.recipes.data_card import About
from cli.recipes.setting import refusal
from cli.recipes.task import VALUES
from cli.saved_run import Past
from pipeline import State
from pipeline.errors import ConfigError
from pipeline.loop import validated
from pipeline.stage import Stage
from pipeline.state import format_metric


@frozen(eq=False)
class Evaluation:
    """The metrics of one model on some data, and what to judge them by."""

    facts: dict[str, Any]
    """The run, the weights, and their epoch and step."""
    words: str
    """The run and its weights, in words."""
    data: str
    metrics: dict[str, Any]
    decision: Decision = PLAIN
    about: About | None = None
    """The data, unless the pipeline is the user's own."""
    figures: Figures | None = None
    base: Baseline | None = None
    judged: Sequence[str] = ()
    """Lines about the baseline."""

    @property
    def json(self) -> dict[str, Any]:
        return {**self.facts, "metrics": self.metrics,
                **({} if self.base is None else {"baseline": self.base.metrics}),
                **({} if self.about is None else self.decision.facts(self.about)),
                **({} if self.figures is None else self.figures.json)}  # fmt: skip

    @property
    def lines(self) -> list[str]:
        numbers = [(k, v) for k, v in self.metrics.items() if isinstance(v, int | float) and "/" not in k]
        lines = [f"run     {self.words}", f"data    {self.data}"]
        lines += [f"        {format_metric(name, value)}" for name, value in numbers]
        lines += [f"        {line}" for line in (self.decision.lines(self.about) if self.about is not None else ())]
        lines += self.judged
        if self.figures is not None:
            lines += [f"\n{self.figures}\n", self.figures.matrix, *self.figures.unseen]
        return lines


def of_run(past: Past, data: str | None, *, skip_bad: bool, weights: str) -> Evaluation:
    """A run's model on its held-out samples, or on other data."""
    job, state, saved = past.repeated(weights) if data is None else past.restored(weights, own=_weighs(past))
    if data is None and job.held_out is None:
        raise refusal(f"{past.folder} held nothing out; name data by --data")
    samples: Any = job.held_out if data is None else Batches(past, data, skip_bad)
    about = past.about if past.config.pipeline.name is None else None
    decision = past.decision(weights)
    pipe = decided(job.pipe, decision)
    program: Any = pipe
    if past.config.run.compile:
        program = pipe.compile(backend=past.config.run.backend, fallback="eager", eager_steps=job.eager_steps)
    metrics = validated(pipe.program, program, state, {"": job.validation if data is None else samples})
    figures = None if about is None else classes.figures(job.pipe, about, state, samples, decision)
    base, judged = _judged(past, job, state, metrics, None if data is None else samples)
    facts = {"run": str(past.folder), "weights": weights, "epoch": saved.epoch, "step": saved.step,
             "data": data or past.config.source}  # fmt: skip
    words = f"{past.folder}, weights of epoch {saved.epoch} ({weights})"
    named = data or f"{past.config.source}, held-out samples"
    return Evaluation(facts, words, named, metrics, decision, about, figures, base, judged)


def _weighs(past: Past) -> bool:
    """Whether the loss of a run depends on its training data."""
    return past.config.loss.class_weights == "balanced"


def _judged(
    past: Past, job: Job, state: State, metrics: dict[str, Any], data: Any
) -> tuple[Baseline | None, list[str]]:
    """The baseline of some data, in lines."""
    try:
        if data is not None and job.prepared is not None and job.prepared.task != VALUES:
            past.differences()
    except ConfigError as e:
        return None, [f"baseline  unknown: {e}"]
    base = baseline.baseline(job, data)
    if base is None:
        return None, []
    best = metric if (metric := past.config.run.best or job.best) in metrics else None
    return base, [base.line(best), *(base.warning(job, state, best, metrics[best]) if best is not None else ())]


def of_folds(runs: Sequence[Past], data: str | None, *, skip_bad: bool, weights: str) -> Evaluation:
    """The runs of all folds: each on the samples that it held out, or the mean of all on other data."""
    first, base, judged = runs[0], None, list[str]()
    about, folder = first.about, first.folder.parent
    decision, counting = mean([run.decision(weights) for run in runs]), classes.of_classes(about)
    held_out = "all samples"
    if (time := first.config.flat.get("time")) is not None:
        held_out += f" but the first 1/{len(runs) + 1} by {time!r}"
    if data is None:
        values, base = out_of_fold(runs, weights, decision, counting)
        judged = [] if base is None else [base.line(first.config.run.best)]
    else:
        if _weighs(first):
            first.differences()
        (job, state), measuring = first.made, Stage("mean", lambda answered: answered, writes=("outputs",))
        pipe = decided(classes.measuring(job.measuring(measuring), *counting), decision)
        values = pipe.evaluate(pipe.init(0), MeanBatches(runs, data, skip_bad, weights))
        base, judged = _judged(first, job, state, values, Batches(first, data, skip_bad, said=True))
    figures = classes.figures_of(about, values) if counting else None
    metrics = {name: value for name, value in values.items() if isinstance(value, int | float)}
    facts = {"run": str(folder), "folds": len(runs), "weights": weights, "data": data or first.config.source}
    named = data or f"{first.config.source}, {held_out}, each by the run that held it out"
    words = f"{folder}, {'each' if data is None else 'the mean'} of {len(runs)} runs, weights {weights}"
    return Evaluation(facts, words, named, metrics, decision, about, figures, base, judged)
