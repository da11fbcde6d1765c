"""A multilayer perceptron."""

from __future__ import annotations

from itertools import pairwise

from torch import nn


def mlp(*widths: int, dropout: float = 0.0) -> nn.Sequential:
    """Linear layers of these widths with ReLU, and dropout, between them.

    Shapes: (B, ...) with widths[0] numbers a sample -> (B, widths[-1]).

    >>> import torch
    >>> mlp(64, 32, 10)(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 10])
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for i, (width, following) in enumerate(pairwise(widths)):
        if i > 0:
            layers += [nn.ReLU(), nn.Dropout(dropout)] if dropout else [nn.ReLU()]
        layers.append(nn.Linear(width, following))
    return nn.Sequential(*layers)
