"""Dropout with keyed masks: of elements and channels, in attention, and between recurrent layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipeline.random import Key, bits


def _mask(k: int | Tensor, shape: tuple[int, ...], p: float) -> Tensor:
    if not 0 <= p <= 1:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    return bits(k, shape) >= int(p * 2**32)


def _drop(x: Tensor, keep: Tensor, p: float) -> Tensor:
    return torch.where(keep, x * (1.0 / (1.0 - p)), 0.0) if p < 1.0 else x * 0.0


def dropout(k: Key, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or p == 0:
        return input
    dropped = _drop(input, _mask(k(), tuple(input.shape), p), p)
    return input.copy_(dropped) if inplace else dropped


def native_dropout(k: Key, input: Tensor, p: float, train: bool | None = True) -> tuple[Tensor, Tensor]:
    if train is False or p == 0:
        return input.clone(), torch.ones_like(input, dtype=torch.bool)
    keep = _mask(k(), tuple(input.shape), p)
    return _drop(input, keep, p), keep


def channel_dropout(unbatched: int) -> Callable[..., Tensor]:
    """Drop whole channels, which are dimension 0 of inputs with `unbatched` dimensions, otherwise 1."""

    def draw(k: Key, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0:
            return input
        lead = 1 if input.ndim == unbatched else 2
        shape = (*input.shape[:lead], *(1 for _ in input.shape[lead:]))
        dropped = _drop(input, _mask(k(), shape, p), p)
        return input.copy_(dropped) if inplace else dropped

    return draw


def alpha_dropout(channels: bool) -> Callable[..., Tensor]:
    def draw(k: Key, input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False) -> Tensor:
        if not training or p == 0:
            return input
        # Klambauer et al., Self-Normalizing Neural Networks (2017), section "New dropout technique".
        alpha = -1.7580993408473766
        a = 0.0 if p >= 1 else ((1 - p) * (1 + p * alpha**2)) ** -0.5
        shape = (*input.shape[:2], *(1 for _ in input.shape[2:])) if channels else tuple(input.shape)
        dropped = torch.where(_mask(k(), shape, p), input, alpha) * a - a * alpha * p if p != 1 else input * 0.0
        return input.copy_(dropped) if inplace else dropped

    return draw


def attention(k: Key, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
               dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
               enable_gqa: bool = False) -> Any:  # fmt: skip
    if dropout_p == 0.0:
        return NotImplemented
    if enable_gqa:
        groups = query.size(-3) // key.size(-3)
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    scores = query @ key.transpose(-2, -1) * (query.size(-1) ** -0.5 if scale is None else scale)
    if is_causal:
        allowed = torch.ones(query.size(-2), key.size(-2), dtype=torch.bool, device=query.device).tril()
        scores = scores.masked_fill(~allowed, -math.inf)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    # A row that may attend to nothing is 0, as in torch, where softmax would be NaN.
    weights = torch.softmax(scores, -1) if attn_mask is None else torch._safe_softmax(scores, -1)
    return dropout(k, weights, dropout_p) @ value


def recurrent(layer: Callable[..., Any], states: int) -> Callable[..., Any]:
    """Run recurrent layers one by one, with keyed dropout between them."""

    def draw(k: Key, *args: Any) -> Any:
        packed = not isinstance(args[3], bool)  # PackedSequence: its batch sizes follow its data
        x, *sizes = args[:2] if packed else args[:1]
        hx, weights, biases, layers, p, train, both, *batch_first = args[1 + packed :]
        if not p or not train or layers == 1:
            return NotImplemented
        first = hx if states == 2 else (hx,)
        each, ways = len(weights) // layers, 2 if both else 1
        last: list[tuple[Tensor, ...]] = []
        for i in range(layers):
            begin = tuple(h[i * ways : (i + 1) * ways] for h in first)
            own = weights[i * each : (i + 1) * each]
            state = begin if states == 2 else begin[0]
            x, *end = layer(x, *sizes, state, own, biases, 1, 0.0, train, both, *batch_first)
            last.append(tuple(end))
            x = dropout(k, x, p) if i < layers - 1 else x
        return (x, *[torch.cat(h) for h in zip(*last, strict=True)])

    return draw
