"""Recurrent classifiers of sequences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from attrs import frozen

from cli.recipes.model.base import Fixed, Made, Model
from cli.recipes.setting import DEEP, WIDE, at_least, below_one, refusal, setting


@frozen
class LSTM(Model):
    """LSTM layers over a sequence, and a linear layer of the last state."""

    prefers: ClassVar[Mapping[str, Any]] = {"name": "adamw"}

    kind: ClassVar[Any] = "lstm"

    width: int = setting(128, "units of a layer", at_least(1, most=WIDE), fixed=True)
    depth: int = setting(1, "layers", at_least(1, most=DEEP), fixed=True)
    bidirectional: bool = setting(False, "read the sequence from both ends", fixed=True)
    dropout: float = setting(0.0, "fraction of activations dropped in training", below_one, fixed=True)

    def make(self, fixed: Fixed) -> Made:
        from pipeline import models

        if len(fixed.inputs) != (2 if fixed.floats else 1) or fixed.task == "language modelling":
            raise refusal(
                f"model {self.kind!r} takes sequences (N, T, features) of floats or (N, T) of token ids, and a class "
                f"or value for each, but {fixed.source} has inputs {fixed.inputs} for {fixed.task}; use {fixed.instead}"
            )
        what = {"features": fixed.inputs[1]} if fixed.floats else {"vocabulary": fixed.sizes["vocabulary"]}
        options: dict[str, Any] = {n: getattr(self, n) for n in ("width", "depth", "bidirectional", "dropout")}
        words = f"{self.kind} of {self.depth} x {self.width}"
        return lambda: models.recurrent(fixed.outputs, kind=self.kind, **what, **options), words, "inputs"


@frozen
class GRU(LSTM):
    """As LSTM, with fewer gates."""

    kind: ClassVar[Any] = "gru"
