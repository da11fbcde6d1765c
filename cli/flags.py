"""Flags: the options of the command line, made from the settings of the recipes. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import click
from attrs import frozen

from cli import recipes
from cli.recipes import TABLES
from cli.recipes.setting import SET_ONLY, flag

SECTIONS = {
    "data": "Data", "model": "Model", "finetune": "Model", "loss": "Loss and metrics",
    "optimizer": "Optimizer and schedule", "schedule": "Optimizer and schedule", "run": "Run", "folds": "Data",
    "best": "Loss and metrics", "accumulate": "Optimizer and schedule", "clip": "Optimizer and schedule",
    "ema": "Optimizer and schedule", "shard": "Processes",
}  # fmt: skip
"""Section of the help by setting, or else by its table."""


class Option(click.Option):
    """An option with a section of the help."""

    def __init__(self, *args: Any, section: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self.section = section


class SettingsCommand(click.Command):
    """A command whose options are settings: its help has sections, and names the settings without a flag."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        names = ", ".join(sorted(SET_ONLY))
        self.epilog = f"Settings without a flag, for --set: {names}. pipe init DATA writes a file that explains all."

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)) is not None:
                sections.setdefault(getattr(param, "section", "Options"), []).append(record)
        for name in sorted(sections, key=[*dict.fromkeys(SECTIONS.values()), *sections].index):
            with formatter.section(name):
                formatter.write_dl(sections[name])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as e:
            name = e.option_name.removeprefix("--").removeprefix("no-").replace("-", "_")
            if name not in SET_ONLY:
                raise
            raise click.NoSuchOption(
                e.option_name, f"no such option {e.option_name!r}; write --set {name}=VALUE", ctx=ctx
            ) from None


@frozen
class Flag:
    """A setting on the command line."""

    section: str
    kind: type
    """bool, int, float, str, tuple for a list of widths, or list for an option given several times."""
    default: Any
    help: str


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
        names = [f"{flag(name)}/--no-{name}"] if f.kind is bool else [flag(name)]
        shown = ",".join(map(str, f.default)) if isinstance(f.default, tuple) else f.default
        has_default = "[default:" in f.help or f.default in (None, "", False, ())
        default = "" if has_default else f"  [default: {shown}]".replace("True", "on")
        alone: dict[str, Any] = {"is_flag": False, "flag_value": ""} if name in bare else {}
        if f.kind is list:
            alone = {"multiple": True, "callback": lambda context, option, value: list(value) or None}
        command = click.option(
            *names,
            cls=Option,
            section=f.section,
            type=str if f.kind in (tuple, list) or (several and f.kind is not bool) else f.kind,
            metavar=None if f.kind is bool else {int: "N", float: "X"}.get(f.kind, name.upper()),
            default=None,
            help=f.help + bare.get(name, "") + default,
            **alone,
        )(command)
    about = "any setting, such as smoothing=0.1 or optimizer.lr=0.01; flags win over it"
    return click.option("--set", "assigned", multiple=True, metavar="NAME=VALUE", help=about)(command)


def flags() -> dict[str, Flag]:
    """Each setting that has a flag, by name. Its help names the recipes that have it, unless all of its table do."""
    known: dict[str, Flag] = {}
    for table, t in TABLES.items():
        section = SECTIONS.get(table, "")
        if t.key and table not in SET_ONLY:
            f = recipes.settings(t.recipes[0])[t.key]
            known[table] = Flag(section, str, f.default, t.help or f.metadata["help"])
        for recipe in t.recipes:
            for key, f in recipes.settings(recipe).items():
                if key == t.key or key in known or key in SET_ONLY:
                    continue
                having = [n for n, r in t.known.items() if n and key in recipes.settings(r)]
                only = "" if len(having) == len([n for n in t.known if n]) else f"{', '.join(having)}: "
                known[key] = Flag(SECTIONS.get(key, section), _type(f), f.default, only + f.metadata["help"])
    return known


def kind(name: str) -> type | None:
    """The type of any setting, by its name or its whole name; None if it is unknown.

    >>> kind("lr"), kind("run.keep"), kind("model"), kind("no")
    (<class 'float'>, <class 'int'>, <class 'str'>, None)
    """
    table, key = recipes.home(name) or ("", "")
    known = [recipes.settings(r) for r in (TABLES[table].recipes if table else ())]
    return next((_type(fields[key]) for fields in known if key in fields), None)


def _type(field: Any) -> type:
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
