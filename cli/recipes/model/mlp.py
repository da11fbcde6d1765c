"""A multilayer perceptron, with embeddings of categories."""

from __future__ import annotations

from math import prod

from attrs import frozen

from cli.recipes.model.base import Fixed, Made, Model, counted, dashes, text_depth
from cli.recipes.setting import WIDE, at_least, below_one, setting


@frozen
class MLP(Model):
    """Linear layers with ReLU between them."""

    hidden: tuple[int, ...] = setting(
        (128,), "widths between input and output, such as 128,64", at_least(1, most=WIDE), fixed=True
    )
    dropout: float = setting(0.0, "fraction of activations dropped in training", below_one, fixed=True)

    text_depth: int = text_depth()

    def make(self, fixed: Fixed) -> Made:
        from pipeline import models

        fixed.need_floats("mlp")
        categories = fixed.sizes.get("categories")
        widths = (prod(fixed.inputs), *self.hidden, fixed.outputs)
        if categories is None:
            return lambda: models.mlp(*widths, dropout=self.dropout), f"mlp {dashes(*widths)}", "inputs"
        names = ("hidden", "dropout", "text_depth")
        options = {"categories": categories, **{name: getattr(self, name) for name in names}}
        words = f"mlp {dashes(*widths)}, with embeddings of {counted(categories)}"
        return lambda: models.table(widths[0], fixed.outputs, **options), words, ("inputs", "categories")
