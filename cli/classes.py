"""Precision, recall, F1 and confusion matrix of classes or labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from attrs import evolve, frozen

from cli.decision import PLAIN, Decision, decided
from cli.recipes.data_card import About
from pipeline import Ensemble, Pipeline, State, evaluate
from pipeline.stage import Stage
from pipeline.text import some

SHOWN, MOST = 30, 10
"""Most classes of a confusion matrix, and most names in a line, in a terminal."""


@frozen
class Figures:
    """Figures of each class, in order."""

    names: tuple[str, ...]
    precision: list[float]
    recall: list[float]
    f1: list[float]
    confusion: list[list[int]] | None
    """Rows true, columns predicted; None for labels."""

    @property
    def json(self) -> dict[str, Any]:
        each = zip(self.names, self.precision, self.recall, self.f1, strict=True)
        rows = [{"class": n, "precision": p, "recall": r, "f1": f} for n, p, r, f in each]
        return {"classes": rows, **({} if self.confusion is None else {"confusion": self.confusion})}

    def __str__(self) -> str:
        width = max(8, *(len(name) for name in self.names))
        each = zip(self.names, self.precision, self.recall, self.f1, strict=True)
        lines = [f"{name:>{width}}  {p:9.4f}  {r:6.4f}  {f:6.4f}" for name, p, r, f in each]
        head = f"{'class':>{width}}  precision  recall      F1"
        return "\n".join([head, *lines])

    @property
    def unseen(self) -> list[str]:
        """A warning if classes that occur are never predicted."""
        if self.confusion is None:
            return []
        true = [sum(row) for row in self.confusion]
        return unseen(self.names, true, [sum(column) for column in zip(*self.confusion, strict=True)])

    @property
    def matrix(self) -> str:
        """The confusion matrix as text; empty if there is none or no room."""
        if self.confusion is None or len(self.names) > SHOWN:
            return ""
        width = max(8, *(len(name) for name in self.names))
        cell = max(3, *(len(f"{n:,}") for row in self.confusion for n in row), *(len(n[:8]) for n in self.names))
        head = " " * width + "  " + " ".join(f"{name[:8]:>{cell}}" for name in self.names)
        rows = [f"{name:>{width}}  " + " ".join(f"{n:>{cell},}" if n else " " * (cell - 1) + "." for n in row)
                for name, row in zip(self.names, self.confusion, strict=True)]  # fmt: skip
        return "\n".join(["rows true, columns predicted", head, *rows])


def figures(
    pipe: Pipeline | Ensemble, about: About, state: State, data: Any, decision: Decision = PLAIN
) -> Figures | None:
    """Figures of a State on some data; None if the task has no classes."""
    metrics = of_classes(about)
    return figures_of(about, decided(measuring(pipe, *metrics), decision).evaluate(state, data)) if metrics else None


def of_classes(about: About) -> list[Stage]:
    """The metric that `figures_of` reads; none if the task has no classes."""
    count = len(about.classes) or about.fixed.outputs
    if about.task not in ("classification", "several labels"):
        return []
    return [evaluate.confusion(count) if about.task == "classification" else evaluate.labels(count)]


def figures_of(about: About, values: Mapping[str, Any]) -> Figures:
    names = about.classes or tuple(map(str, range(about.fixed.outputs)))
    return Figures(names, values["precision"], values["recall"], values["f1"], values.get("confusion"))


def measuring(pipe: Pipeline | Ensemble, *metrics: Stage) -> Pipeline | Ensemble:
    """A pipeline of classes or labels that has these metrics too, in evaluation."""
    known = [stage.name for stage in pipe.program.pipe.stages]
    for metric in metrics:
        if metric.name not in known:
            pipe = changed(pipe, partial(Pipeline.insert, stage=metric.only("evaluation"), after="evaluate.accuracy"))
    return pipe


def changed(pipe: Pipeline | Ensemble, change: Callable[[Pipeline], Pipeline]) -> Pipeline | Ensemble:
    """A pipeline, or each member's, after a change."""
    return evolve(pipe, pipe=change(pipe.pipe)) if isinstance(pipe, Ensemble) else change(pipe)


def unseen(names: Sequence[str], true: Sequence[int], predicted: Sequence[int]) -> list[str]:
    """A line if classes that occur are never predicted."""
    missing = [(n, t) for n, t, p in zip(names, true, predicted, strict=True) if t and not p]
    if not missing:
        return []
    named = some((repr(n) for n, _ in missing), MOST)
    many = f"{sum(t for _, t in missing):,} of the {sum(true):,} samples are of "
    what = f"class {named} is" if len(missing) == 1 else f"{len(missing)} classes are"
    of = "it" if len(missing) == 1 else f"them: {named}"
    rare = all(2 * len(names) * t < sum(true) for _, t in missing)
    remedy = "; try --class-weights balanced, --sample balanced, or, of two classes, --threshold f1" if rare else ""
    return [f"warning {what} never predicted, and {many}{of}{remedy}"]
