"""A multilayer perceptron over the columns of a table."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.models.columns import Size, apart
from pipeline.models.mlp import mlp


class Table(nn.Module):
    """Numbers, embedded categories and texts, side by side, through linear layers with ReLU.

    Shapes: inputs (B, features) float, categories (B, C) int64, of the sizes `categories` -> (B, outputs). The size of
    a text, after all categories, is (vocabulary, words), and `text_depth` the blocks of a transformer over it.

    >>> table(5, 3, categories=(4, 13))(torch.zeros(2, 5), torch.zeros(2, 2, dtype=torch.long)).shape
    torch.Size([2, 3])
    """

    def __init__(
        self, features: int, outputs: int, *, categories: Sequence[Size] = (), hidden: Sequence[int] = (128,),
        dropout: float = 0.0, text_depth: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        sizes, self.texts = apart(categories, text_depth)
        self.embeddings = nn.ModuleList(nn.Embedding(n, _width(n)) for n in sizes)
        width = features + sum(map(_width, sizes)) + (0 if self.texts is None else self.texts.width)
        self.layers = mlp(width, *hidden, outputs, dropout=dropout)

    def forward(self, inputs: Tensor, categories: Tensor | None = None) -> Tensor:
        columns = [inputs]
        if categories is not None:
            columns += [embed(categories[:, i]) for i, embed in enumerate(self.embeddings)]
            columns += [self.texts(categories)] if self.texts is not None else []
        outputs: Tensor = self.layers(torch.cat(columns, 1))
        return outputs


def _width(categories: int) -> int:
    """Width of an embedding. Source: fastai's rule of thumb, fastai.tabular.model.emb_sz_rule, with a lower bound."""
    return int(min(16, round(1.6 * categories**0.56)))


table = Table
