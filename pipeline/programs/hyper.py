"""Hyperparameters in State: their first values, the memories of their schedules, and their values at a step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from pipeline.element import Number
from pipeline.errors import ConfigError, WiringError, did_you_mean
from pipeline.schedules import Schedule
from pipeline.stage import Stage
from pipeline.tree import Tree


def hyperparameters(stages: Iterable[Stage]) -> dict[str, Number]:
    """Hyperparameters of all stages, by their names in State: "update.sgd.lr"."""
    return {f"{s.name}.{name}": value for s in stages for name, value in s.hyper.items()}


def scheduled(stages: Iterable[Stage]) -> dict[str, Schedule]:
    """Hyperparameters with a schedule."""
    return {full: value for full, value in hyperparameters(stages).items() if isinstance(value, Schedule)}


def lasting(stages: Iterable[Stage]) -> list[Stage]:
    """Stages with memory in State. The sums of a metric of evaluation alone are none."""
    return [s for s in stages if s.remembers and (s.finish is None or s.runs(True))]


def remembering(stages: Iterable[Stage]) -> dict[str, Schedule]:
    """Hyperparameters whose schedule has a memory, kept in State.memory under the same name.

    Raises WiringError if a stage with a memory has that name.
    """
    stages = tuple(stages)
    found = {full: s for full, s in scheduled(stages).items() if s.memory}
    for s in stages:
        if s.name in found and s.remembers:
            raise WiringError(f"stage {s.name!r} is named as a scheduled hyperparameter; give it another name")
    return found


def hyper_names(stages: Iterable[Stage]) -> set[str]:
    """Names in State, including the numbers of schedules."""
    found = hyperparameters(stages)
    numbers = {f"{full}.{k}" for full, value in found.items() if isinstance(value, Schedule) for k in value.numbers}
    return {*found, *numbers}


def hyper_numbers(stages: Iterable[Stage], steps: int | None, batches: int | None) -> dict[str, float]:
    """First values of all, in a run of `steps` with `batches` an epoch."""
    numbers: dict[str, float] = {}
    for full, value in hyperparameters(stages).items():
        if not isinstance(value, Schedule):
            numbers[full] = float(value)
            continue
        numbers[full] = float(value.base)
        numbers |= {f"{full}.{k}": number for k, number in value.filled(steps, batches, full).items()}
    return numbers


def outlived(stages: Iterable[Stage], hyper: Mapping[str, Tensor], steps: int, batches: int | None) -> dict[str, float]:
    """Lengths by name, as they would be in a run of `steps`, of schedules in State that end before it."""
    fresh, longer = (hyper_numbers(stages, n, batches) for n in (steps, 2 * steps))
    return {k: n for k, n in fresh.items() if n != longer[k] and k in hyper and bool((hyper[k] < n).any())}


def hyper_value(full: str, number: Any, tree: Mapping[str, Tree]) -> Tensor:
    """A hyperparameter at this step: 0-d float64."""
    hyper = tree["hyper"]
    value: Tensor = hyper[full]
    if isinstance(number, Schedule):
        memory = tree["memory"][full] if number.memory else {}
        value = value * number.apply(tree["step"], _numbers(full, number, hyper), memory)
    return value


def hyper_values(stages: Iterable[Stage], tree: Mapping[str, Tree]) -> dict[str, dict[str, Tensor]]:
    """Hyperparameters of each stage at this step, schedules applied: 0-d float64."""
    return {s.name: {h: hyper_value(f"{s.name}.{h}", n, tree) for h, n in s.hyper.items()} for s in stages}


def observed_memory(stages: Iterable[Stage], tree: Mapping[str, Tree], metrics: Mapping[str, Any]) -> dict[str, Tree]:
    """Memories of schedules after an epoch with these metrics; empty if no schedule reads any."""
    new: dict[str, Tree] = {}
    for full, schedule in scheduled(stages).items():
        if schedule.observe is not None:
            check_watched({full: schedule}, {k for k, v in metrics.items() if isinstance(v, int | float)})
            numbers = _numbers(full, schedule, tree["hyper"])
            new[full] = schedule.observe(tree["memory"][full], metrics, **numbers)
    return new


def check_watched(schedules: Mapping[str, Schedule], known: Iterable[str]) -> None:
    """Raise ConfigError if a schedule reads an unknown metric."""
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
