"""A decoder-only transformer over tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from attrs import frozen

from cli.recipes.model.base import Fixed, Made, Model
from cli.recipes.setting import DEEP, WIDE, at_least, below_one, given, refusal, setting


@frozen
class Transformer(Model):
    """Blocks of causal attention and a perceptron."""

    prefers: ClassVar[Mapping[str, Any]] = {"name": "adamw"}

    width: int = setting(128, "features of a token", at_least(1, most=WIDE), fixed=True)
    heads: int | None = setting(
        None, "of the attention  [default: the largest divisor of --width among 8, 4, 2, 1]", at_least(1), fixed=True
    )
    depth: int = setting(4, "blocks", at_least(1, most=DEEP), fixed=True)
    dropout: float = setting(0.0, "fraction of activations dropped in training", below_one, fixed=True)

    def make(self, fixed: Fixed) -> Made:
        from pipeline import models

        if fixed.task != "language modelling":
            raise refusal(
                f"model 'transformer' takes token ids and targets (N, T) int64, but {fixed.source} has inputs "
                f"{fixed.inputs} for {fixed.task}; use {fixed.instead}"
            )
        heads = self.heads or next(h for h in (8, 4, 2, 1) if self.width % h == 0)
        if self.width % heads:
            raise refusal(f"--width {self.width} is no multiple of {given('heads', heads)}; choose one that is")
        options = {"width": self.width, "heads": heads, "depth": self.depth, "dropout": self.dropout}
        vocabulary, context = fixed.outputs, fixed.inputs[0]
        words = f"transformer of {self.depth} blocks of width {self.width}, {vocabulary} tokens, context {context}"
        return lambda: models.transformer(vocabulary, context=context, **options), words, "inputs"
