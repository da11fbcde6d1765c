"""Flags: the options of the command line, made from the settings of the recipes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import click
from attrs import frozen

from cli import recipes
from cli.recipes import TABLES
from cli.recipes.setting import flag


def kind(name: str) -> Any:
    """The type of a setting's flag: bool, int, float, str, or tuple of a list of widths; None where there is none."""
    f = _flags().get(name)
    return None if f is None else tuple if "tuple" in f.type else next(k for word, k in _KINDS if word in f.type)


def settings(
    command: Callable[..., Any], bare: Mapping[str, str] = MappingProxyType({}), several: bool = False
) -> Callable[..., Any]:
    """An option for each setting of each recipe. What is not given stays out, so that a config file may give it.

    Those in `bare` may stand without a value, which is "" then; what that does is added to their help. With `several`,
    numbers are taken as text, which may have several values.
    """
    for name, f in reversed(_flags().items()):
        kind = next(k for word, k in _KINDS if word in f.type)
        names = [f"{flag(name)}/--no-{name}"] if kind is bool else [flag(name)]
        shown = ",".join(map(str, f.default)) if isinstance(f.default, tuple) else f.default
        default = "" if f.default in (None, "", False, ()) else f"  [default: {shown}]".replace("True", "on")
        metavar = None if kind is bool else {int: "N", float: "X"}.get(kind, name.upper())
        alone: dict[str, Any] = {"is_flag": False, "flag_value": ""} if name in bare else {}
        if "tuple[str" in f.type:  # may be given several times
            alone = {"multiple": True, "callback": lambda context, option, value: list(value) or None}
        # A flag that is not given is None, and not False.
        command = click.option(
            *names,
            type=str if several and kind is not bool else kind,
            metavar=metavar,
            default=None,
            help=f.help + bare.get(name, "") + default,
            **alone,
        )(command)
    whole = "any setting by its whole name, such as optimizer.lr=0.01; flags win over it"
    return click.option("--set", "assigned", multiple=True, metavar="NAME=VALUE", help=whole)(command)


_KINDS: tuple[tuple[str, Any], ...] = (("tuple", str), ("bool", bool), ("int", int), ("float", float), ("str", str))
"""From a setting's type to that of its option; a list of widths is text."""


@frozen
class Flag:
    """A setting on the command line."""

    type: str
    default: Any
    help: str


def _flags() -> dict[str, Flag]:
    """Each setting by the name of its flag, with the recipes that have it, where not all of its table have."""
    found: dict[str, Flag] = {}
    for table, t in TABLES.items():
        if t.key:
            f = recipes.settings(t.recipes[0])[t.key]
            found[table] = Flag("str", f.default, t.help or f.metadata["help"])
        for recipe in t.recipes:
            for key, f in recipes.settings(recipe).items():
                if key != t.key and key not in found:
                    having = [n for n, r in t.known.items() if n and key in recipes.settings(r)]
                    of = "" if len(having) == len([n for n in t.known if n]) else f"{', '.join(having)}: "
                    found[key] = Flag(str(f.type), f.default, of + f.metadata["help"])
    return found
