"""The model for tables that fits the data best."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import frozen

from cli.recipes.model.base import Fixed
from cli.recipes.model.realmlp import RealMLP
from cli.recipes.model.tabm import TabM

if TYPE_CHECKING:
    from cli.config import TrainConfig


TABM = range(200, 2_001)
"""Training rows for which TabM is chosen. It ranks higher than RealMLP, but its steps take 10 times as long, and if
only a few dozen rows are held out, the end of its training is left to chance."""


@frozen
class Table(RealMLP):
    """TabM for small tables, RealMLP for others; for arrays that are no columns, an MLP."""

    picks: ClassVar[bool] = True

    def recipe(self, fixed: Fixed, rows: int, config: TrainConfig) -> Mapping[str, Any]:
        columns = fixed.floats and len(fixed.inputs) == 1
        if not columns and "model.name" not in config.given:
            return {"model.name": "mlp"}
        if rows in TABM:
            return {"model.name": "tabm", **TabM().recipe(fixed, rows, config)}
        return {"model.name": "realmlp", **super().recipe(fixed, rows, config)}
