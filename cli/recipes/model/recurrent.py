"""Recurrent classifiers of sequences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from attrs import frozen

from cli.recipes.model.base import Fixed, Made, Model
from cli.recipes.setting import DEEP, WIDE, at_least, below_one, refusal, setting


@frozen
class LSTM(Model):
    """Layers of LSTM over a sequence, and a linear one of what they end with."""

    prefers: ClassVar[Mapping[str, Any]] = {"name": "adamw"}

    kind: ClassVar[Any] = "lstm"

    width: int = setting(128, "numbers that a layer remembers", at_least(1, most=WIDE), fixed=True)
    depth: int = setting(1, "layers", at_least(1, most=DEEP), fixed=True)
    bidirectional: bool = setting(False, "from both ends", fixed=True)
    dropout: float = setting(0.0, "fraction of activations that training leaves out", below_one, fixed=True)

    def make(self, fixed: Fixed) -> Made:
        from pipeline import models

        if len(fixed.inputs) != (2 if fixed.floats else 1) or fixed.task == "language modelling":
            raise refusal(
                f"model {self.kind!r} takes sequences (N, T, features) of floats or (N, T) of token ids, and a class "
                f"or value for each, but {fixed.source} has inputs {fixed.inputs} for {fixed.task}"
            )
        what = {"features": fixed.inputs[1]} if fixed.floats else {"vocabulary": fixed.sizes["vocabulary"]}
        options: dict[str, Any] = {"width": self.width, "depth": self.depth, "bidirectional": self.bidirectional,
                   "dropout": self.dropout}  # fmt: skip
        words = f"{self.kind} of {self.depth} x {self.width}"
        return lambda: models.recurrent(fixed.outputs, kind=self.kind, **what, **options), words, "inputs"


@frozen
class GRU(LSTM):
    """As LSTM, with gates of fewer numbers."""

    kind: ClassVar[Any] = "gru"
