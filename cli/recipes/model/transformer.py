"""A decoder-only transformer over tokens."""

from __future__ import annotations

from collections.abc import Mapping
from math import log2
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import frozen

from cli.recipes.model.base import Fixed, Made, Model
from cli.recipes.setting import DEEP, WIDE, at_least, below_one, given, one_of, refusal, setting

if TYPE_CHECKING:
    from cli.config import TrainConfig

STEP = 32
"""Features of a token for each block."""
LARGE = 64
"""Tokens of a vocabulary for each feature, from which the head is tied: most of the weights would be in the two."""
TOKENS = 2_048
"""Tokens of a step for a width of 128."""
PAIRS = 64
"""Rows of the embedding of pairs of tokens for each feature."""
NUMBERS = ("width", "depth", "dropout", "softcap", "bigrams")
CHOICES = ("positions", "norm", "activation", "qk_norm", "bias", "zero_init", "tied")


@frozen
class Transformer(Model):
    """Blocks of causal attention and a perceptron."""

    prefers: ClassVar[Mapping[str, Any]] = {"name": "adamw"}

    width: int = setting(
        128,
        "features of a token, or units  [default: 128; 32 for each block of transformer]",
        at_least(1, most=WIDE),
        fixed=True,
    )
    heads: int | None = setting(
        None, "of the attention  [default: the largest divisor of --width among 8, 4, 2, 1]", at_least(1), fixed=True
    )
    depth: int = setting(4, "blocks", at_least(1, most=DEEP), fixed=True)
    dropout: float = setting(0.0, "fraction of activations dropped in training", below_one, fixed=True)
    positions: str = setting("learned", "of tokens: learned or rotary", one_of(("learned", "rotary")), fixed=True)
    norm: str = setting("layer", "layer or rms, without weights", one_of(("layer", "rms")), fixed=True)
    activation: str = setting("gelu", "gelu, relu2 or swiglu", one_of(("gelu", "relu2", "swiglu")), fixed=True)
    qk_norm: bool = setting(False, "normalize queries and keys", fixed=True)
    bias: bool = setting(True, "biases in the linear layers of blocks", fixed=True)
    zero_init: bool = setting(False, "begin with blocks that change nothing, and a head of zeros", fixed=True)
    tied: bool = setting(False, "the head is the embedding of tokens", fixed=True)
    softcap: float = setting(0.0, "bound of the logits; 0 for none", at_least(0), fixed=True)
    bigrams: int = setting(0, "rows of a hashed embedding of pairs of tokens", at_least(0, most=WIDE), fixed=True)

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
        options = {name: getattr(self, name) for name in (*NUMBERS, *CHOICES)}
        vocabulary, context = fixed.outputs, fixed.inputs[0]
        words = f"transformer of {self.depth} blocks of width {self.width}, {vocabulary} tokens, context {context}"
        return lambda: models.transformer(vocabulary, context=context, heads=heads, **options), words, "inputs"

    def recipe(self, fixed: Fixed, rows: int, config: TrainConfig) -> Mapping[str, Any]:
        if fixed.task != "language modelling":
            return {}  # make() refuses it
        width = config.given.get("model.width", STEP * self.depth)
        tied = fixed.outputs > LARGE * width
        return {
            "model.width": width, "model.positions": "rotary", "model.norm": "rms", "model.activation": "relu2",
            "model.qk_norm": True, "model.bias": False, "model.zero_init": True, "model.tied": tied,
            "model.softcap": 15.0, "model.bigrams": PAIRS * width, "optimizer.name": "muon", "optimizer.lr": 0.02,
            "optimizer.rest_lr": 0.01 * (STEP * 4 / width) ** 0.5, "optimizer.beta2": 0.95,
            "schedule.name": "trapezoid", "run.clip": 0.0, "run.batch_size": batch_size(width, fixed.inputs[0]),
        }  # fmt: skip


def batch_size(width: int, context: int) -> int:
    """Windows of a step, a power of 2: TOKENS for a width of 128, and more for a wider model, as its square root."""
    return 1 << max(round(log2(TOKENS * (width / 128) ** 0.5 / context)), 0)
