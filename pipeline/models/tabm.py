"""TabM: many perceptrons in one, which share their weights but for factors of rank one.

Source: Gorishniy, Kotelnikov and Babenko, TabM: advancing tabular deep learning with parameter-efficient ensembling
(2025), section 3; for its embeddings, Gorishniy, Rubachev and Babenko, On embeddings for numerical features in tabular
deep learning (2022), section 3.2. Shapes: B rows, D numbers, C categories, F features of a row, M members.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.columns import OneHot, Robust, Rows, Size, apart, quantiles

BINS = 48
"""Bins of a number, between quantiles of the training rows."""
NUMBER_WIDTH = 16
"""Width of a number's embedding."""


class Piecewise(nn.Module):
    """Numbers (B, D) -> (B, 16 D): a linear map of each number, plus a piecewise linear one that starts at 0, with
    knots at quantiles of the training rows. Equal quantiles make one knot."""

    edges: Tensor

    def __init__(self, features: int, rows: Tensor | None = None) -> None:
        super().__init__()
        at = torch.linspace(0.0, 1.0, BINS + 1)
        edges = torch.zeros(BINS + 1, features) if rows is None else quantiles(rows, at)
        self.register_buffer("edges", edges.T.contiguous())
        self.robust = Robust(features, rows)
        self.weight = nn.Parameter(2.0 * torch.rand(features, NUMBER_WIDTH) - 1.0)
        self.bias = nn.Parameter(2.0 * torch.rand(features, NUMBER_WIDTH) - 1.0)
        self.bends = nn.Parameter(torch.zeros(features, BINS, NUMBER_WIDTH))

    def forward(self, numbers: Tensor) -> Tensor:
        low, widths = self.edges[:, :-1], self.edges.diff(dim=1)
        # The share of each bin below the number: 1 for bins below it, 0 above. The last bin goes on beyond its end.
        share = (numbers[:, :, None] - low) * torch.where(widths > 0, 1.0 / widths.clamp(min=1e-12), 0.0)
        share = share.clamp(0.0, 1.0)
        straight = self.robust(numbers)[:, :, None] * self.weight + self.bias
        bent: Tensor = straight + torch.einsum("bfk,fkj->bfj", share, self.bends)
        return bent.flatten(1)


class Shared(nn.Module):
    """out * ((x * into) W) + bias: one W for all members, with factors (M, F), (M, outputs) and biases of their own.

    Shapes: (B, M, F) or (B, 1, F) -> (B, M, outputs).
    """

    def __init__(self, members: int, features: int, outputs: int) -> None:
        super().__init__()
        bound = features**-0.5
        self.weight = nn.Parameter(bound * (2.0 * torch.rand(features, outputs) - 1.0))
        self.into = nn.Parameter(torch.ones(members, features))
        self.out = nn.Parameter(torch.ones(members, outputs))
        bias = bound * (2.0 * torch.rand(outputs) - 1.0)
        self.bias = nn.Parameter(bias.expand(members, outputs).clone())  # equal at first

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = (x * self.into) @ self.weight * self.out + self.bias
        return y


class TabM(nn.Module):
    """Piecewise linear embeddings of numbers and one-hot categories, then `members` perceptrons that share weights.

    Shapes: inputs (B, D) float32, categories (B, C) int64 of the sizes `categories` -> (B, M, outputs) in training, for
    the loss of each member; in eval mode, joined by `join`, (B, outputs).

    - `join`: (M, B, outputs) -> (B, outputs), such as loss.mean_probabilities or mean_outputs.
    - `text_depth`: blocks of a transformer over each text.
    - `sample`: training rows, for the knots of embeddings. Without one, values are placeholders for a trained
      State.

    >>> rows = {"inputs": torch.randn(50, 5), "categories": torch.randint(3, (50, 2))}
    >>> model = tabm(5, 3, join=lambda each: each.mean(0), categories=(4, 13), members=4, sample=rows)
    >>> model(**rows).shape, model.eval()(**rows).shape
    (torch.Size([50, 4, 3]), torch.Size([50, 3]))
    """

    def __init__(
        self, features: int, outputs: int, *, join: Callable[[Tensor], Tensor], categories: Sequence[Size] = (),
        hidden: Sequence[int] = (512, 512), members: int = 32, dropout: float = 0.1, text_depth: int = 0,
        sample: Rows | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.piecewise = Piecewise(features, None if sample is None else sample["inputs"]) if features else None
        sizes, self.texts = apart(categories, text_depth)
        self.one_hot = OneHot(sizes) if sizes else None
        columns = [NUMBER_WIDTH] * features + ([] if self.one_hot is None else [1] * len(self.one_hot.one))
        columns += [] if self.texts is None else [1] * self.texts.width
        self.sizes = len(sizes)
        widths = (sum(columns), *hidden)
        self.layers = nn.ModuleList(Shared(members, a, b) for a, b in zip(widths, hidden, strict=False))
        with torch.no_grad():  # members differ at first by one random factor of each column
            factors = torch.randn(members, len(columns)).repeat_interleave(torch.tensor(columns), 1)
            self.layers.get_parameter("0.into").copy_(factors)
        bound = widths[-1] ** -0.5
        self.head = nn.Parameter(bound * (2.0 * torch.rand(members, widths[-1], outputs) - 1.0))
        self.head_bias = nn.Parameter(bound * (2.0 * torch.rand(members, outputs) - 1.0))
        self.p, self.join = dropout, join

    def forward(self, inputs: Tensor, categories: Tensor | None = None) -> Tensor:
        columns = [] if self.piecewise is None else [self.piecewise(inputs)]
        if categories is not None and self.one_hot is not None:
            columns.append(self.one_hot(categories[:, : self.sizes]))
        if categories is not None and self.texts is not None:
            columns.append(self.texts(categories))
        x = torch.cat(columns, 1)[:, None]
        for layer in self.layers:
            x = F.dropout(layer(x).relu(), self.p, self.training)
        outputs = torch.einsum("bmf,mfo->bmo", x, self.head) + self.head_bias
        if not self.training:
            outputs = self.join(outputs.movedim(1, 0))
        return outputs


tabm = TabM
