"""Recurrent networks over sequences."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from pipeline.errors import ConfigError


class Recurrent(nn.Module):
    """Layers of LSTM or GRU, and a linear layer of their mean over time.

    Shapes: (B, T, features) float, or (B, T) int64 ids of a `vocabulary` -> (B, outputs).

    >>> import torch
    >>> recurrent(3, vocabulary=50, width=8)(torch.zeros(2, 7, dtype=torch.long)).shape
    torch.Size([2, 3])
    """

    def __init__(
        self, outputs: int, *, kind: Literal["lstm", "gru"] = "lstm", features: int | None = None,
        vocabulary: int | None = None, width: int = 128, depth: int = 1, bidirectional: bool = False,
        dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if (features is None) == (vocabulary is None):
            raise ConfigError("models.recurrent() takes features= of floats, or the vocabulary= of token ids")
        self.embed = None if vocabulary is None else nn.Embedding(vocabulary, width)
        layers = {"lstm": nn.LSTM, "gru": nn.GRU}[kind]
        self.layers = layers(
            features or width, width, depth, batch_first=True, bidirectional=bidirectional,
            dropout=dropout if depth > 1 else 0.0,
        )  # fmt: skip
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * width if bidirectional else width, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        steps = inputs if self.embed is None else self.embed(inputs)
        outputs: Tensor = self.head(self.dropout(self.layers(steps)[0].mean(1)))
        return outputs


recurrent = Recurrent
