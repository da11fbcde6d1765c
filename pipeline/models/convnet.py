"""A small convolutional network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class ConvNet(nn.Module):
    """Blocks of (3x3 convolution, batch norm, ReLU), halving H and W between blocks, then a linear classifier.

    Shapes: (B, channels, H, W) -> (B, classes), for any H and W.

    >>> import torch
    >>> convnet(1, 10)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(self, channels: int, classes: int, widths: Sequence[int] = (32, 64), dropout: float = 0.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, (before, width) in enumerate(zip([channels, *widths[:-1]], widths, strict=True)):
            layers += [nn.MaxPool2d(2, ceil_mode=True)] if i > 0 else []
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.dropout(self.features(images).mean((2, 3))))
        return logits


convnet = ConvNet
