"""Recipes: the parts of a run by name, each with its settings. The one home of their defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from attrs import fields, frozen

from cli.recipes import data, model
from cli.recipes.code import is_code
from cli.recipes.finetune import Finetune
from cli.recipes.loss import LOSSES, Loss
from cli.recipes.metric import Metrics
from cli.recipes.pipeline import OwnPipeline
from cli.recipes.rule import OPTIMIZERS, Rule
from cli.recipes.run import Run
from cli.recipes.schedule import SCHEDULES, Course


@frozen
class Table:
    """A table of the settings, such as [model]: one recipe for all names, or one for each."""

    recipe: type
    """The recipe of each name, or the base of the recipes in `names`."""
    names: Mapping[str, Any]
    """Known names -> an entry for `recipe`, or a recipe of its own (a class)."""
    key: str = ""
    """The setting that names the recipe; its flag is the table's name."""
    own: type | None = None
    """The recipe of the user's own code."""
    folder: type | None = None
    """The recipe of a folder."""
    help: str = ""

    @property
    def known(self) -> dict[str, type]:
        """Name -> recipe; "" is one without a name."""
        named = {n: entry if isinstance(entry, type) else self.recipe for n, entry in self.names.items()}
        return named | ({"": self.own} if self.own else {}) or {"": self.recipe}

    @property
    def recipes(self) -> list[type]:
        """Each class once, the default one first."""
        return list(dict.fromkeys(self.known.values()))

    @property
    def default(self) -> Any:
        """The default name or names."""
        return getattr(fields(self.recipe), self.key).default if self.key else None

    def chosen(self, name: str) -> type | None:
        """The recipe of a name; None if unknown."""
        if self.own is not None and is_code(name):
            return self.own
        if self.folder is not None and name not in self.names and os.path.isdir(name):
            return self.folder
        return self.known.get(data.kind_of(name) or name) if self.recipe is data.Data else self.known.get(name)


TABLES: dict[str, Table] = {
    "data": Table(data.Data, data.DATA, "source", data.Custom, help=data.help_text()),
    "model": Table(
        model.Model, model.MODELS, "name", model.Custom, model.Pretrained,
        f"{', '.join(model.MODELS)}, a folder of the transformers library, or FILE.py:FUNCTION  "
        f"[default: mlp; table for {', '.join(kind for kind, recipe in data.DATA.items() if recipe.model)}]",
    ),
    "finetune": Table(Finetune, {}),
    "optimizer": Table(Rule, OPTIMIZERS, "name"),
    "schedule": Table(Course, SCHEDULES, "name"),
    "loss": Table(Loss, LOSSES, "name"),
    "evaluate": Table(Metrics, {}),
    "pipeline": Table(OwnPipeline, {}, "name", OwnPipeline),
    "run": Table(Run, {}),
}  # fmt: skip


def settings(recipe: type) -> dict[str, Any]:
    """The settings of a recipe by name, as attrs fields."""
    return {f.name: f for f in fields(recipe) if f.name != "options"}


def home(name: str) -> tuple[str, str] | None:
    """The table and the key of a setting, by its full name, `optimizer.lr`, or its flag's name, `lr` or `data`."""
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
    """The name of a setting's flag: the table's, for the setting that names its recipe."""
    return table if key == TABLES[table].key else key
