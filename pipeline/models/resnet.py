"""A residual convolutional network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """Two 3x3 convolutions with batch norm, added to their input; the first may halve H and W.

    Shapes: (B, before, H, W) -> (B, width, H / stride, W / stride), rounded up. Source: He et al., Deep residual
    learning for image recognition (2016), figure 5, with a 1x1 convolution if shapes differ.
    """

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.short = nn.Identity() if stride == 1 and before == width else nn.Conv2d(before, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.short(x))


class ResNet(nn.Module):
    """A 3x3 convolution, then stages of `depth` residual blocks that halve H and W between them, then a linear
    classifier.

    Shapes: (B, channels, H, W) -> (B, outputs), for any H and W.

    >>> import torch
    >>> resnet(1, 10, widths=(4, 8))(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self, channels: int, outputs: int, widths: Sequence[int] = (32, 64, 128), depth: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        blocks = [
            Residual(before if k == 0 else width, width, 2 if k == 0 and i > 0 else 1)
            for i, (before, width) in enumerate(zip([widths[0], *widths[:-1]], widths, strict=True))
            for k in range(depth)
        ]
        self.blocks, self.dropout = nn.Sequential(*blocks), nn.Dropout(dropout)
        self.head = nn.Linear(widths[-1], outputs)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.dropout(self.blocks(self.stem(images)).mean((2, 3))))
        return logits


resnet = ResNet
