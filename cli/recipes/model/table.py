"""The model for tables that fits the data best."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attrs import frozen

from cli.recipes.model.base import Fixed
from cli.recipes.model.realmlp import RealMLP

if TYPE_CHECKING:
    from cli.config import TrainConfig


@frozen
class Table(RealMLP):
    """RealMLP; for arrays that are no columns, an MLP."""

    def recipe(self, fixed: Fixed, rows: int, config: TrainConfig) -> Mapping[str, Any]:
        columns = fixed.floats and len(fixed.inputs) == 1
        if not columns and "model.name" not in config.given:
            return {"model.name": "mlp"}
        return {"model.name": "realmlp", **super().recipe(fixed, rows, config)}
