"""Losses by name: one line each."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING

from attrs import frozen

from cli.recipes.code import wanted
from cli.recipes.setting import below_one, flag, refusal, setting
from cli.recipes.task import CLASSES, LABELS, TOKENS, VALUES

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline import loss
    from pipeline.sources import Prepared
    from pipeline.stage import Stage


@frozen
class Criterion:
    """A loss that the command knows."""

    help: str
    home: str = ""
    """Its function, `module:function`, called with `dim` of the classes and `smoothing`, if it has these parameters."""
    tasks: tuple[str, ...] = ()
    """The tasks it is for. The first loss of a task is its default."""


LOSSES: dict[str, Criterion] = {
    "auto": Criterion("by the task"),
    "cross-entropy": Criterion("of classes and tokens", "pipeline.loss:cross_entropy", (CLASSES, TOKENS)),
    "binary-cross-entropy": Criterion("of several labels", "pipeline.loss:binary_cross_entropy", (LABELS,)),
    "mse": Criterion("squared error of values", "pipeline.loss:mse", (VALUES,)),
    "mae": Criterion("absolute error", "pipeline.loss:l1", (VALUES,)),
    "huber": Criterion("between the two", "pipeline.loss:huber", (VALUES,)),
}


@frozen
class Loss:
    """The loss to minimize."""

    name: str = setting(
        "auto", "to minimize: " + "; ".join(f"{name} ({known.help})" for name, known in LOSSES.items()), fixed=True
    )
    smoothing: float = setting(
        0.0, "label smoothing: share of the target spread over all classes", below_one, fixed=True
    )

    def stage(self, task: str) -> loss.Loss:
        """The loss of a task."""
        fitting = [name for name, known in LOSSES.items() if task in known.tasks]
        name = fitting[0] if self.name == "auto" else self.name
        if name not in fitting:
            raise refusal(f"--loss {name} is not for {task}; use {' or '.join(fitting)}")
        criterion = resolve_name(LOSSES[name].home)
        options = wanted(criterion, {"dim": -1 if task == TOKENS else 1, "smoothing": self.smoothing})
        if self.smoothing and "smoothing" not in options:
            raise refusal(f"{flag('smoothing')} belongs to --loss cross-entropy, not to {name}; leave it out")
        stage: loss.Loss = criterion(**options)
        return stage


TARGET_MEAN, TARGET_STD = "target_mean", "target_std"
"""Keys of `fitted`: mean and standard deviation of each target value."""


def scaled_targets(data: Prepared, targets: Tensor) -> Tensor:
    """Targets of mean 0 and deviation 1, if the data have a mean of them."""
    if TARGET_MEAN not in data.fitted:
        return targets
    mean, std = data.fitted[TARGET_MEAN], data.fitted[TARGET_STD]
    return (targets - targets.new_tensor(mean)) / targets.new_tensor(std)


def standardized(data: Prepared, loss: Stage, metrics: list[Stage]) -> list[Stage]:
    """A loss on targets of mean 0 and deviation 1, and metrics in the units of the data, if these have a mean."""
    if TARGET_MEAN not in data.fitted:
        return [loss, *metrics]
    from pipeline import stage

    mean, std = data.fitted[TARGET_MEAN], data.fitted[TARGET_STD]

    def scale(targets: Tensor) -> Tensor:
        return scaled_targets(data, targets)

    def unscale(outputs: Tensor) -> Tensor:
        return outputs * outputs.new_tensor(std) + outputs.new_tensor(mean)

    scales: list[Stage] = [stage(writes="scaled")(scale), stage(writes="predictions")(unscale)]
    read = [m.rename(outputs="predictions") if "outputs" in m.reads else m for m in metrics]
    return [*scales, loss.rename(targets="scaled"), *read]
