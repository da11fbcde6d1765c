"""Cycles: restarts, and one cycle of learning rate and momentum."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.schedules.lengths import RUN
from pipeline.schedules.schedule import Schedule, at_least, one_of, schedule

STRATEGIES = ("cos", "linear")


def cosine_restarts(base: float, period: float, mult: float = 1, floor: float = 0.0) -> Schedule:
    """Repeat half a cosine from the base to `floor * base`; each cycle is `mult` times as long as the previous one.

    torch's CosineAnnealingWarmRestarts(T_0=period, T_mult=mult, eta_min=floor * base); restarts are at whole steps.
    Source: Loshchilov and Hutter, SGDR (2017), equation 5.

    >>> [round(cosine_restarts(1.0, period=2, mult=2).at(s), 4) for s in range(7)]
    [1.0, 0.5, 1.0, 0.8536, 0.5, 0.1464, 1.0]
    """
    at_least(1, period=period, mult=mult)

    def factor(step: Tensor, period: Any = period, mult: Any = mult, floor: Any = floor) -> Any:
        grows = mult > 1.0
        m = torch.where(grows, mult, 2.0 * torch.ones_like(mult))  # 2 avoids a division by 0; unused then

        def start(n: Tensor) -> Tensor:
            """The step at which the n-th cosine begins."""
            return torch.round(period * torch.where(grows, (m**n - 1.0) / (m - 1.0), n))

        n = torch.floor(torch.where(grows, torch.log1p(step / period * (m - 1.0)) / torch.log(m), step / period))
        # Rounding of the logarithm may put n off by one.
        n = n + (start(n + 1.0) <= step).double() - (start(n) > step).double()
        done = (step - start(n)) / (start(n + 1.0) - start(n)).clamp(min=1.0)
        return floor + (1.0 - floor) * 0.5 * (1.0 + torch.cos(math.pi * done))

    return schedule(base, factor)


def one_cycle(
    highest: float, steps: float = RUN, *, pct_start: float = 0.3, div_factor: float = 25.0,
    final_div_factor: float = 1e4, anneal_strategy: str = "cos",
) -> Schedule:  # fmt: skip
    """Rise from `highest / div_factor` over `pct_start` of the run, then fall to that start / `final_div_factor`.

    torch's OneCycleLR(max_lr=highest, total_steps=steps), which ends at step `steps - 1`; constant afterwards.
    `anneal_strategy` is "cos" or "linear". `one_cycle_momentum` is the matching momentum.
    Source: Smith and Topin, Super-Convergence (2018).

    >>> [round(one_cycle(1.0, steps=5, pct_start=0.6, anneal_strategy="linear").at(s), 4) for s in range(5)]
    [0.04, 0.52, 1.0, 0.5, 0.0]
    """
    at_least(0, above=True, steps=steps, div_factor=div_factor, final_div_factor=final_div_factor)
    anneal = _annealing(anneal_strategy, pct_start)

    def factor(
        step: Tensor, steps: Any = steps, pct_start: Any = pct_start, div_factor: Any = div_factor,
        final_div_factor: Any = final_div_factor,
    ) -> Any:  # fmt: skip
        start = 1.0 / div_factor
        return _cycle(step, steps, pct_start, start, torch.ones_like(start), start / final_div_factor, anneal)

    return schedule(highest, factor)


def one_cycle_momentum(
    max_momentum: float = 0.95, base_momentum: float = 0.85, steps: float = RUN, *, pct_start: float = 0.3,
    anneal_strategy: str = "cos",
) -> Schedule:  # fmt: skip
    """Fall from `max_momentum` to `base_momentum` while the learning rate of `one_cycle` rises, then rise again.

    As torch's OneCycleLR does with the momentum of SGD or beta1 of Adam.

    >>> [round(one_cycle_momentum(steps=5, pct_start=0.6, anneal_strategy="linear").at(s), 4) for s in range(5)]
    [0.95, 0.9, 0.85, 0.9, 0.95]
    """
    at_least(0, above=True, steps=steps, max_momentum=max_momentum)
    anneal = _annealing(anneal_strategy, pct_start)

    def factor(
        step: Tensor, steps: Any = steps, pct_start: Any = pct_start, lowest: Any = base_momentum / max_momentum
    ) -> Any:
        one = torch.ones_like(lowest)
        return _cycle(step, steps, pct_start, one, lowest, one, anneal)

    return schedule(max_momentum, factor)


Anneal = Callable[[Tensor, Tensor, Tensor], Tensor]


def _annealing(strategy: str, pct_start: float) -> Anneal:
    """(first, last, progress in [0, 1]) -> the value between."""
    one_of("anneal_strategy", strategy, STRATEGIES)
    if not 0 <= pct_start <= 1:
        raise ConfigError(f"a schedule's pct_start={pct_start} is not from 0 to 1")
    if strategy == "cos":
        return lambda first, last, done: last + (first - last) * 0.5 * (1.0 + torch.cos(math.pi * done))
    return lambda first, last, done: first + (last - first) * done


def _cycle(
    step: Tensor, steps: Tensor, pct: Tensor, first: Tensor, middle: Tensor, last: Tensor, anneal: Anneal
) -> Tensor:
    """The two phases of OneCycleLR."""
    turn, end = pct * steps - 1.0, steps - 1.0
    up = step / torch.where(turn > 0, turn, 1.0)
    down = ((step - turn) / torch.where(end > turn, end - turn, 1.0)).clamp(max=1.0)
    return torch.where(step <= turn, anneal(first, middle, up), anneal(middle, last, down))
