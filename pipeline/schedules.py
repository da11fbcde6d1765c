"""Schedules: the factor that a hyperparameter is multiplied by at each step; pure functions of `step`.

A schedule stands where a number would: `update.sgd(lr=schedules.cosine(0.1, warmup=100))`. Its own numbers live in
State beside the base value, so a longer run or another warm-up is data too, not a new graph.

Shapes: `step` is a 0-d int64 tensor; every number arrives as a 0-d float64 tensor; the factor is a 0-d float64 tensor.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

RUN = math.nan
"""In place of a number of steps: the length of the whole run, which `fit` (or `init(steps=...)`) fills in."""


@frozen(eq=False)
class Schedule:
    """`base * factor(step, **numbers)`."""

    base: float
    factor: Callable[..., Any]
    numbers: Mapping[str, float]

    def at(self, step: int, steps: int | None = None) -> float:
        """The value at one step, as a float; `steps` is the run's length where the schedule needs it.

        >>> [round(cosine(0.1, steps=4).at(s), 4) for s in range(5)]
        [0.1, 0.0854, 0.05, 0.0146, 0.0]
        """
        numbers = {k: float(steps) if steps and math.isnan(v) else v for k, v in self.numbers.items()}
        tensors = {k: torch.tensor(v, dtype=torch.float64) for k, v in numbers.items()}
        return self.base * float(self.factor(torch.tensor(step), **tensors))


def schedule(base: float, factor: Callable[..., Any]) -> Schedule:
    """Any schedule: `factor(step, name=default, ...)` returns the factor; its defaults are numbers kept in State.

    >>> halve = schedule(0.1, lambda step, every=10.0: 0.5 ** (step // every))
    >>> halve.at(0), halve.at(10)
    (0.1, 0.05)
    """
    numbers = {n: float(p.default) for n, p in inspect.signature(factor).parameters.items() if n != "step"}
    return Schedule(base, factor, numbers)


def constant(base: float) -> Schedule:
    """The same value at every step."""
    return schedule(base, lambda step: torch.ones_like(step, dtype=torch.float64))


def linear(base: float, steps: float = RUN, start: float = 1 / 3, end: float = 1.0) -> Schedule:
    """From `start * base` to `end * base` in `steps` steps, then constant: torch's LinearLR; a warm-up by default."""

    def factor(step: Tensor, steps: Any = steps, start: Any = start, end: Any = end) -> Any:
        return start + (end - start) * (step / steps).clamp(max=1.0)

    return schedule(base, factor)


def step(base: float, every: float, gamma: float = 0.1) -> Schedule:
    """Times `gamma` after each `every` steps: torch's StepLR.

    >>> [round(step(1.0, every=2).at(s), 3) for s in range(5)]
    [1.0, 1.0, 0.1, 0.1, 0.01]
    """

    def factor(step: Tensor, every: Any = every, gamma: Any = gamma) -> Any:
        return gamma ** torch.floor(step / every)

    return schedule(base, factor)


def exponential(base: float, gamma: float, every: float = 1) -> Schedule:
    """Times `gamma` in `every` steps, smoothly: `gamma ** (step / every)`; torch's ExponentialLR for every=1."""

    def factor(step: Tensor, gamma: Any = gamma, every: Any = every) -> Any:
        return gamma ** (step / every)

    return schedule(base, factor)


def cosine(base: float, steps: float = RUN, warmup: float = 0, floor: float = 0.0) -> Schedule:
    """Linear warm-up from 0 over `warmup` steps, then half a cosine down to `floor * base` at `steps`.

    Without a warm-up it is torch's CosineAnnealingLR(T_max=steps, eta_min=floor * base) up to `steps`, and stays at the
    floor afterwards. Source: Loshchilov and Hutter, SGDR (2017), equation 5.
    """

    def factor(step: Tensor, steps: Any = steps, warmup: Any = warmup, floor: Any = floor) -> Any:
        done = ((step - warmup) / (steps - warmup).clamp(min=1.0)).clamp(0.0, 1.0)
        rising = step / torch.where(warmup > 0, warmup, torch.ones_like(warmup))
        falling = floor + (1.0 - floor) * 0.5 * (1.0 + torch.cos(math.pi * done))
        return torch.where(step < warmup, rising, falling)

    return schedule(base, factor)
