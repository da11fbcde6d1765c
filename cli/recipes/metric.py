"""Metrics by name: one line each."""

from __future__ import annotations

from collections.abc import Mapping
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from cli.recipes import code
from cli.recipes.setting import refusal, setting
from cli.recipes.task import CLASSES, LABELS, TOKENS, VALUES

if TYPE_CHECKING:
    from cli.recipes.model import Fixed
    from pipeline.stage import Stage


@frozen
class Metric:
    """A metric that the command knows."""

    home: str
    """Its function, `module:function`. Its arguments are `options`, and, for parameters of these names: `classes` or
    `count`, the number of outputs; `task`; `dim`, the class dimension of tokens; `several`, True for several labels."""
    tasks: tuple[str, ...]
    """The tasks it is for."""
    options: Mapping[str, Any] = field(factory=dict)


METRICS: dict[str, Metric] = {
    "accuracy": Metric("pipeline.evaluate:accuracy", (CLASSES, LABELS, TOKENS)),
    "calibration-error": Metric("pipeline.evaluate:calibration_error", (CLASSES, LABELS, TOKENS)),
    "confusion": Metric("pipeline.evaluate:confusion", (CLASSES,)),
    "labels": Metric("pipeline.evaluate:labels", (LABELS,)),
    "mae": Metric("pipeline.evaluate:mean_absolute_error", (VALUES,)),
    "mse": Metric("pipeline.evaluate:mean_squared_error", (VALUES,)),
    "perplexity": Metric("pipeline.evaluate:perplexity", (CLASSES, TOKENS)),
    "r2": Metric("pipeline.evaluate:r2", (VALUES,)),
    "top5": Metric("pipeline.evaluate:top_k", (CLASSES, TOKENS), {"k": 5}),
}
ALWAYS = {CLASSES: ("accuracy",), LABELS: ("accuracy",), VALUES: ("mae", "r2"), TOKENS: ("accuracy", "perplexity")}
"""Task -> the metrics of every run; the last of them tells the best epoch."""


@frozen
class Metrics:
    """Metrics besides the loss."""

    metric: tuple[str, ...] = setting(
        (), f"also measure: {', '.join(METRICS)}, or FILE.py:FUNCTION that makes a metric", code.each_in(METRICS),
        fixed=True,
    )  # fmt: skip

    def stages(self, fixed: Fixed) -> list[Stage]:
        """The metrics of a task, then the requested ones."""
        always = ALWAYS[fixed.task]
        known: dict[str, Any] = {"classes": fixed.outputs, "count": fixed.outputs, "task": fixed.task}
        known |= {"dim": -1} if fixed.task == TOKENS else {"several": fixed.task == LABELS}
        return [_stage(name, fixed.task, known) for name in dict.fromkeys((*always, *self.metric))]


def _stage(name: str, task: str, known: Mapping[str, Any]) -> Stage:
    from pipeline.stage import Stage

    if name in METRICS:
        metric = METRICS[name]
        if task not in metric.tasks:
            fitting = [n for n, m in METRICS.items() if task in m.tasks and n not in ALWAYS[task]]
            raise refusal(f"--metric {name} is not for {task}; use {' or '.join(fitting)}")
        make = resolve_name(metric.home)
        stage = make(**metric.options, **code.wanted(make, known))
    else:
        stage = code.called(name, code.load(name), {}, known, "evaluate")
    if not isinstance(stage, Stage) or (stage.finish is None and not hasattr(stage, "summary")):
        raise refusal(f"{name} made {type(stage).__name__}, not a metric; make one by pipeline.evaluate.metric(...)")
    return stage
