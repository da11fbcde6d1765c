"""Recipes: what a run is made of, by name; each with settings of its own. The one home of their defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attrs import fields, frozen

from cli.recipes import code, data, model
from cli.recipes.loss import LOSSES, Loss
from cli.recipes.pipeline import Whole
from cli.recipes.rule import OPTIMIZERS, Rule
from cli.recipes.run import Run
from cli.recipes.schedule import SCHEDULES, Course


@frozen
class Table:
    """A table of the settings: which recipes it may name, and by which key."""

    key: str
    """The setting that names the recipe; its flag is the table's name."""
    known: Mapping[str, type]
    help: str
    chosen: Callable[[str], type | None]
    """From a name to its recipe."""

    @property
    def recipes(self) -> list[type]:
        """Each class once."""
        return list(dict.fromkeys(self.known.values()))


def _by_name(known: Mapping[str, type]) -> Callable[[str], type | None]:
    return known.get


def _data(source: str) -> type | None:
    kind = data.kind_of(source)
    return data.Custom if kind == "custom" else data.DATA[kind] if kind else None


def _model(name: str) -> type | None:
    return model.MODELS.get(name) or (model.Custom if code.is_code(name) else None)


_RULES: dict[str, type] = dict.fromkeys(OPTIMIZERS, Rule)
_COURSES: dict[str, type] = dict.fromkeys(SCHEDULES, Course)
_LOSSES: dict[str, type] = dict.fromkeys(LOSSES, Loss)
TABLES: dict[str, Table] = {
    "data": Table(
        "source",
        {**data.DATA, "": data.Custom},
        "digits, random, sklearn:NAME, a file or folder (table, arrays, idx, images, text, tokens), KIND:PATH, or "
        "FILE.py:FUNCTION that gives a Dataset",
        _data,
    ),
    "model": Table(
        "name", {**model.MODELS, "": model.Custom}, f"{', '.join(model.MODELS)}, or FILE.py:FUNCTION", _model
    ),
    "optimizer": Table("name", _RULES, "", _by_name(_RULES)),
    "schedule": Table("name", _COURSES, "", _by_name(_COURSES)),
    "loss": Table("name", _LOSSES, "", _by_name(_LOSSES)),
    "pipeline": Table("name", {"": Whole}, "", lambda name: Whole if code.is_code(name) else None),
    "run": Table("", {"": Run}, "", _by_name({"": Run})),
}


def settings(recipe: type) -> dict[str, Any]:
    """The settings of a recipe by name, as attrs has them."""
    return {f.name: f for f in fields(recipe) if f.name != "options"}


def home(name: str) -> tuple[str, str] | None:
    """The table and the key of a setting, by its whole name `optimizer.lr`, or by that of its flag, `lr` or `data`."""
    table, dot, key = name.partition(".")
    if dot:
        return (table, key) if table in TABLES else None
    if name in TABLES and TABLES[name].key:
        return name, TABLES[name].key
    for table, t in TABLES.items():
        if name != t.key and any(name in settings(recipe) for recipe in t.recipes):
            return table, name
    return None


def flag_name(table: str, key: str) -> str:
    """What a setting is called where it stands alone: as its flag, in words, and in older files."""
    return table if key == TABLES[table].key else key
