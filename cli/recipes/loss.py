"""Loss: what is made small, and what is measured beside it, by the task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from cli.recipes.setting import below_one, refusal, setting

if TYPE_CHECKING:
    from pipeline import loss
    from pipeline.sources import Prepared
    from pipeline.stage import Stage

LOSSES = {
    "auto": "by the task",
    "cross-entropy": "of classes and tokens",
    "binary-cross-entropy": "of several labels",
    "mse": "squared error of values",
    "mae": "absolute error",
    "huber": "between the two",
}
_TASKS = {
    "cross-entropy": ("classification", "language modelling"),
    "binary-cross-entropy": ("several labels",),
    "mse": ("regression",),
    "mae": ("regression",),
    "huber": ("regression",),
}


@frozen
class Loss:
    """What is made small."""

    name: str = setting(
        "auto", "what is made small: " + "; ".join(f"{name} ({what})" for name, what in LOSSES.items()), fixed=True
    )
    smoothing: float = setting(0.0, "share of a class's target that all classes have", below_one, fixed=True)

    def stage(self, task: str) -> loss.Loss:
        """The loss of a task."""
        from pipeline import loss

        name = self.name
        if name == "auto":
            name = next(n for n, tasks in _TASKS.items() if task in tasks)
        elif task not in _TASKS[name]:
            fitting = [n for n, tasks in _TASKS.items() if task in tasks]
            raise refusal(f"--loss {name} is not for {task}; use {' or '.join(fitting)}")
        if name == "cross-entropy":
            return loss.cross_entropy(dim=-1 if task == "language modelling" else 1, smoothing=self.smoothing)
        if self.smoothing:
            raise refusal(f"--smoothing belongs to --loss cross-entropy, not to {name}; leave it out")
        makes = {"binary-cross-entropy": loss.binary_cross_entropy, "mse": loss.mse, "mae": loss.l1}
        return makes[name]() if name in makes else loss.huber()

    def stages(self, data: Prepared) -> list[Stage]:
        """The loss and the metrics of a data set."""
        from pipeline import evaluate

        made = self.stage(data.task)
        if data.task == "language modelling":
            return [made, evaluate.accuracy(dim=-1), evaluate.perplexity(dim=-1)]
        if data.task != "regression":
            return [made, evaluate.accuracy(several=data.task == "several labels")]
        measured = [evaluate.mean_absolute_error(), evaluate.r2()]
        if TARGET_MEAN not in data.fitted:
            return [made, *measured]
        return [*_scales(data), made.rename(targets="scaled"), *(m.rename(outputs="predictions") for m in measured)]


TARGET_MEAN, TARGET_STD = "target_mean", "target_std"
"""Under which a data set's fitted numbers have those of its targets, one for each value."""


def _scales(data: Prepared) -> list[Stage]:
    """The model learns values of mean 0 and deviation 1; metrics are in the values' own units."""
    from torch import Tensor

    from pipeline import stage

    mean, std = (data.fitted[key] for key in (TARGET_MEAN, TARGET_STD))

    def scale(targets: Tensor) -> Tensor:
        return (targets - targets.new_tensor(mean)) / targets.new_tensor(std)

    def unscale(outputs: Tensor) -> Tensor:
        return outputs * outputs.new_tensor(std) + outputs.new_tensor(mean)

    return [stage(writes="scaled")(scale), stage(writes="predictions")(unscale)]
