"""Hyperparameters in State: their numbers, what their schedules remember, and their values at a step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from pipeline.errors import ConfigError, WiringError, did_you_mean
from pipeline.schedules import Schedule
from pipeline.stage import Number, Stage
from pipeline.tree import Tree


def hyperparameters(stages: Iterable[Stage]) -> dict[str, Number]:
    """Those of all stages, by the names that State has for them: "update.sgd.lr"."""
    return {f"{s.name}.{name}": value for s in stages for name, value in s.hyper.items()}


def scheduled(stages: Iterable[Stage]) -> dict[str, Schedule]:
    """Those that have a schedule."""
    return {full: value for full, value in hyperparameters(stages).items() if isinstance(value, Schedule)}


def remembering(stages: Iterable[Stage]) -> dict[str, Schedule]:
    """Those whose schedule has a memory, which State.memory has under the same name.

    Raises WiringError where a stage that remembers has that name.
    """
    stages = tuple(stages)
    found = {full: s for full, s in scheduled(stages).items() if s.memory}
    for s in stages:
        if s.name in found and s.remembers:
            raise WiringError(f"stage {s.name!r} is named as a scheduled hyperparameter; give it another name")
    return found


def hyper_names(stages: Iterable[Stage]) -> set[str]:
    """What State holds for them, the numbers of schedules among them."""
    found = hyperparameters(stages)
    numbers = {f"{full}.{k}" for full, value in found.items() if isinstance(value, Schedule) for k in value.numbers}
    return {*found, *numbers}


def hyper_numbers(stages: Iterable[Stage], steps: int | None, batches: int | None) -> dict[str, float]:
    """The same with their first values, in a run of so many steps, and so many batches an epoch."""
    numbers: dict[str, float] = {}
    for full, value in hyperparameters(stages).items():
        if not isinstance(value, Schedule):
            numbers[full] = float(value)
            continue
        numbers[full] = float(value.base)
        numbers |= {f"{full}.{k}": number for k, number in value.filled(steps, batches, full).items()}
    return numbers


def hyper_value(full: str, number: Any, tree: Mapping[str, Tree]) -> Tensor:
    """A hyperparameter at this step: 0-d float64."""
    hyper = tree["hyper"]
    value: Tensor = hyper[full]
    if isinstance(number, Schedule):
        memory = tree["memory"][full] if number.memory else {}
        value = value * number.apply(tree["step"], _numbers(full, number, hyper), memory)
    return value


def observed(stages: Iterable[Stage], tree: Mapping[str, Tree], metrics: Mapping[str, Any]) -> dict[str, Tree]:
    """The memories of schedules after an epoch with these metrics; none where no schedule reads any."""
    new: dict[str, Tree] = {}
    for full, schedule in scheduled(stages).items():
        if schedule.observe is not None:
            check_watched({full: schedule}, {k for k, v in metrics.items() if isinstance(v, int | float)})
            numbers = _numbers(full, schedule, tree["hyper"])
            new[full] = schedule.observe(tree["memory"][full], metrics, **numbers)
    return new


def check_watched(schedules: Mapping[str, Schedule], known: Iterable[str]) -> None:
    """Raise ConfigError where a schedule reads a metric that there is not."""
    known = set(known)
    for full, schedule in schedules.items():
        for name in schedule.watches:
            if name not in known:
                raise ConfigError(
                    f"the schedule of {full} reads the metric {name!r}, which is no number of this run"
                    f"{did_you_mean(name, known)}"
                )


def _numbers(full: str, schedule: Schedule, hyper: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: hyper[f"{full}.{k}"] for k in schedule.numbers}
