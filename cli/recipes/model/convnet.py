"""Convolutional networks: a plain one, and one with residual blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attrs import frozen

from cli.recipes.model.base import Fixed, Made, Model, dashes
from cli.recipes.model.realmlp import smoothing
from cli.recipes.setting import DEEP, WIDE, at_least, below_one, bounded, given, not_empty, one_of, refusal, setting

if TYPE_CHECKING:
    from torch import Tensor

    from cli.config import TrainConfig
    from pipeline.sources import Prepared

PIXELS = 1 << 22
"""Values of training images, at most, to which a whitening is fitted."""
SMALL = 16
"""Height and width from which the recipe is better than SGD: of 8x8, three and two of 360 samples were wrong."""
FLIPPED = 32
"""Height and width from which images in colours may be mirrored, as --set augment=auto does."""


def _views(_: object, attribute: object, value: int) -> None:
    if value not in (1, 2, 6):
        raise refusal(f"{given('views', value)} is none of 1, 2 and 6")


bounded(_views, enum=[1, 2, 6])


@frozen
class ConvNet(Model):
    """Blocks of convolution, batch norm and ReLU, halving the image between them."""

    widths: tuple[int, ...] = setting(
        (32, 64), "channels of each block or stage", at_least(1, most=WIDE), not_empty, fixed=True
    )
    dropout: float = setting(0.0, "fraction of activations dropped in training", below_one, fixed=True)

    def make(self, fixed: Fixed) -> Made:
        from pipeline import models

        fixed.need("convnet", 3)
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

    activation: str = setting("relu", "gelu, relu or silu", one_of(("gelu", "relu", "silu")), fixed=True)
    zero_init: bool = setting(False, "begin with blocks that add nothing", fixed=True)
    whitening: bool = setting(False, "a fixed first layer that whitens patches of the images", fixed=True)
    shift: int = setting(
        0,
        "pixels by which images are moved at random in training  [default: an eighth of the side; 0 if the data are "
        "augmented]",
        at_least(0),
        fixed=True,
    )
    views: int = setting(
        1,
        "of an image in evaluation: 1; 2: also mirrored; 6: and both moved by a pixel  [default: 1; 2 for images of "
        "32x32 and more in colours]",
        _views,
        fixed=True,
    )

    def make(self, fixed: Fixed) -> Made:
        return self._made(fixed, None)

    def fit(self, fixed: Fixed, data: Prepared) -> Made:
        return self._made(fixed, sample(data) if self.whitening else None)

    def _made(self, fixed: Fixed, images: Tensor | None) -> Made:
        from pipeline import models

        fixed.need("resnet", 3)
        channels, outputs = fixed.inputs[0], fixed.outputs
        names = ("widths", "depth", "dropout", "activation", "zero_init", "whitening", "shift", "views")
        options: dict[str, Any] = {name: getattr(self, name) for name in names}
        words = f"resnet {dashes(channels, *self.widths, outputs)}, {self.depth} a stage"
        return lambda: models.resnet(channels, outputs, sample=images, **options), words, "inputs"

    def recipe(self, fixed: Fixed, rows: int, config: TrainConfig) -> Mapping[str, Any]:
        if len(fixed.inputs) != 3:
            return {}  # make() refuses them
        channels, height, width = fixed.inputs
        dial = {"model.widths": tuple(16 * (self.depth + 1) * k for k in (1, 2, 4))}
        if min(height, width) < SMALL:
            return dial
        kind = getattr(config.data, "augment", "")
        flips = (kind == "auto" and channels == 3 and min(height, width) >= FLIPPED) or kind.startswith(("flip", "alt"))
        return {
            **dial, "model.zero_init": True,
            "model.views": 2 if flips else 1,
            "model.shift": 0 if flips or kind not in ("", "auto") else min(height, width) // 8,
            **({"data.augment": "alternate+crop"} if flips else {}),
            "optimizer.name": "muon", "optimizer.lr": 0.05, "optimizer.rest_lr": 0.01,
            "schedule.name": "polynomial", "loss.smoothing": smoothing(fixed, config), "run.clip": 0.0,
        }  # fmt: skip


def sample(data: Prepared) -> Tensor:
    """Some training images, (N, C, H, W), evenly spaced."""
    import torch

    count = len(data.train)
    size = max(min(PIXELS // data.train[torch.arange(1)]["inputs"].numel(), count), 1)
    images: Tensor = data.train[torch.linspace(0, count - 1, size, dtype=torch.float64).long()]["inputs"]
    return images
