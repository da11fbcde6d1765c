"""RealMLP, a network for tables with tuned defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import frozen

from cli.recipes.model.base import Fixed, Made, Model, counted, dashes, text_depth
from cli.recipes.setting import WIDE, at_least, below_one, setting
from cli.recipes.task import CLASSES, VALUES

if TYPE_CHECKING:
    from cli.config import TrainConfig
    from pipeline.sources import Prepared

ROWS = 10_000
"""Training rows to which a model is fitted before training, at most."""
EPOCHS = 256
"""Epochs of a small table."""
SEEN = 5_000_000
"""Samples of a whole training over all epochs, about, which larger tables reach with fewer of them."""
BATCHES = ((30_000, 256), (100_000, 512))
"""Training rows, at most, and their batch size; 1,024 for more rows."""
LONG = 2_000
"""Steps of a training that is worth compiling."""


@frozen
class OfColumns(Model):
    """A model of a table's columns, fitted to a sample of the training rows."""

    whole_batches: ClassVar[bool] = True

    text_depth: int = text_depth()

    def make(self, fixed: Fixed) -> Made:
        return self._made(fixed, None)

    def fit(self, fixed: Fixed, data: Prepared) -> Made:
        return self._made(fixed, sample(fixed, data))

    def _made(self, fixed: Fixed, rows: Any) -> Made:
        raise NotImplementedError


@frozen
class RealMLP(OfColumns):
    """Robust columns with periodic embeddings, then a deep perceptron."""

    hidden: tuple[int, ...] = setting((256, 256, 256), "widths of layers", at_least(1, most=WIDE), fixed=True)
    dropout: float = setting(0.15, "fraction of activations dropped in training", below_one, fixed=True)

    @property
    def numbers(self) -> Mapping[str, float]:
        return {"dropout": self.dropout} if self.dropout else {}

    @property
    def factors(self) -> Mapping[str, Mapping[str, float]]:
        from pipeline.models.realmlp import FACTORS

        return FACTORS

    def _made(self, fixed: Fixed, rows: Any) -> Made:
        from pipeline import models

        fixed.need(self.name, 1)
        categories = fixed.sizes.get("categories", ())
        values = fixed.task == VALUES
        options = {
            "categories": categories, "hidden": self.hidden, "dropout": self.dropout, "clamp": values,
            "text_depth": self.text_depth, "activation": "mish" if values else "selu", "sample": rows,
        }  # fmt: skip
        features, outputs = fixed.inputs[0], fixed.outputs
        words = f"realmlp {dashes(features, *self.hidden, outputs)}"
        words += f", {counted(categories)}" if categories else ""
        return (
            lambda: models.realmlp(features, outputs, **options),
            words,
            ("inputs", "categories") if categories else "inputs",
        )

    def recipe(self, fixed: Fixed, rows: int, config: TrainConfig) -> Mapping[str, Any]:
        return {
            "optimizer.name": "adamw", "optimizer.lr": 0.2 if fixed.task == VALUES else 0.04, "optimizer.beta2": 0.95,
            "optimizer.weight_decay": 0.02, "schedule.name": "coslog4", "schedule.regularization": "flat-cos",
            "loss.smoothing": smoothing(fixed, config), "run.clip": 0.0, **length(rows, config),
        }  # fmt: skip


def length(rows: int, config: TrainConfig) -> dict[str, Any]:
    """Epochs and batch size for so many training rows, and whether to compile: not a short training, for which one
    thread is enough."""
    epochs = max(min(EPOCHS, SEEN // rows), 1)
    size = next((size for most, size in BATCHES if rows <= most), 1_024)
    uncompiled = {"run.compile": False, "run.threads": 1} if short(epochs * max(rows // size, 1), config) else {}
    return {"run.epochs": epochs, "run.batch_size": size, **uncompiled}


def short(steps: int, config: TrainConfig, most: int = LONG) -> bool:
    """Whether compiling takes longer than it saves in so many steps, and nobody asked for it."""
    return steps < most and not {"run.steps_per_call", "run.backend", "run.eager_steps"} & {*config.given}


def smoothing(fixed: Fixed, config: TrainConfig) -> float:
    """0.1 for classes compared by accuracy. Smoothed probabilities are too even for the log loss, and spoil rankings.

    Source: the defaults of RealMLP in the benchmark TabArena.
    """
    by_accuracy = config.run.best is None or config.run.best.endswith("accuracy")
    return 0.1 if fixed.task == CLASSES and by_accuracy and config.loss.name in ("auto", "cross-entropy") else 0.0


def sample(fixed: Fixed, data: Prepared) -> dict[str, Any]:
    """At most ROWS training rows, evenly spaced, and targets as the loss sees them."""
    import torch

    from cli.recipes.loss import scaled_targets

    count = len(data.train)
    rows = dict(data.train[torch.linspace(0, count - 1, min(count, ROWS), dtype=torch.float64).long()])
    if fixed.task == VALUES:
        rows["targets"] = scaled_targets(data, rows["targets"]).reshape(-1, fixed.outputs)
    return rows
