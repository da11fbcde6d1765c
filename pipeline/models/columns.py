"""Columns of a table as a network reads them: robust numbers, and one-hot columns and embeddings of categories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from pipeline.models.transformer import Block

Rows: TypeAlias = Mapping[str, Tensor]
"""Training rows: inputs (N, D) float32, and perhaps categories (N, C) int64 and targets."""
Size: TypeAlias = int | Sequence[int]
"""Values of a category; or, of a text, the size of its vocabulary and its number of words. Texts come last."""
FEW = 9
"""Values of a category, with the missing one, up to which it is one-hot."""
WIDTH = 8
"""Width of the embedding of a category of more values."""
TEXT_WIDTH, TEXT_HEADS = 32, 4
"""Width of the embedding of a text, and heads of its attention."""
CLIP = 3.0
"""Bound of a number that the smooth clip approaches."""


class OneHot(nn.Module):
    """Codes (B, C) int64, of the sizes `categories` -> columns (B, K) of 0 and 1, for a category of two values one
    column of -1 and 1. Code 0, of missing and new values, is all zeros.

    >>> OneHot((4, 3))(torch.tensor([[0, 0], [3, 1], [1, 2]]))
    tensor([[ 0.,  0.,  0.,  0.],
            [ 0.,  0.,  1., -1.],
            [ 1.,  0.,  0.,  1.]])
    """

    column: Tensor
    one: Tensor
    minus: Tensor

    def __init__(self, categories: Sequence[int]) -> None:
        super().__init__()
        marks = [
            (i, code, 1 if size == 3 else -1)
            for i, size in enumerate(categories)
            for code in ((2,) if size == 3 else range(1, size))
        ]
        for name, values in zip(("column", "one", "minus"), zip(*marks, strict=True), strict=True):
            self.register_buffer(name, torch.tensor(values))

    def forward(self, codes: Tensor) -> Tensor:
        shown = codes.index_select(1, self.column)
        return (shown == self.one).float() - (shown == self.minus).float()


class Robust(nn.Module):
    """Numbers (B, D) -> (B, D): minus the median, over the distance of the quartiles, and smoothly clipped to -3 to 3:
    x / sqrt(1 + (x/3)**2).

    If the quartiles are equal, half the distance of the largest and smallest value takes their place; a constant is 0.
    Source: Holzmüller et al. (2024), section 3.

    >>> rows = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 0.0], [5.0, 9.0]])
    >>> robust = Robust(2, rows)
    >>> robust.median, robust.scale
    (tensor([3., 0.]), tensor([0.5000, 0.2222]))
    """

    median: Tensor
    scale: Tensor

    def __init__(self, features: int, rows: Tensor | None = None) -> None:
        super().__init__()
        middle, scale = (torch.zeros(features), torch.ones(features)) if rows is None else _spread(rows)
        self.register_buffer("median", middle)
        self.register_buffer("scale", scale)

    def forward(self, numbers: Tensor) -> Tensor:
        x = (numbers - self.median) * self.scale
        return x * torch.rsqrt(1.0 + (x / CLIP) ** 2)


def _spread(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Median, and 1 / spread, of each column (N, D)."""
    low, middle, high = quantiles(rows, torch.tensor([0.25, 0.5, 0.75]))
    range_ = rows.amax(0) - rows.amin(0)
    spread = torch.where(high > low, high - low, 0.5 * range_)
    return middle, torch.where(spread > 0, 1.0 / spread.clamp(min=1e-30), 0.0)


def quantiles(rows: Tensor, at: Tensor) -> Tensor:
    """Quantiles (Q, D) of columns (N, D) at shares (Q,), by linear interpolation; for any N, as torch.quantile is not.

    >>> quantiles(torch.tensor([[0.0], [1.0], [4.0]]), torch.tensor([0.5, 0.75])).T
    tensor([[1.0000, 2.5000]])
    """
    ordered = rows.sort(0).values
    place = at.to(rows.dtype).double() * (len(rows) - 1)
    below = place.floor().long()
    above, share = place.ceil().long(), (place - below).to(rows.dtype)[:, None]
    return torch.lerp(ordered[below], ordered[above], share)


class Texts(nn.Module):
    """Codes (B, K) int64, the last of which are the words of texts, of the sizes (vocabulary, words) -> (B, 32 T): the
    mean embedding of the words of each text, 0 for none.

    With `depth` blocks of a transformer before the mean, the order of words counts.

    >>> Texts([(100, 3), (50, 2)])(torch.tensor([[1, 7, 8, 0, 0, 0]])).shape
    torch.Size([1, 64])
    """

    def __init__(self, texts: Sequence[Sequence[int]], depth: int = 0) -> None:
        super().__init__()
        self.lengths = [length for _, length in texts]
        self.each = nn.ModuleList(Text(vocabulary, length, depth) for vocabulary, length in texts)
        self.width = TEXT_WIDTH * len(texts)

    def forward(self, words: Tensor) -> Tensor:
        texts = torch.split(words[:, words.shape[1] - sum(self.lengths) :], self.lengths, 1)
        return torch.cat([text(codes) for text, codes in zip(self.each, texts, strict=True)], 1)


class Text(nn.Module):
    """The words of a text (B, L) int64 -> (B, 32).

    Source of the mean: Joulin et al., Bag of tricks for efficient text classification (2017), without n-grams.
    """

    def __init__(self, vocabulary: int, length: int, depth: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, TEXT_WIDTH)
        self.positions = nn.Embedding(length, TEXT_WIDTH) if depth else None
        self.blocks = nn.ModuleList(Block(TEXT_WIDTH, TEXT_HEADS, 0.0) for _ in range(depth))

    def forward(self, text: Tensor) -> Tensor:
        x, known = self.words(text), text > 0
        if self.positions is not None:
            x = x + self.positions.weight
            seen = known | ~known.any(1, keepdim=True)  # an empty text sees itself: a softmax of nothing is NaN
            for block in self.blocks:
                x = block(x, seen[:, None, None, :])
        count = known.float()[:, :, None]
        mean: Tensor = (x * count).sum(1) / count.sum(1).clamp(min=1.0)
        return mean


def apart(sizes: Sequence[Size], depth: int = 0) -> tuple[list[int], Texts | None]:
    """The sizes of categories, and the layer of texts, if there are any, with `depth` blocks of a transformer."""
    texts = [size for size in sizes if not isinstance(size, int)]
    return [size for size in sizes if isinstance(size, int)], Texts(texts, depth) if texts else None


def split(categories: Sequence[int]) -> tuple[list[int], list[int]]:
    """Positions of one-hot and of embedded categories."""
    few = [i for i, size in enumerate(categories) if size <= FEW]
    return few, [i for i, size in enumerate(categories) if size > FEW]
