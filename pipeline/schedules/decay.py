"""Decay: schedules that fall from the base, or rise to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.schedules.lengths import RUN, share
from pipeline.schedules.schedule import Schedule, at_least, number, one_of, schedule


def constant(base: float) -> Schedule:
    """The same value at every step."""
    return schedule(base, lambda step: torch.ones_like(step, dtype=torch.float64))


def linear(base: float, steps: float = RUN, start: float = 1 / 3, end: float = 1.0) -> Schedule:
    """From `start * base` to `end * base` in `steps` steps, then constant: torch's LinearLR. By default a warm-up."""
    at_least(0, above=True, steps=steps)

    def factor(step: Tensor, steps: Any = steps, start: Any = start, end: Any = end) -> Any:
        return start + (end - start) * (step / steps).clamp(max=1.0)

    return schedule(base, factor)


def polynomial(base: float, steps: float = RUN, power: float = 1.0, end: float = 0.0) -> Schedule:
    """From the base to `end * base` in `steps` steps, as (1 - step / steps) ** power: torch's PolynomialLR if end=0.

    >>> [round(polynomial(1.0, steps=4, power=2.0).at(s), 4) for s in range(6)]
    [1.0, 0.5625, 0.25, 0.0625, 0.0, 0.0]
    """
    at_least(0, above=True, steps=steps, power=power)

    def factor(step: Tensor, steps: Any = steps, power: Any = power, end: Any = end) -> Any:
        return end + (1.0 - end) * (1.0 - (step / steps).clamp(max=1.0)) ** power

    return schedule(base, factor)


def step(base: float, every: float, gamma: float = 0.1) -> Schedule:
    """Multiply by `gamma` every `every` steps, as torch's StepLR.

    >>> [round(step(1.0, every=2).at(s), 3) for s in range(5)]
    [1.0, 1.0, 0.1, 0.1, 0.01]
    """
    at_least(0, above=True, every=every)

    def factor(step: Tensor, every: Any = every, gamma: Any = gamma) -> Any:
        return gamma ** torch.floor(step / every)

    return schedule(base, factor)


def multi_step(base: float, milestones: Sequence[float], gamma: float = 0.1) -> Schedule:
    """Multiply by `gamma` at each milestone, in steps, as torch's MultiStepLR.

    >>> [round(multi_step(1.0, [2, 3]).at(s), 3) for s in range(5)]
    [1.0, 1.0, 0.1, 0.01, 0.01]
    """

    def factor(step: Tensor, gamma: Tensor, **milestones: Tensor) -> Any:
        passed = torch.zeros_like(step, dtype=torch.float64)
        for milestone in milestones.values():
            passed = passed + (step >= milestone)
        return gamma**passed

    numbers = {f"milestone.{i}": number("milestones", m) for i, m in enumerate(milestones)}
    return Schedule(base, factor, {"gamma": number("gamma", gamma), **numbers})


def exponential(base: float, gamma: float, every: float = 1) -> Schedule:
    """Decay smoothly by `gamma` every `every` steps, `gamma ** (step / every)`: torch's ExponentialLR if every=1."""
    at_least(0, above=True, every=every)

    def factor(step: Tensor, gamma: Any = gamma, every: Any = every) -> Any:
        return gamma ** (step / every)

    return schedule(base, factor)


def cosine(base: float, steps: float = RUN, warmup: float = 0, floor: float = 0.0) -> Schedule:
    """Linear warm-up from 0 over `warmup` steps, then half a cosine down to `floor * base` at `steps`.

    Without a warm-up, torch's CosineAnnealingLR(T_max=steps, eta_min=floor * base), constant after `steps`.
    Source: Loshchilov and Hutter, SGDR (2017), equation 5.
    """

    def factor(step: Tensor, steps: Any = steps, warmup: Any = warmup, floor: Any = floor) -> Any:
        done = ((step - warmup) / (steps - warmup).clamp(min=1.0)).clamp(0.0, 1.0)
        rising = step / torch.where(warmup > 0, warmup, torch.ones_like(warmup))
        falling = floor + (1.0 - floor) * 0.5 * (1.0 + torch.cos(math.pi * done))
        return torch.where(step < warmup, rising, falling)

    return schedule(base, factor)


SHAPES = ("linear", "cosine", "sqrt")


def warmup_stable_decay(
    base: float, steps: float = RUN, warmup: float = 0.05, decay: float = 0.2, floor: float = 0.0, shape: str = "linear"
) -> Schedule:
    """Linear warm-up from 0, then the base, then decay to `floor * base` at the end: WSD, the trapezoid.

    `warmup` and `decay` are steps, or fractions of all steps if below 1. `shape` of the decay is "linear", "cosine" or
    "sqrt" (1 - sqrt of its progress). Sources: Hu et al., MiniCPM (2024), section 4; for the shapes,
    Hägele et al., Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations (2024).

    >>> [round(warmup_stable_decay(1.0, steps=10, warmup=2, decay=0.4).at(s), 3) for s in range(11)]
    [0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    at_least(0, warmup=warmup, decay=decay)
    one_of("shape", shape, SHAPES)
    rise, fall = share(warmup, steps), share(decay, steps)

    def factor(step: Tensor, steps: Any = steps, warmup: Any = rise, decay: Any = fall, floor: Any = floor) -> Any:
        rising = (step / warmup.clamp(min=1.0)).clamp(max=1.0)
        done = ((step - (steps - decay)) / decay.clamp(min=1.0)).clamp(0.0, 1.0)
        if shape == "cosine":
            done = 0.5 * (1.0 - torch.cos(math.pi * done))
        elif shape == "sqrt":
            done = torch.sqrt(done)
        return torch.where(step < warmup, rising, 1.0 - (1.0 - floor) * done)

    return schedule(base, factor)
