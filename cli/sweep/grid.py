"""The settings of a sweep that have several values. Imports no torch."""

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

RUN_BYTES = 1 << 20
"""Memory of a run before it trains, roughly."""


@frozen
class Axis:
    """A setting with several values, or with a range to draw from."""

    name: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    integer: bool = False

    def draw(self, rng: random.Random) -> Any:
        """One of the values, or a number of the range, uniform or log-uniform."""
        if self.values:
            return rng.choice(self.values)
        if self.integer and not self.log:
            return rng.randint(round(self.low), round(self.high))
        value = _between(self.low, self.high, rng.random(), self.log)
        return round(value) if self.integer else value

    def end(self, value: Any) -> str | None:
        """The end of the axis at which a number lies, "lower" or "upper": the last of three values or more, or a
        twentieth of the range.

        >>> Axis("lr", (0.01, 0.1, 1.0)).end(1.0), Axis("lr", low=0.001, high=1.0, log=True).end(0.5)
        ('upper', None)
        """
        if not all(isinstance(v, int | float) for v in (value, *self.values)) or 0 < len(self.values) < 3:
            return None
        if self.values:
            low, high = min(self.values), max(self.values)
        else:
            low, high = (_between(self.low, self.high, share, self.log) for share in (0.05, 0.95))
        return "lower" if value <= low else "upper" if value >= high else None


def split_axes(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[Axis]]:
    """Split settings as text into fixed ones, converted to their types, and settings with several values.

    >>> split_axes({"lr": "0.01..1:log:3", "clip": "1.0"})
    ({'clip': 1.0}, [Axis(name='lr', values=(0.01, 0.1, 1.0), low=0.0, high=0.0, log=False, integer=False)])
    """
    single: dict[str, Any] = {}
    axes: list[Axis] = []
    for name, text in given.items():
        type_ = kind(name) if isinstance(text, str) else None
        if type_ in (int, float) and ".." in text:
            axes.append(_range(name, text, type_))
        elif "," in str(text) and (type_ in (int, float) or (type_ is str and name in TABLES and name != "data")):
            values = tuple(_value(name, part.strip(), type_) for part in text.split(",") if part.strip())
            axes.append(Axis(name, tuple(dict.fromkeys(values))))
        else:
            single[name] = _value(name, text, type_) if type_ in (int, float) else text
    return single, axes


def _value(name: str, text: str, type_: Any) -> Any:
    try:
        return type_(text)
    except ValueError:
        raise refusal(f"{flag(name)} {text!r} is no {'whole number' if type_ is int else 'number'}") from None


def _range(name: str, text: str, type_: Any) -> Axis:
    """An axis from LOW..HIGH[:log][:COUNT]."""
    ends, *rest = text.split(":")
    low, _, high = ends.partition("..")
    a, b = _value(name, low, float), _value(name, high, float)
    log = rest[:1] == ["log"]
    count = rest[1:] if log else rest
    valid_count = not count or (count[0].isdecimal() and len(count[0]) < 20 and int(count[0]) > 1)
    if len(count) > 1 or not valid_count or not -math.inf < a < b < math.inf or (log and a <= 0):
        raise refusal(
            f"{flag(name)} {text!r} is no range such as 0.001..1:log:16, 0.1..0.9:5 or, with --random, 0.1..1"
        )
    integer = type_ is int
    if not count:
        return Axis(name, (), a, b, log, integer)
    n = int(count[0])
    check_memory(n)
    values = [_between(a, b, i / (n - 1), log) for i in range(n)]
    return Axis(name, tuple(dict.fromkeys(round(v) if integer else float(f"{v:.12g}") for v in values)))


def check_memory(runs: int) -> None:
    """Raise ConfigError if so many runs do not fit in memory."""
    if runs > 1 << 10:
        from pipeline import memory
        from pipeline.errors import ConfigError

        memory.check(runs * RUN_BYTES, f"a sweep of {runs:,} runs", instead="try fewer values", error=ConfigError)


def _between(low: float, high: float, share: float, log: bool) -> float:
    return math.exp(math.log(low) + share * math.log(high / low)) if log else low + share * (high - low)


def combinations(axes: Sequence[Axis], draws: int | None, seed: int, seeds: int = 1) -> list[dict[str, Any]]:
    """All combinations of the values, or `draws` random ones, a function of the seed."""
    check_memory(seeds * (draws or math.prod(len(a.values) for a in axes)))
    if draws is not None:
        rng = random.Random(seed)
        return [{a.name: a.draw(rng) for a in axes} for _ in range(draws)]
    for a in axes:
        if not a.values:
            raise refusal(f"{flag(a.name)} has no number of values: write LOW..HIGH:N, or add --random N")
    return [dict(zip([a.name for a in axes], row, strict=True)) for row in itertools.product(*(a.values for a in axes))]
