"""Setting: a field of a recipe, with its help and its checks. Imports no torch, so that help is quick."""

from __future__ import annotations

import math
from typing import Any

from attrs import Attribute, field


def refusal(message: str, word: str = "", known: Any = ()) -> Exception:
    """A ConfigError; imported only here, because whatever imports the library imports torch."""
    from pipeline.errors import ConfigError, did_you_mean

    return ConfigError(message + (did_you_mean(word, known) if word else ""))


def setting(default: Any, help: str, *checks: Any, fixed: bool = False) -> Any:
    """`fixed`: what a run that goes on can't have otherwise."""
    return field(default=default, validator=[_written, *checks], metadata={"help": help, "fixed": fixed})


def flag(name: str) -> str:
    """The command line's name of a setting."""
    return "--" + name.replace("_", "-")


def one_of(known: Any) -> Any:
    def check(recipe: Any, attribute: Attribute[Any], value: str) -> None:
        if value is not None and value not in known:
            raise refusal(f"unknown {attribute.name.replace('_', ' ')} {value!r}", value, known)

    return check


MOST, DEEP = 10**9, 10_000
"""Whole numbers are at most so large where nothing else is said, and layers at most so many."""
LARGE = 1e30
"""The largest of other numbers, of which a float32 has room for the square root of a sum."""
WIDE = 2**62
"""Of a width, which memory bounds."""


def _written(_: Any, attribute: Attribute[Any], value: Any) -> None:
    """Refuse a text that no file could hold."""
    try:
        good = not isinstance(value, str) or b"\0" not in value.encode()
    except UnicodeEncodeError:
        good = False
    if not good:
        raise refusal(f"{flag(attribute.name)} {value!r} is no text: it has a NUL, or is no UTF-8")


def below_one(_: Any, attribute: Attribute[Any], value: float | None) -> None:
    if value is not None and not 0 <= value < 1:
        raise refusal(f"{flag(attribute.name)} {value} is out of range: it must be from 0 to below 1")


def at_least(low: float, above: bool = False, most: float | None = None) -> Any:
    """A number from `low` on, or a few; of a whole one up to MOST, of others up to LARGE, where `most` is not given."""

    def check(_: Any, attribute: Attribute[Any], value: Any) -> None:
        if isinstance(value, tuple) and len(value) > DEEP:
            raise refusal(f"{flag(attribute.name)} has {len(value):,} widths; it must be at most {DEEP:,}")
        for number in value if isinstance(value, tuple) else (value,):
            if number is None:
                continue
            if number != number or number in (math.inf, -math.inf) or number < low or (above and number == low):
                bound = f"above {low}" if above else f"at least {low}"
                raise refusal(f"{flag(attribute.name)} {number} is out of range: it must be {bound}")
            if number > (end := most or (MOST if isinstance(number, int) else LARGE)):
                raise refusal(f"{flag(attribute.name)} {number} is out of range: it must be at most {end:,}")

    return check


def not_empty(_: Any, attribute: Attribute[Any], value: tuple[int, ...]) -> None:
    if not value:
        raise refusal(f"{flag(attribute.name)} is empty, but needs at least one width")
