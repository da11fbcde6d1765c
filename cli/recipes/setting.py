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
    return field(default=default, validator=list(checks), metadata={"help": help, "fixed": fixed})


def flag(name: str) -> str:
    """The command line's name of a setting."""
    return "--" + name.replace("_", "-")


def one_of(known: Any) -> Any:
    def check(recipe: Any, attribute: Attribute[Any], value: str) -> None:
        if value is not None and value not in known:
            raise refusal(f"unknown {attribute.name.replace('_', ' ')} {value!r}", value, known)

    return check


def below_one(_: Any, attribute: Attribute[Any], value: float | None) -> None:
    if value is not None and not 0 <= value < 1:
        raise refusal(f"{flag(attribute.name)} {value} is out of range: it must be from 0 to below 1")


def at_least(low: float, above: bool = False) -> Any:
    def check(_: Any, attribute: Attribute[Any], value: Any) -> None:
        for number in value if isinstance(value, tuple) else (value,):
            if number is None:
                continue
            if not math.isfinite(number) or number < low or (above and number == low):
                bound = f"above {low}" if above else f"at least {low}"
                raise refusal(f"{flag(attribute.name)} {number} is out of range: it must be {bound}")

    return check


def not_empty(_: Any, attribute: Attribute[Any], value: tuple[int, ...]) -> None:
    if not value:
        raise refusal(f"{flag(attribute.name)} is empty, but needs at least one width")
