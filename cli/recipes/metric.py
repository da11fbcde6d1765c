"""Metrics by name: one line each."""

from __future__ import annotations

from collections.abc import Mapping
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from cli.recipes import code
from cli.recipes.setting import one_of, refusal, setting
from cli.recipes.task import CLASSES, LABELS, TOKENS, VALUES

if TYPE_CHECKING:
    from cli.recipes.model import Fixed
    from pipeline.stage import Stage


@frozen
class Metric:
    """A metric that the command knows."""

    home: str
    """Its function, `module:function`. Its arguments are `options`, and, for parameters of these names: `classes` or
    `count`, the number of outputs; `task`; `dim`, the class dimension of tokens; `several`, True for several labels;
    `quantile`, the loss's."""
    tasks: tuple[str, ...]
    """The tasks it is for."""
    options: Mapping[str, Any] = field(factory=dict)
    held_out: bool = False
    """Whether it is measured on held-out samples alone."""


METRICS: dict[str, Metric] = {
    "accuracy": Metric("pipeline.evaluate:accuracy", (CLASSES, LABELS, TOKENS)),
    "average-precision": Metric("pipeline.evaluate:average_precision", (CLASSES, LABELS), held_out=True),
    "balanced-accuracy": Metric("pipeline.evaluate:balanced_accuracy", (CLASSES,)),
    "calibration-error": Metric("pipeline.evaluate:calibration_error", (CLASSES, LABELS, TOKENS)),
    "confusion": Metric("pipeline.evaluate:confusion", (CLASSES,)),
    "f1-score": Metric("pipeline.evaluate:f1", (CLASSES, LABELS)),
    "labels": Metric("pipeline.evaluate:labels", (LABELS,)),
    "log-loss": Metric("pipeline.evaluate:log_loss", (CLASSES, LABELS, TOKENS)),
    "mae": Metric("pipeline.evaluate:mean_absolute_error", (VALUES,)),
    "mse": Metric("pipeline.evaluate:mean_squared_error", (VALUES,)),
    "perplexity": Metric("pipeline.evaluate:perplexity", (CLASSES, TOKENS)),
    "pinball": Metric("pipeline.evaluate:pinball", (VALUES,)),
    "poisson-deviance": Metric("pipeline.evaluate:poisson_deviance", (VALUES,)),
    "r2": Metric("pipeline.evaluate:r2", (VALUES,)),
    "rmse": Metric("pipeline.evaluate:root_mean_squared_error", (VALUES,)),
    "roc-auc": Metric("pipeline.evaluate:roc_auc", (CLASSES, LABELS), held_out=True),
    "top5": Metric("pipeline.evaluate:top_k", (CLASSES, TOKENS), {"k": 5}),
}
ALWAYS = {CLASSES: ("accuracy",), LABELS: ("accuracy",), VALUES: ("mae", "r2"), TOKENS: ("accuracy", "perplexity")}
"""Task -> the metrics of every run; the last of them tells the best epoch."""
THRESHOLDS = ("none", "f1", "balanced-accuracy")


def result(name: str) -> str:
    """The name of a metric's result: `roc auc` of roc-auc."""
    return name.replace("-", " ") if name in METRICS else name


def best_result(run: Mapping[str, Any]) -> dict[str, Any]:
    """The setting `best` of a run by the name of its result, if it names a metric of the command."""
    return {"best": result(run["best"])} if str(run.get("best")) in METRICS else {}


@frozen
class Metrics:
    """Metrics besides the loss."""

    metric: tuple[str, ...] = setting(
        (), f"also measure: {', '.join(METRICS)}, or FILE.py:FUNCTION that makes a metric", code.each_in(METRICS),
        fixed=True,
    )  # fmt: skip

    threshold: str = setting(
        "none",
        "of two classes: choose the probability from which the second is predicted, on held-out samples, by "
        f"{' or '.join(THRESHOLDS[1:])}; kept with the run",
        one_of(THRESHOLDS),
    )
    calibrate: bool = setting(
        False, "fit a temperature to held-out samples, by which probabilities are calibrated; kept with the run"
    )

    def stages(self, fixed: Fixed, best: str | None, **more: Any) -> list[Stage]:
        """The metrics of a task, then the requested ones, then the one of the best epoch, in evaluation alone, so that
        it may change when a run goes on. `more`: further known values."""
        asked = dict.fromkeys((*ALWAYS[fixed.task], *self.metric))
        known: dict[str, Any] = {"classes": fixed.outputs, "count": fixed.outputs, "task": fixed.task, **more}
        known |= {"dim": -1} if fixed.task == TOKENS else {"several": fixed.task == LABELS}
        extra = [name for name in METRICS if result(name) == best and name not in asked]
        return [*(_stage(name, fixed.task, known) for name in asked),
                *(_stage(name, fixed.task, known, "--best").only("evaluation") for name in extra)]  # fmt: skip


def _stage(name: str, task: str, known: Mapping[str, Any], asked: str = "--metric") -> Stage:
    from pipeline.stage import Stage

    if name in METRICS:
        metric = METRICS[name]
        if task not in metric.tasks:
            fitting = [n for n, m in METRICS.items() if task in m.tasks and n not in ALWAYS[task]]
            raise refusal(f"{asked} {name} is not for {task}; use {' or '.join(fitting)}")
        make = resolve_name(metric.home)
        stage = make(**metric.options, **code.wanted(make, known))
        stage = stage.only("evaluation") if metric.held_out else stage
    else:
        stage = code.called(name, code.load(name), {}, known, "evaluate")
    if not isinstance(stage, Stage) or (stage.finish is None and not hasattr(stage, "summary")):
        raise refusal(f"{name} made {type(stage).__name__}, not a metric; make one by pipeline.evaluate.metric(...)")
    return stage
