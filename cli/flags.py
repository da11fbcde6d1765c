"""Flags: the options of the command line, made from the settings of the recipes. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

import click
from attrs import frozen

from cli import completion, recipes
from cli.help import SECTIONS, SHORT, SWEPT, Option
from cli.recipes import TABLES
from cli.recipes.setting import SET_ONLY, flag


@frozen
class Flag:
    """A setting on the command line."""

    section: str
    kind: type
    """bool, int, float, str, tuple for a list of widths, or list for an option given several times."""
    default: str
    """The end of its help."""
    help: str
    known: Collection[str]
    """Its values, as far as they have names."""


def settings(
    command: Callable[..., Any],
    bare: Mapping[str, str] = MappingProxyType({}),
    several: bool = False,
    section: str | None = None,
) -> Callable[..., Any]:
    """Add an option for each setting that has a flag. A missing option is None, so that a config file decides.

    - `bare`: flags with an optional value, "" if missing -> addition to their help.
    - `several`: take numbers as text, which may hold several values.
    - `section`: the one section to take, without its choice of a recipe.
    """
    for name, f in reversed(flags().items()):
        if section is not None and (f.section != section or name in TABLES):
            continue
        names = [f"{flag(name)}/--no-{flag(name)[2:]}"] if f.kind is bool else [flag(name)]
        short = SHORT.get(name) if name in SWEPT or not several else None
        alone: dict[str, Any] = {"is_flag": False, "flag_value": ""} if name in bare else {}
        if f.kind is list:
            alone = {"multiple": True, "callback": lambda context, option, value: list(value) or None}
        command = click.option(
            *names,
            cls=Option,
            section=f.section,
            short=short and short + bare.get(name, ""),
            type=str if f.kind in (tuple, list) or (several and f.kind is not bool) else f.kind,
            metavar=None if f.kind is bool else {int: "N", float: "X"}.get(f.kind, name.rpartition("_")[2].upper()),
            default=None,
            shell_complete=None if f.kind is bool else completion.of_setting(name, f.known),
            help=f.help + bare.get(name, "") + f.default,
            **alone,
        )(command)
    about = "any setting, such as optimizer.lr=0.01; flags win"
    return click.option("--set", "assigned", multiple=True, metavar="NAME=VALUE", help=about)(command)


def flags() -> dict[str, Flag]:
    """Each setting that has a flag, by name. Its help names the recipes that have it, unless all of its table do."""
    known: dict[str, Flag] = {}
    for table, t in TABLES.items():
        section = SECTIONS.get(table, "")
        if t.key and table not in SET_ONLY:
            f = recipes.settings(t.recipes[0])[t.key]
            about = t.help or f.metadata["help"]
            known[table] = Flag(
                section, str, "" if "[default:" in about else f"  [default: {f.default}]", about, t.names
            )
        for recipe in t.recipes:
            for key, f in recipes.settings(recipe).items():
                if key == t.key or key in known or key in SET_ONLY:
                    continue
                having = {n: recipes.settings(r)[key] for n, r in t.known.items() if n and key in recipes.settings(r)}
                only = "" if len(having) == len([n for n in t.known if n]) else f"{', '.join(having)}: "
                default = _default(f, {n: h for n, h in having.items() if not getattr(t.known[n], "picks", False)})
                known[key] = Flag(
                    SECTIONS.get(key, section), type_of(f), default, only + f.metadata["help"], f.metadata["known"]
                )
    return known


def _default(f: Any, having: Mapping[str, Any]) -> str:
    """The end of a setting's help: the default of the first recipe, and those of recipes that differ, by name."""
    if "[default:" in f.metadata["help"]:
        return ""
    by_value: dict[Any, list[str]] = {f.default: []}
    for name, other in having.items():
        by_value.setdefault(other.default, []).append(name)
    if len(by_value) == 1 and f.default in (None, "", False, ()):
        return ""
    first, *others = [(",".join(map(str, v)) if isinstance(v, tuple) else f"{v:g}" if isinstance(v, float) else v, n)
                      for v, n in by_value.items()]  # fmt: skip
    return "; ".join([f"  [default: {first[0]}", *(f"{v} for {', '.join(n)}" for v, n in others)]) + "]"


def kind(name: str) -> type | None:
    """The type of any setting, by its name or its whole name; None if it is unknown.

    >>> kind("lr"), kind("run.keep"), kind("model"), kind("no")
    (<class 'float'>, <class 'int'>, <class 'str'>, None)
    """
    table, key = recipes.home(name) or ("", "")
    known = [recipes.settings(r) for r in (TABLES[table].recipes if table else ())]
    return next((type_of(fields[key]) for fields in known if key in fields), None)


def type_of(field: Any) -> type:
    """The type of a setting: tuple for numbers, list for texts."""
    kinds: dict[str, type] = {"tuple[str": list, "tuple": tuple, "bool": bool, "int": int, "float": float, "str": str}
    return next(kind for word, kind in kinds.items() if word in str(field.type))


def words(name: str, value: Any) -> list[str]:
    """The arguments that give a setting a value: its flag, or --set.

    >>> words("hidden", (64, 32)), words("compile", False), words("keep", 3)
    (['--hidden', '64,32'], ['--no-compile'], ['--set', 'keep=3'])
    """
    if name in SET_ONLY or "." in name:
        return ["--set", f"{name}={str(value).lower() if isinstance(value, bool) else value}"]
    if isinstance(value, bool):
        return [flag(name) if value else flag(name).replace("--", "--no-", 1)]
    if kind(name) is list:
        return [word for one in value for word in (flag(name), one)]
    return [flag(name), ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
