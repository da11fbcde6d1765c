"""TabM, many perceptrons in one, for tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import frozen

from cli.recipes.model.base import Fixed, Made, counted, dashes
from cli.recipes.model.realmlp import SEEN, OfColumns, short
from cli.recipes.setting import WIDE, at_least, below_one, refusal, setting
from cli.recipes.task import CLASSES, LABELS, VALUES

if TYPE_CHECKING:
    from cli.config import TrainConfig

EPOCHS, PATIENCE = 256, 16
USUAL, LONG = 50, 1_000
"""Epochs after which the patience of most tables ends, and steps of a training that is worth compiling."""
BATCHES = ((2_800, 32), (4_500, 64), (6_400, 128), (32_000, 256))
"""Training rows, at most, and their batch size; 512 for more rows. Source: TabM's defaults in TabArena."""


@frozen
class TabM(OfColumns):
    """Piecewise linear embeddings, then perceptrons that share their weights but for factors of rank one."""

    members: ClassVar[bool] = True

    hidden: tuple[int, ...] = setting((512, 512), "widths of layers", at_least(1, most=WIDE), fixed=True)
    dropout: float = setting(0.1, "fraction of activations dropped in training", below_one, fixed=True)
    k: int = setting(32, "members that share their weights", at_least(1, most=1 << 12), fixed=True)

    def _made(self, fixed: Fixed, rows: Any) -> Made:
        from pipeline import loss, models

        fixed.need(self.name, 1)
        joins = {CLASSES: loss.mean_probabilities, LABELS: loss.mean_chances, VALUES: loss.mean_outputs}
        if fixed.task not in joins:
            raise refusal(f"model 'tabm' is not for {fixed.task}; use --model {fixed.instead}")
        categories = fixed.sizes.get("categories", ())
        options = {
            "join": joins[fixed.task], "categories": categories, "hidden": self.hidden, "members": self.k,
            "dropout": self.dropout, "text_depth": self.text_depth, "sample": rows,
        }  # fmt: skip
        features, outputs = fixed.inputs[0], fixed.outputs
        widths = dashes(features, *self.hidden, outputs)
        return (
            lambda: models.tabm(features, outputs, **options),
            f"tabm {self.k} x {widths}{f', {counted(categories)}' if categories else ''}",
            ("inputs", "categories") if categories else "inputs",
        )

    def recipe(self, fixed: Fixed, rows: int, config: TrainConfig) -> Mapping[str, Any]:
        epochs, size = max(min(EPOCHS, SEEN // rows), 1), next((size for most, size in BATCHES if rows <= most), 512)
        return {
            "optimizer.name": "adamw", "optimizer.lr": 2e-3, "optimizer.weight_decay": 3e-4,
            "schedule.name": "constant", "run.epochs": epochs, "run.patience": PATIENCE, "run.batch_size": size,
            **({"run.compile": False} if short(min(epochs, USUAL) * max(rows // size, 1), config, LONG) else {}),
        }  # fmt: skip
