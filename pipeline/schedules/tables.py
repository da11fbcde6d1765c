"""Schedules of RealMLP, a network for tables."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.schedules.lengths import RUN
from pipeline.schedules.schedule import Schedule, at_least, schedule


def coslog(base: float, steps: float = RUN, cycles: float = 4.0) -> Schedule:
    """Cosines from 0 to the base and back to 0, each twice as long as the last:
    `(1 - cos(2 pi log2(1 + (2**cycles - 1) t))) / 2`, with t from 0 to 1.

    Source: Holzmüller, Grinsztajn and Steinwart, Better by default: strong pre-tuned MLPs and boosted trees on tabular
    data (2024), section 3: coslog4.

    >>> [round(coslog(1.0, steps=15).at(s), 3) for s in (0, 1, 3, 5, 7, 11, 15)]
    [0.0, 0.0, 0.0, 0.93, 0.0, 0.93, 0.0]
    """
    at_least(0, above=True, steps=steps, cycles=cycles)

    def factor(step: Tensor, steps: Any = steps, cycles: Any = cycles) -> Any:
        done = (step / steps).clamp(max=1.0)
        return 0.5 * (1.0 - torch.cos(2.0 * math.pi * torch.log2(1.0 + (2.0**cycles - 1.0) * done)))

    return schedule(base, factor)


def flat_cosine(base: float, steps: float = RUN, flat: float = 0.5) -> Schedule:
    """The base for the share `flat` of the run, then half a cosine down to 0. Source: as for `coslog`, flat_cos.

    >>> [round(flat_cosine(1.0, steps=8).at(s), 3) for s in (0, 4, 5, 6, 8, 9)]
    [1.0, 1.0, 0.854, 0.5, 0.0, 0.0]
    """
    at_least(0, above=True, steps=steps)
    at_least(0, flat=flat)
    if flat >= 1:
        raise ConfigError(f"a schedule's flat={flat} is not below 1; schedules.constant({base:g}) never falls")

    def factor(step: Tensor, steps: Any = steps, flat: Any = flat) -> Any:
        done = ((step / steps - flat) / (1.0 - flat)).clamp(0.0, 1.0)
        return 0.5 * (1.0 + torch.cos(math.pi * done))

    return schedule(base, factor)
