"""Setting: a field of a recipe, with its help and its checks. Imports no torch, so that help is quick."""

from __future__ import annotations

import math
from typing import Any

from attrs import Attribute, field


def refusal(message: str, word: str = "", known: Any = ()) -> Exception:
    """A ConfigError; imported here, because `pipeline` imports torch."""
    from pipeline.errors import ConfigError, did_you_mean

    return ConfigError(message + (did_you_mean(word, known) if word else ""))


def setting(default: Any, help: str, *checks: Any, fixed: bool = False) -> Any:
    """A field with help and checks; a resumed run can't change it if it is `fixed`."""
    known = [name for check in checks for name in getattr(check, "known", ())]
    bounds = {name: bound for check in checks for name, bound in getattr(check, "bounds", {}).items()}
    forms = [form for check in checks for form in getattr(check, "forms", ())]
    about = {"help": help, "fixed": fixed, "known": known, "bounds": bounds, "forms": forms}
    return field(default=default, validator=[_is_text, *checks], metadata=about)


SET_ONLY = frozenset({
    "activation", "augment", "beta2", "bias", "bidirectional", "bigrams", "dtype", "fold", "groups", "grow",
    "header", "heads", "init_sha256", "inputs", "k", "keep", "lora_alpha", "lora_dropout", "lora_full",
    "nesterov", "norm", "on_nonfinite", "pipeline", "positions", "qk_norm", "regularization", "rest_lr",
    "save_minutes", "size", "smoothing", "softcap", "split_seed", "steps_per_call", "strict", "telemetry",
    "tied", "time", "timeout", "whitening", "workers", "zero_init",
})  # fmt: skip
"""Settings too rare for a flag: --set NAME=VALUE and config files have them."""


def flag(name: str) -> str:
    """A setting's name on the command line.

    >>> flag("batch_size"), flag("keep")
    ('--batch-size', '--set keep')
    """
    return f"--set {name}" if name in SET_ONLY else "--" + name.replace("_", "-")


def given(name: str, value: Any) -> str:
    """A setting with its value on the command line.

    >>> given("batch_size", 0), given("keep", 0)
    ('--batch-size 0', '--set keep=0')
    """
    return f"{flag(name)}{'=' if name in SET_ONLY else ' '}{value}"


def one_of(known: Any) -> Any:
    def check(recipe: Any, attribute: Attribute[Any], value: str) -> None:
        if value is not None and value not in known:
            raise refusal(f"unknown {attribute.name.replace('_', ' ')} {value!r}", value, known)

    return knowing(check, known)


def knowing(check: Any, known: Any) -> Any:
    """A check that says which values it knows."""
    check.known = known
    return check


MOST, DEEP = 10**9, 10_000
"""Default maximum of whole numbers, and maximum of layers and of widths in a list."""
LARGE = 1e30
"""Default maximum of floats: a float32 holds its square root with room for a sum."""
WIDE = 2**62
"""Maximum width; memory is the real bound."""


def _out_of_range(name: str, value: Any, bound: str) -> Exception:
    return refusal(f"{given(name, value)} is out of range: it must be {bound}")


def _is_text(_: Any, attribute: Attribute[Any], value: Any) -> None:
    """Refuse text that no file can hold."""
    try:
        good = not isinstance(value, str) or b"\0" not in value.encode()
    except UnicodeEncodeError:
        good = False
    if not good:
        raise refusal(f"{given(attribute.name, repr(value))} is no text: it has a NUL, or is no UTF-8")


def bounded(check: Any, **bounds: Any) -> Any:
    """A check that says its bounds, as JSON schema names them."""
    check.bounds = {name: bound for name, bound in bounds.items() if bound is not None}
    return check


def below_one(_: Any, attribute: Attribute[Any], value: float | None) -> None:
    if value is not None and not 0 <= value < 1:
        raise _out_of_range(attribute.name, value, "from 0 to below 1")


bounded(below_one, minimum=0, exclusiveMaximum=1)


def at_least(low: float, above: bool = False, most: float | None = None) -> Any:
    """A number of at least `low` (`above`: greater), or a tuple of them; at most `most`, by default MOST or LARGE."""

    def check(_: Any, attribute: Attribute[Any], value: Any) -> None:
        if isinstance(value, tuple) and len(value) > DEEP:
            raise refusal(f"{flag(attribute.name)} has {len(value):,} widths; it must be at most {DEEP:,}")
        for number in value if isinstance(value, tuple) else (value,):
            if number is None:
                continue
            if not low <= number < math.inf or (above and number == low):
                raise _out_of_range(attribute.name, number, f"above {low}" if above else f"at least {low}")
            if number > (end := most or (MOST if isinstance(number, int) else LARGE)):
                raise _out_of_range(attribute.name, number, f"at most {end:,}")

    return bounded(check, **{"exclusiveMinimum" if above else "minimum": low}, maximum=most)


def not_empty(_: Any, attribute: Attribute[Any], value: tuple[int, ...]) -> None:
    if not value:
        raise refusal(f"{flag(attribute.name)} is empty, but needs at least one width")
