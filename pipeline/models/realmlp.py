"""RealMLP: a multilayer perceptron with tuned defaults for tables.

Source: Holzmüller, Grinsztajn and Steinwart, Better by default: strong pre-tuned MLPs and boosted trees on tabular data
(2024), section 3 and appendix A. Shapes: B rows, D numbers, C categories, F features of a row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.columns import WIDTH, OneHot, Robust, Rows, Size, apart, split

FACTORS: Mapping[str, Mapping[str, float]] = {
    "lr": {"scale": 6.0, "*bias": 0.1, "*.slope": 0.1, "periodic.*": 0.1, "texts.*.blocks.*": 0.05},
    "weight_decay": {"*bias": 0.0},
}
"""Factors of the optimizer's numbers, by patterns of parameters: `update.scaled(rule, **FACTORS)`."""
FREQUENCIES, FREQUENCY_STD, EMBEDDED = 16, 0.1, 3
"""Periodic embedding of a number: waves, deviation of their frequencies, and width."""
MIXED = 5
"""Training samples whose mixture is a neuron's first threshold."""


class Periodic(nn.Module):
    """Numbers (B, D) -> (B, 4 D): beside each number x, a linear map to 3 of 16 waves cos(2 pi f x + phase)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        bound = FREQUENCIES**-0.5
        self.frequency = nn.Parameter(FREQUENCY_STD * torch.randn(features, FREQUENCIES))
        self.phase = nn.Parameter(math.pi * (2.0 * torch.rand(features, FREQUENCIES) - 1.0))
        self.mix = nn.Parameter(bound * (2.0 * torch.rand(features, FREQUENCIES, EMBEDDED) - 1.0))
        self.shift = nn.Parameter(bound * (2.0 * torch.rand(features, EMBEDDED) - 1.0))

    def forward(self, numbers: Tensor) -> Tensor:
        waves = torch.cos(2.0 * math.pi * numbers[:, :, None] * self.frequency + self.phase)
        mixed = torch.einsum("bfk,fkj->bfj", waves, self.mix) + self.shift
        return torch.cat([numbers[:, :, None], mixed], 2).flatten(1)


class Linear(nn.Module):
    """x W / sqrt(F) + b, the NTK parametrisation. Shapes: (B, F) -> (B, outputs)."""

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features, outputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x @ self.weight * (len(self.weight) ** -0.5) + self.bias
        return y

    def fit(self, x: Tensor) -> None:
        """Scale each neuron to deviation 1 over training features (N, F); its first threshold is a random mixture of
        its values for 5 of them."""
        with torch.no_grad():
            self.bias.zero_()
            deviation = self(x).std(0, correction=0)
            self.weight.div_(torch.where(deviation > 1e-6, deviation, 1.0))
            values = self(x)
            picked = values.gather(0, torch.randint(len(x), (MIXED, values.shape[1])))
            shares = torch.empty_like(picked).exponential_()
            self.bias.copy_(-(picked * shares / shares.sum(0)).sum(0))


class Activation(nn.Module):
    """x + slope (f(x) - x), with a slope for each neuron, at first 1, of f = SELU or Mish. Shapes: (B, F) -> (B, F)."""

    def __init__(self, features: int, kind: str) -> None:
        super().__init__()
        self.slope, self.kind = nn.Parameter(torch.ones(features)), kind

    def forward(self, x: Tensor) -> Tensor:
        return x + self.slope * ((F.selu(x) if self.kind == "selu" else F.mish(x)) - x)


class RealMLP(nn.Module):
    """Robustly scaled numbers with periodic embeddings, one-hot or embedded categories, mean embeddings of texts, a
    trained scale of each feature, then NTK linear layers with parametric activations and dropout.

    Shapes: inputs (B, D) float32, categories (B, C) int64 of the sizes `categories` -> (B, outputs).

    - `sample`: training rows, to which the scales of columns are fitted and the first weights are adapted, and, with
      `clamp`, standardised targets (N, outputs), which bound what is answered in eval mode. Without one, values are
      placeholders for a trained State's.
    - `activation`: "selu", for classes, or "mish", for values.
    - `text_depth`: blocks of a transformer over each text.

    >>> rows = {"inputs": torch.randn(50, 5), "categories": torch.randint(3, (50, 2))}
    >>> realmlp(5, 3, categories=(4, 13), sample=rows)(**rows).shape
    torch.Size([50, 3])
    """

    low: Tensor
    high: Tensor

    def __init__(
        self, features: int, outputs: int, *, categories: Sequence[Size] = (), hidden: Sequence[int] = (256, 256, 256),
        activation: str = "selu", dropout: float = 0.15, clamp: bool = False, text_depth: int = 0,
        sample: Rows | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        sizes, self.texts = apart(categories, text_depth)
        few, many = split(sizes)
        numbers = None if sample is None else sample["inputs"]
        self.robust = Robust(features, numbers) if features else None
        self.periodic = Periodic(features) if features else None
        self.few, self.many, self.p, self.clamp = few, many, dropout, clamp
        width = features * (1 + EMBEDDED) + WIDTH * len(many)
        if few:
            self.one_hot = OneHot([sizes[i] for i in few])
            shown: Tensor | None = None if sample is None else self.one_hot(sample["categories"][:, few])
            self.robust_hot = Robust(len(self.one_hot.one), shown)
            width += len(self.one_hot.one)
        self.embeddings = nn.ModuleList(_embedding(sizes[i]) for i in many)
        width += 0 if self.texts is None else self.texts.width
        self.scale = nn.Parameter(torch.ones(width))
        widths = (width, *hidden)
        self.layers = nn.ModuleList(Linear(a, b) for a, b in pairwise(widths))
        self.activations = nn.ModuleList(Activation(b, activation) for b in hidden)
        self.head = Linear(widths[-1], outputs)
        self.register_buffer("low", torch.zeros(outputs))
        self.register_buffer("high", torch.zeros(outputs))
        if sample is not None:
            self._fit(sample)

    def forward(self, inputs: Tensor, categories: Tensor | None = None, dropout: Tensor | None = None) -> Tensor:
        x: Tensor = self.scale * self.features(inputs, categories)
        for layer, activation in zip(self.layers, self.activations, strict=True):
            x = _dropped(activation(layer(x)), self.p if dropout is None else dropout, self.training)
        outputs: Tensor = self.head(x)
        if self.clamp and not self.training:
            outputs = torch.minimum(torch.maximum(outputs, self.low), self.high)
        return outputs

    def features(self, inputs: Tensor, categories: Tensor | None) -> Tensor:
        """The features of rows, (B, F)."""
        columns = [] if self.periodic is None or self.robust is None else [self.periodic(self.robust(inputs))]
        if categories is not None and self.few:
            few = categories if len(self.few) == categories.shape[1] else categories[:, self.few]
            columns.append(self.robust_hot(self.one_hot(few)))
        if categories is not None:
            columns += [embed(categories[:, i]) for i, embed in zip(self.many, self.embeddings, strict=True)]
            columns += [self.texts(categories)] if self.texts is not None else []
        return torch.cat(columns, 1)

    def _fit(self, sample: Rows) -> None:
        with torch.no_grad():
            x = self.features(sample["inputs"], sample.get("categories"))
            for layer, activation in zip(self.layers, self.activations, strict=True):
                assert isinstance(layer, Linear)
                layer.fit(x)
                x = activation(layer(x))
            self.head.fit(x)
            if self.clamp:
                self.low.copy_(sample["targets"].amin(0))
                self.high.copy_(sample["targets"].amax(0))


def _embedding(size: int) -> nn.Embedding:
    """Of code 0 it is at first 0: a new value says nothing."""
    embedding = nn.Embedding(size, WIDTH)
    with torch.no_grad():
        embedding.weight[0] = 0.0
    return embedding


def _dropped(x: Tensor, p: Tensor | float, training: bool) -> Tensor:
    """Dropout with a probability that may be a tensor."""
    if not isinstance(p, Tensor):
        return F.dropout(x, p, training)
    return torch.where(torch.rand_like(x) >= p, x / (1.0 - p), 0.0) if training else x


realmlp = RealMLP
