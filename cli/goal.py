"""Goal of a run: the metric of its best epoch, the weights of its classes, and its draws, by the training targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve, frozen
from torch import Tensor

from cli.config import TrainConfig
from cli.recipes.metric import ALWAYS, result
from cli.recipes.setting import refusal
from cli.recipes.task import CLASSES, LABELS
from pipeline.direction import directions
from pipeline.errors import ConfigError, did_you_mean
from pipeline.plot import USUAL
from pipeline.programs.evaluate import better
from pipeline.sources import Prepared, Source, Subset, Tensors
from pipeline.sources.memmap import Mapped

if TYPE_CHECKING:
    from cli.build import Job
    from pipeline.state import State

MAJORITY = 0.9
"""Share of the largest class from which accuracy says little: always predicting it is as right."""
READ = 1024
"""Samples to read at once for their targets."""


@frozen
class Goal:
    """The metric of the best epoch, and why it is not the task's own."""

    metric: str
    why: str = ""


def goal(config: TrainConfig, data: Prepared) -> Goal:
    """The default goal of a run."""
    usual = result(config.loss.criterion(data.task)[1].metric or ALWAYS[data.task][-1])
    if (by := config.evaluate.threshold) != "none" and data.task == CLASSES:
        ranked = "average-precision" if by == "f1" else "roc-auc"
        return Goal(result(ranked), "the threshold is chosen after the training")
    if data.task not in (CLASSES, LABELS) or (counts := class_counts(data)) is None:
        return Goal(usual)
    n = len(data.train)
    shares = counts.double() / n
    if data.task == LABELS:
        shares = torch.maximum(shares, 1 - shares)
        if float(shares.mean()) < MAJORITY:
            return Goal(usual)
        return Goal(result("average-precision"), f"{_percent(shares.mean())} of the labels are on one side")
    if float(shares.max()) < MAJORITY:
        return Goal(usual)
    name = names_of(data, len(shares))[int(shares.argmax())]
    return Goal(result("balanced-accuracy"), f"{_percent(shares.max())} of the training samples are of class {name!r}")


def _percent(share: Tensor) -> str:
    return f"{100 * float(share):.1f} %"


def settled(config: TrainConfig, job: Job, metric: str | None) -> TrainConfig:
    """The settings with the metric of the best epoch, if it is not the one that whoever reads the run later takes."""
    if config.run.best is not None or metric is None:
        return config
    seen = [] if job.prepared is None else [*map(result, ALWAYS[job.prepared.task])]
    if metric == next((name for name in USUAL if name in seen), None):
        return config
    return evolve(config, run=evolve(config.run, best=metric))


def agreed(config: TrainConfig, data: Prepared) -> tuple[TrainConfig, str]:
    """The settings with the metric of the best epoch, for runs on several splits of some data, and why it is not the
    task's own."""
    aim = goal(config, data)
    chosen = config if config.run.best is not None else evolve(config, run=evolve(config.run, best=aim.metric))
    return chosen, aim.why if chosen is not config else ""


def class_weights(config: TrainConfig, data: Prepared, outputs: int) -> Tensor | None:
    """Weights of classes (C,), or of positive labels (L,), float32; None for no weights."""
    if config.loss.class_weights == "none":
        return None
    if data.task not in (CLASSES, LABELS):
        raise refusal(f"--class-weights are not for {data.task}; leave them out")
    counts = class_counts(data, read=True)
    assert counts is not None
    counts = torch.cat([counts, counts.new_zeros(outputs - len(counts))])  # of classes that only others have
    names = names_of(data, outputs)
    if data.task == LABELS and config.loss.class_weights == "balanced":
        return ((len(data.train) - counts).float() / counts.clamp(min=1)).clamp(min=1e-6)
    return torch.tensor(config.loss.weights(counts.tolist(), names))


def draws(config: TrainConfig, data: Prepared) -> Any:
    """Weights of the samples (N,), by which each class is drawn equally often; None for each sample once."""
    if config.run.sample == "each":
        return None
    if data.task != CLASSES:
        raise refusal(f"--sample balanced is for classes, not for {data.task}; leave it out")
    found = targets(data.train, read=True)
    assert found is not None
    return (1.0 / found.bincount().clamp(min=1).double())[found].numpy()


def class_counts(data: Prepared, read: bool = False) -> Tensor | None:
    """The number of training samples of each class (C,), or with each label (L,)."""
    found = targets(data.train, read=read)
    if found is None:
        return None
    return found.bincount(minlength=len(data.classes)) if data.task == CLASSES else (found > 0.5).sum(0)


def names_of(data: Prepared, count: int) -> Sequence[str]:
    """Names of classes or labels."""
    return data.classes or tuple(map(str, range(count)))


def targets(data: Source, read: bool = False) -> Tensor | None:
    """All targets of a data set, (N, ...); None if they would have to be read sample by sample, unless `read`."""
    if isinstance(data, Tensors):
        return data.tensors.get("targets")
    if isinstance(data, Subset) and (whole := targets(data.source)) is not None:
        return whole[data.rows]
    inner = getattr(getattr(data, "reader", None), "data", None)  # images, whose labels are known
    if isinstance(known := getattr(inner, "targets", None), Tensor):
        return known
    if isinstance(data, Mapped):  # without the inputs
        data, read = evolve(data, arrays={"targets": data.arrays["targets"]}), True
    if read:
        rows = torch.arange(len(data))
        return torch.cat([data[rows[i : i + READ]]["targets"] for i in range(0, len(data), READ)])
    return None


def check_best(best: str, job: Job, state: State, flag: str = "--best") -> None:
    """Raise ConfigError if the metric that a flag names is unknown or declares no direction."""
    program = job.pipe.program
    metrics = [*program.finish(program.zeros())]
    metrics += [f"{name}.{metric}" for name in job.stages.averages for metric in metrics]
    declared = better(program, state)
    if best not in [*metrics, *declared] and declared[""] is None:
        raise ConfigError(f"{flag} {best!r} is no metric of this run{did_you_mean(best, metrics)}")
    if best not in (known := directions(declared, [*metrics, best])):
        raise ConfigError(
            f"nothing says whether {flag} {best!r} is better high or low: declare it by better='high' or 'low'"
            f"; known of {', '.join(known)}"
        )
