"""Settle the settings that a model chooses by the data."""

from __future__ import annotations

from attrs import evolve

from cli import config as settings
from cli.config import TrainConfig
from cli.prepared import fixed, prepared
from cli.recipes.model import Fixed, Model
from cli.recipes.model.table import Table
from pipeline.sources import Prepared


def settled(config: TrainConfig, data: Prepared | None = None) -> tuple[TrainConfig, Prepared | None]:
    """The settings, with the recipe of the model for the data in the place of defaults, and the checksum of the weights
    to begin from; and the data, if they were read. What is chosen stays. A run keeps all settings, so that it needs no
    recipe when it goes on.
    """
    config, data = _with_recipe(config, data)
    return evolve(config, finetune=config.finetune.sealed()), data


def _with_recipe(config: TrainConfig, data: Prepared | None) -> tuple[TrainConfig, Prepared | None]:
    of_run = not config.wrote("model.name")
    if config.settled or of_run or config.pipeline.name is not None or type(config.model).recipe is Model.recipe:
        return config, data
    data = prepared(config) if data is None else data
    chosen = by_recipe(config, fixed(config.data.source, data), len(data.train))
    if chosen.data != config.data:
        data = prepared(chosen)
    return evolve(chosen, settled=True), data


def by_recipe(config: TrainConfig, sizes: Fixed, rows: int) -> TrainConfig:
    """The settings, with the recipe of the model for so many training samples in the place of defaults."""
    recipe = dict(config.model.recipe(sizes, rows, config))
    given = {**config.given}
    if isinstance(config.model, Table):
        given.pop("model.name", None)
    rule = recipe.get("optimizer.name")
    if given.get("optimizer.name", rule) != rule:  # the numbers of a rule suit no other
        recipe = {name: value for name, value in recipe.items() if not name.startswith("optimizer.")}
    return settings.make(recipe, given) if recipe else config
