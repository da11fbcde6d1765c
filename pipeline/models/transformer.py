"""A causal transformer over tokens: pre-norm blocks, by default with learned positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BASE = 10_000.0
"""Of the wave lengths of rotary positions."""
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "layer": nn.LayerNorm,
    "rms": lambda width: nn.RMSNorm(width, elementwise_affine=False),
}


class Squared(nn.Module):
    """relu(x) ** 2."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


class SwiGLU(nn.Module):
    """silu(a) * b of the halves a and b of the last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return F.silu(a) * b


class Block(nn.Module):
    """Attention and a two-layer perceptron, each added to its input. Shapes: (B, T, D) -> (B, T, D).

    A token attends to those before it, or where `mask` is true: bool, of a shape that broadcasts to (B, 1, T, T).
    Options are those of Transformer.
    """

    def __init__(
        self, width: int, heads: int, dropout: float, *, norm: str = "layer", activation: str = "gelu",
        qk_norm: bool = False, bias: bool = True, zero_init: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.heads, self.dropout, self.qk_norm = heads, dropout, qk_norm
        self.norm1, self.norm2 = NORMS[norm](width), NORMS[norm](width)
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)
        hidden, act = {
            "gelu": (4 * width, nn.GELU()), "relu2": (4 * width, Squared()), "swiglu": (8 * width // 3, SwiGLU()),
        }[activation]  # fmt: skip
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden * (2 if activation == "swiglu" else 1), bias=bias), act,
            nn.Linear(hidden, width, bias=bias), nn.Dropout(dropout),
        )  # fmt: skip
        if zero_init:
            for p in (*self.out.parameters(), *self.mlp[2].parameters()):
                nn.init.zeros_(p)

    def forward(self, x: Tensor, mask: Tensor | None = None, turns: Tensor | None = None) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        if self.qk_norm:
            q, k = (F.rms_norm(each, (d // self.heads,)) for each in (q, k))
        if turns is not None:
            q, k = rotated(q, turns), rotated(k, turns)
        p = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p, is_causal=mask is None)
        x = x + F.dropout(self.out(attended.transpose(1, 2).reshape(b, t, d)), p)
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


def turning(positions: Tensor, size: int) -> Tensor:
    """Cosines and sines, (2, T, size / 2), of rotary positions (T,) for heads of a size."""
    waves = BASE ** -(torch.arange(size // 2, device=positions.device) / (size // 2))
    angles = positions[:, None] * waves
    return torch.stack([angles.cos(), angles.sin()])


def rotated(x: Tensor, turns: Tensor) -> Tensor:
    """Queries or keys (B, H, T, size), each pair of features turned by its position's angle."""
    cos, sin = turns.to(x.dtype)
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos + b * sin, b * cos - a * sin, rest], -1)


class Transformer(nn.Module):
    """Token ids (B, T) int64 -> logits of the next token (B, T, vocabulary); T up to `context`, or any with "rotary"
    positions.

    - `positions`: "learned", or "rotary": queries and keys turned by an angle for each position. Source: Su et al.,
      RoFormer (2021), section 3.2.
    - `norm`: "layer", or "rms", without weights, of the embedding too. `qk_norm` normalizes queries and keys of heads.
    - `activation`: "gelu"; "relu2", relu(x) ** 2; or "swiglu", with as many weights.
    - `zero_init`: blocks add nothing at first, and logits are 0, unless `tied`: the head is the embedding.
    - `softcap`: logits z become z / sqrt(1 + (z / softcap) ** 2).
    - `bigrams`: rows of an embedding of pairs of tokens, hashed, which is added to the tokens' and begins with zeros.

    Source of all but the pairs: Jordan et al., modded-nanogpt (2024).

    >>> transformer(50, width=16, heads=2, depth=1)(torch.zeros(2, 7, dtype=torch.long)).shape
    torch.Size([2, 7, 50])
    """

    def __init__(
        self, vocabulary: int, context: int = 256, width: int = 128, heads: int = 4, depth: int = 4,
        dropout: float = 0.0, *, positions: str = "learned", norm: str = "layer", activation: str = "gelu",
        qk_norm: bool = False, bias: bool = True, zero_init: bool = False, tied: bool = False, softcap: float = 0.0,
        bigrams: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.softcap, self.size, self.vocabulary = softcap, width // heads, vocabulary
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width) if positions == "learned" else None
        self.pairs = nn.Embedding(bigrams, width) if bigrams else None
        self.first = NORMS[norm](width) if norm == "rms" else nn.Identity()
        options: dict[str, Any] = {
            "norm": norm, "activation": activation, "qk_norm": qk_norm, "bias": bias, "zero_init": zero_init,
        }  # fmt: skip
        self.blocks = nn.Sequential(*(Block(width, heads, dropout, **options) for _ in range(depth)))
        self.norm = NORMS[norm](width)
        self.head = None if tied else nn.Linear(width, vocabulary, bias=False)
        if zero_init and self.head is not None:
            nn.init.zeros_(self.head.weight)
        if self.pairs is not None:
            nn.init.zeros_(self.pairs.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.size(1), device=tokens.device)
        x = self.tokens(tokens)
        turns = None
        if self.positions is not None:
            x = x + self.positions(positions)
        else:
            turns = turning(positions, self.size)
        if self.pairs is not None:
            before = F.pad(tokens[:, :-1], (1, 0))
            x = x + self.pairs((before * self.vocabulary + tokens) % self.pairs.num_embeddings)
        x = self.first(x)
        for block in self.blocks:
            x = block(x, None, turns)
        x = self.norm(x)
        logits: Tensor = F.linear(x, self.tokens.weight) * x.shape[-1] ** -0.5 if self.head is None else self.head(x)
        if self.softcap:
            logits = logits * torch.rsqrt(1.0 + (logits / self.softcap).square())
        return logits


transformer: Callable[..., Transformer] = Transformer
