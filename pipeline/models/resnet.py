"""A residual convolutional network."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}
EPS = 5e-4
"""Added to the variances by which patches are whitened."""


class Residual(nn.Module):
    """Two 3x3 convolutions with batch norm, added to their input; the first may halve H and W. With `zero_init`, the
    second adds nothing at first.

    Shapes: (B, before, H, W) -> (B, width, H / stride, W / stride), rounded up. Source: He et al., Deep residual
    learning for image recognition (2016), figure 5, with a 1x1 convolution if shapes differ.
    """

    def __init__(self, before: int, width: int, stride: int, activation: str = "relu", zero_init: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.short = nn.Identity() if stride == 1 and before == width else nn.Conv2d(before, width, 1, stride)
        self.activation = ACTIVATIONS[activation]
        if zero_init:
            nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.activation(self.norm1(self.conv1(x)))))
        return self.activation(y + self.short(x))


class Whitening(nn.Module):
    """A fixed 2x2 convolution by which patches of `sample` get uncorrelated features of variance 1, each with both
    signs, and a trained bias. Without a sample, its filters are placeholders for a trained State's.

    Shapes: (B, C, H, W) -> (B, 8 C, H, W). Source: Jordan, 94% on CIFAR-10 in 3.29 seconds (2024), section 3.2.
    """

    filters: Tensor

    def __init__(self, channels: int, sample: Tensor | None = None) -> None:
        super().__init__()
        size = 4 * channels
        self.bias = nn.Parameter(torch.zeros(2 * size))
        kept = torch.zeros(size, size) if sample is None else _whitening(sample)
        self.register_buffer("filters", torch.cat([kept, -kept]).reshape(2 * size, channels, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        whitened: Tensor = F.conv2d(F.pad(x, (0, 1, 0, 1), mode="replicate"), self.filters, self.bias)
        return whitened


def _whitening(images: Tensor) -> Tensor:
    """The rows that whiten 2x2 patches, (4 C, 4 C), by the eigenvectors of their covariance."""
    patches = F.unfold(F.pad(images, (0, 1, 0, 1), mode="replicate"), 2).transpose(1, 2).flatten(0, 1)
    centred = patches - patches.mean(0)
    variances, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    rows: Tensor = (vectors / (variances.clamp(min=0) + EPS).sqrt()).T
    return rows


class ResNet(nn.Module):
    """A 3x3 convolution, then stages of `depth` residual blocks that halve H and W between them, then a linear
    classifier.

    Shapes: (B, channels, H, W) -> (B, outputs), for any H and W.

    - `whitening`: begin with a fixed convolution that whitens patches of `sample`, images (N, channels, H, W).
    - `shift`: in training, move each image at random by up to so many pixels, with its edges repeated.
    - `views`: in evaluation, the mean over the image, its mirror image (2), and both moved by a pixel (6).

    >>> resnet(1, 10, widths=(4, 8))(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self, channels: int, outputs: int, widths: Sequence[int] = (32, 64, 128), depth: int = 1, dropout: float = 0.0,
        *, activation: str = "relu", zero_init: bool = False, whitening: bool = False, shift: int = 0, views: int = 1,
        sample: Tensor | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.shift, self.views = shift, views
        self.whitening = Whitening(channels, sample) if whitening else None
        before = channels if self.whitening is None else len(self.whitening.bias)
        act = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}[activation]()
        self.stem = nn.Sequential(
            nn.Conv2d(before, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), act
        )
        blocks = [
            Residual(before if k == 0 else width, width, 2 if k == 0 and i > 0 else 1, activation, zero_init)
            for i, (before, width) in enumerate(zip([widths[0], *widths[:-1]], widths, strict=True))
            for k in range(depth)
        ]
        self.blocks, self.dropout = nn.Sequential(*blocks), nn.Dropout(dropout)
        self.head = nn.Linear(widths[-1], outputs)

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            return self.logits(shifted(images, self.shift) if self.shift else images)
        total = self.logits(images)
        for view in views(images, self.views)[1:]:
            total = total + self.logits(view)
        return total / self.views if self.views > 1 else total

    def logits(self, images: Tensor) -> Tensor:
        """Of images as they are."""
        x = images if self.whitening is None else F.gelu(self.whitening(images))
        logits: Tensor = self.head(self.dropout(self.blocks(self.stem(x)).mean((2, 3))))
        return logits


def shifted(images: Tensor, most: int) -> Tensor:
    """Each image (B, C, H, W) moved at random by up to `most` pixels in H and W, with its edges repeated."""
    b, c, h, w = images.shape
    moves = torch.randint(-most, most + 1, (b, 2), device=images.device)
    rows, columns = (
        (torch.arange(n, device=images.device) + moves[:, k, None]).clamp(0, n - 1) for k, n in enumerate((h, w))
    )
    moved = images.gather(2, rows[:, None, :, None].expand(b, c, h, w))
    return moved.gather(3, columns[:, None, None, :].expand(b, c, h, w))


def views(images: Tensor, count: int) -> list[Tensor]:
    """The first `count` of: images (B, C, H, W), mirrored, moved down and right by a pixel, moved up and left, and both
    of these mirrored."""
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate") if count > 2 else images
    every = [images, *([padded[:, :, :-2, :-2], padded[:, :, 2:, 2:]] if count > 2 else [])]
    return [v for x in every for v in (x, x.flip(3))][:count]


resnet = ResNet
