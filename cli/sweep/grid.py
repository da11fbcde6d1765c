"""Axes: the settings of a sweep that have several values. Imports no torch, so that help is quick."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from cli.flags import kind
from cli.recipes import TABLES
from cli.recipes.setting import flag, refusal

RUN = 1 << 20
"""Bytes of a run of a sweep before it begins, about."""


@frozen
class Axis:
    """A setting with several values, or with a range of them, of which some are drawn."""

    name: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    def drawn(self, chance: random.Random) -> Any:
        """One of the values, or a number from the range; of a logarithmic one, evenly by its logarithm."""
        if self.values:
            return chance.choice(self.values)
        if self.whole and not self.log:
            return chance.randint(round(self.low), round(self.high))
        value = _between(self.low, self.high, chance.random(), self.log)
        return round(value) if self.whole else value


def parted(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[Axis]]:
    """Options as text: those with one value, as their settings have it, and those with several.

    >>> parted({"lr": "0.01..1:log:3", "clip": "1.0"})
    ({'clip': 1.0}, [Axis(name='lr', values=(0.01, 0.1, 1.0), low=0.0, high=0.0, log=False, whole=False)])
    """
    single: dict[str, Any] = {}
    axes: list[Axis] = []
    for name, text in given.items():
        wanted = kind(name) if isinstance(text, str) else None
        if wanted in (int, float) and ".." in text:
            axes.append(_range(name, text, wanted))
        elif "," in str(text) and (wanted in (int, float) or (wanted is str and name in TABLES)):
            values = tuple(_value(name, part.strip(), wanted) for part in text.split(",") if part.strip())
            axes.append(Axis(name, tuple(dict.fromkeys(values))))
        else:
            single[name] = _value(name, text, wanted) if wanted in (int, float) else text
    return single, axes


def _value(name: str, text: str, wanted: Any) -> Any:
    try:
        return wanted(text)
    except ValueError:
        raise refusal(f"{flag(name)} {text!r} is no {'whole number' if wanted is int else 'number'}") from None


def _range(name: str, text: str, wanted: Any) -> Axis:
    ends, *rest = text.split(":")
    low, _, high = ends.partition("..")
    a, b = _value(name, low, float), _value(name, high, float)
    log = rest[:1] == ["log"]
    count = rest[1:] if log else rest
    if (
        len(count) > 1
        or (count and not (count[0].isdecimal() and len(count[0]) < 20 and int(count[0]) > 1))
        or not -math.inf < a < b < math.inf
        or (log and a <= 0)
    ):
        raise refusal(
            f"{flag(name)} {text!r} is no range such as 0.001..1:log:16, 0.1..0.9:5 or, with --random, 0.1..1"
        )
    whole = wanted is int
    if not count:
        return Axis(name, (), a, b, log, whole)
    check_runs(int(count[0]))
    steps = [i / (int(count[0]) - 1) for i in range(int(count[0]))]
    values = [_between(a, b, step, log) for step in steps]
    return Axis(name, tuple(dict.fromkeys(round(v) if whole else float(f"{v:.12g}") for v in values)))


def check_runs(count: int) -> None:
    """Raise ConfigError for so many runs that they do not fit in memory."""
    if count * RUN > RUN << 10:
        from pipeline import memory
        from pipeline.errors import ConfigError

        memory.check(count * RUN, f"a sweep of {count:,} runs", instead="try fewer values", error=ConfigError)


def _between(low: float, high: float, share: float, log: bool) -> float:
    return math.exp(math.log(low) + share * math.log(high / low)) if log else low + share * (high - low)


def combinations(axes: Sequence[Axis], draws: int | None, seed: int, seeds: int = 1) -> list[dict[str, Any]]:
    """All combinations of the values, or so many that are drawn, the same ones by the same seed."""
    check_runs(seeds * (draws or math.prod(len(a.values) for a in axes)))
    if draws is not None:
        chance = random.Random(seed)
        return [{a.name: a.drawn(chance) for a in axes} for _ in range(draws)]
    for a in axes:
        if not a.values:
            raise refusal(f"{flag(a.name)} has no number of values: write LOW..HIGH:N, or add --random N")
    return [dict(zip([a.name for a in axes], row, strict=True)) for row in itertools.product(*(a.values for a in axes))]
