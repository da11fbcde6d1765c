"""Losses by name: one line each."""

from __future__ import annotations

from collections.abc import Sequence
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from attrs import evolve, frozen

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
    """Its function, `module:function`, called with `dim` and `weight` of the classes, `smoothing` and `quantile`, if it
    has these parameters."""
    tasks: tuple[str, ...] = ()
    """The tasks it is for. The first loss of a task is its default."""
    metric: str = ""
    """The metric that tells the best epoch of a run with it, if not the task's."""
    log: bool = False
    """Whether outputs are logarithms of means, of counts."""


LOSSES: dict[str, Criterion] = {
    "auto": Criterion("by the task"),
    "cross-entropy": Criterion("of classes and tokens", "pipeline.loss:cross_entropy", (CLASSES, TOKENS)),
    "binary-cross-entropy": Criterion("of several labels", "pipeline.loss:binary_cross_entropy", (LABELS,)),
    "mse": Criterion("squared error of values", "pipeline.loss:mse", (VALUES,)),
    "mae": Criterion("absolute error", "pipeline.loss:l1", (VALUES,)),
    "huber": Criterion("between the two", "pipeline.loss:huber", (VALUES,)),
    "quantile": Criterion("pinball error", "pipeline.loss:quantile", (VALUES,), metric="pinball"),
    "poisson": Criterion("counts", "pipeline.loss:poisson", (VALUES,), metric="poisson-deviance", log=True),
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

    class_weights: str = setting(
        "none",
        "of classes in the loss: none, balanced: inverse to their training samples, or such as A=1,B=20; others have 1",
        fixed=True,
    )
    quantile: float = setting(0.5, "quantile: the share of the targets below the output", below_one, fixed=True)

    def criterion(self, task: str) -> tuple[str, Criterion]:
        """The loss of a task, with its name."""
        fitting = [name for name, known in LOSSES.items() if task in known.tasks]
        name = fitting[0] if self.name == "auto" else self.name
        if name not in fitting:
            raise refusal(f"--loss {name} is not for {task}; use {' or '.join(fitting)}")
        return name, LOSSES[name]

    def stage(self, task: str, weight: Tensor | None = None) -> loss.Loss:
        """The loss of a task; `weight` of each class or label."""
        name, known = self.criterion(task)
        criterion = resolve_name(known.home)
        values = {"dim": -1 if task == TOKENS else 1, "smoothing": self.smoothing, "quantile": self.quantile}
        options = wanted(criterion, values | ({} if weight is None else {"weight": weight}))
        for key, of, default in (("smoothing", "cross-entropy", 0.0), ("quantile", "quantile", 0.5)):
            if getattr(self, key) != default and key not in options:
                raise refusal(f"{flag(key)} belongs to --loss {of}, not to {name}; leave it out")
        if weight is not None and "weight" not in options:
            raise refusal(f"{flag('class_weights')} does not apply to --loss {name}; leave it out")
        stage: loss.Loss = criterion(**options)
        return stage

    def weights(self, counts: Sequence[int], names: Sequence[str]) -> list[float]:
        """A weight for each class, from its number of training samples, so that all classes count alike: n /
        (C * count), as sklearn's "balanced"; or as given by name.

        >>> Loss(class_weights="balanced").weights([90, 10], ["a", "b"])
        [0.5555555555555556, 5.0]
        >>> Loss(class_weights="b=20").weights([90, 10], ["a", "b"])
        [1.0, 20.0]
        """
        from pipeline.text import some

        if self.class_weights == "balanced":
            return [sum(counts) / (len(counts) * n) if n else 1.0 for n in counts]
        weights = dict.fromkeys(names, 1.0)
        for part in self.class_weights.split(","):
            name, _, number = part.strip().rpartition("=")
            if name not in weights:
                what = f"no class {name!r}" if name else f"{part!r}, which is no NAME=WEIGHT"
                raise refusal(f"{flag('class_weights')} has {what}; the classes are {some(names, 10)}", name, names)
            try:
                weights[name] = float(number)
            except ValueError:
                weights[name] = -1.0
            if not 0 <= weights[name] < 1e9:
                raise refusal(f"{flag('class_weights')} {part.strip()}: {number!r} is no weight from 0 on")
        return list(weights.values())


TARGET_MEAN, TARGET_STD = "target_mean", "target_std"
"""Keys of `fitted`: mean and standard deviation of each target value."""
LOG = "log_outputs"
"""Key of `fitted`: whether outputs are logarithms of means, in units of `target_std`."""


def scaled(data: Prepared, loss: Loss) -> Prepared:
    """Data whose targets are scaled for a loss: counts by their mean alone."""
    assert LOG not in data.fitted, "they are scaled already"
    if not loss.criterion(data.task)[1].log:
        return data
    if TARGET_MEAN not in data.fitted:
        raise refusal(f"--loss {loss.name} needs the mean of the training targets, which these data don't have")
    means = [max(mean, 1e-12) for mean in data.fitted[TARGET_MEAN]]
    return evolve(data, fitted={**data.fitted, TARGET_MEAN: [0.0] * len(means), TARGET_STD: means, LOG: True})


def scaled_targets(data: Prepared, targets: Tensor) -> Tensor:
    """Targets of mean 0 and deviation 1, if the data have a mean of them."""
    if TARGET_MEAN not in data.fitted:
        return targets
    mean, std = data.fitted[TARGET_MEAN], data.fitted[TARGET_STD]
    targets = targets if targets.is_floating_point() else targets.float()
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
        values = outputs.exp() if LOG in data.fitted else outputs
        return values * outputs.new_tensor(std) + outputs.new_tensor(mean)

    scales: list[Stage] = [stage(writes="scaled")(scale), stage(writes="predictions")(unscale)]
    read = [m.rename(outputs="predictions") if "outputs" in m.reads else m for m in metrics]
    return [*scales, loss.rename(targets="scaled"), *read]
