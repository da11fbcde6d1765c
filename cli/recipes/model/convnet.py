"""Convolutional networks: a plain one, and one with residual blocks."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from cli.recipes.model.base import Fixed, Made, Model, dashes
from cli.recipes.setting import DEEP, WIDE, at_least, below_one, not_empty, setting


@frozen
class ConvNet(Model):
    """Blocks of convolution, batch norm and ReLU, halving the image between them."""

    widths: tuple[int, ...] = setting(
        (32, 64), "channels of each block or stage", at_least(1, most=WIDE), not_empty, fixed=True
    )
    dropout: float = setting(0.0, "fraction of activations dropped in training", below_one, fixed=True)

    def make(self, fixed: Fixed) -> Made:
        from pipeline import models

        fixed.need_images("convnet")
        channels, outputs = fixed.inputs[0], fixed.outputs
        options: dict[str, Any] = {"widths": self.widths, "dropout": self.dropout}
        words = f"convnet {dashes(channels, *self.widths, outputs)}"
        return lambda: models.convnet(channels, outputs, **options), words, "inputs"


@frozen
class ResNet(Model):
    """Stages of residual blocks with batch norm, halving the image between them."""

    widths: tuple[int, ...] = setting(
        (32, 64, 128), "channels of each stage", at_least(1, most=WIDE), not_empty, fixed=True
    )
    depth: int = setting(1, "blocks of each stage, or layers", at_least(1, most=DEEP), fixed=True)
    dropout: float = setting(0.0, "fraction of activations dropped in training", below_one, fixed=True)

    def make(self, fixed: Fixed) -> Made:
        from pipeline import models

        fixed.need_images("resnet")
        channels, outputs = fixed.inputs[0], fixed.outputs
        options: dict[str, Any] = {"widths": self.widths, "depth": self.depth, "dropout": self.dropout}
        words = f"resnet {dashes(channels, *self.widths, outputs)}, {self.depth} a stage"
        return lambda: models.resnet(channels, outputs, **options), words, "inputs"
