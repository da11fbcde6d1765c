"""Rule: what all update rules share."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.schedules import Schedule
from pipeline.stage import Number

Params: TypeAlias = dict[str, Tensor]
"""Tensors by parameter name: the parameters themselves, their gradients, or what a rule remembers of each."""


def positive(stage: str, **hyper: Number) -> None:
    for name, value in hyper.items():
        number = value.base if isinstance(value, Schedule) else value
        if not isinstance(number, int | float) or isinstance(number, bool):
            raise ConfigError(f"{stage}: {name}={number!r} is neither a number nor a Schedule")
        if not number >= 0 or number == float("inf"):
            raise ConfigError(f"{stage}: {name}={number} is not a finite number of at least 0")


def below_one(stage: str, **hyper: Number) -> None:
    positive(stage, **hyper)
    for name, value in hyper.items():
        if not isinstance(value, Schedule) and value >= 1:
            raise ConfigError(f"{stage}: {name}={value} is not below 1")


def zeros(params: Params) -> Params:
    return {k: torch.zeros_like(p) for k, p in params.items()}


def count_of(params: Params) -> Tensor:
    # On the parameters' device, also where a step is mapped over them.
    device = next(iter(params.values())).device if params else None
    return torch.zeros((), dtype=torch.int64, device=device)
