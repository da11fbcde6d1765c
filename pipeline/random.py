"""Random numbers as a pure function of a key: the same hash on every device, eager, compiled, fused or mapped.

A counter-based generator: number i under key k is a hash of (k, i). Nothing is stored and nothing advances, so a
step that draws is still a function of its arguments. `keyed` makes a module's own draws (dropout, `torch.rand`)
come from here instead of torch's global generator.

All integers are int64 that hold 32-bit values, and multipliers are below 2**31, so that no product overflows. The
mixing is of the xorshift-multiply family: C. Wellons, "Prospecting for hash functions" (2018).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_MASK = 0xFFFFFFFF


def mix(x: Any) -> Any:
    """A bijection of the 32-bit integers in which each input bit moves about half of the output bits.

    Takes an int or an int64 tensor of any shape, with values in [0, 2**32).
    """
    x = (x ^ (x >> 16)) * 0x21F0AAAD & _MASK
    x = (x ^ (x >> 15)) * 0x735A2D97 & _MASK
    return x ^ (x >> 15)


def key(*parts: Any) -> Any:
    """One 32-bit key from several ints or 0-d int64 tensors of up to 63 bits, order counting.

    >>> key(1, 2) == key(1, 2), key(1, 2) == key(2, 1)
    (True, False)
    """
    k: Any = 0x1B873593
    for part in parts:
        k = mix((k * 5 ^ part ^ part >> 32) & _MASK)
    return k


def bits(k: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Independent 32-bit integers, as int64 of `shape` (up to 2**32 numbers), from a 0-d int64 key."""
    # The multiplication spreads the counter, so that two keys' streams are not one another's, shifted.
    count = torch.arange(math.prod(shape), device=k.device) * 0x2C1B3C6D
    numbers: Tensor = mix((count ^ k) & _MASK)
    return numbers.reshape(shape)


def uniform(k: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers in [0, 1), multiples of 2**-24 (or of what a narrower dtype can hold), of `shape`.

    >>> x = uniform(torch.tensor(7), (2, 3)); x.shape, bool(((x >= 0) & (x < 1)).all())
    (torch.Size([2, 3]), True)
    """
    digits = min(24, 1 - round(math.log2(torch.finfo(dtype).eps)))  # more would round up to 1
    numbers: Tensor = (bits(k, shape) >> (32 - digits)).to(torch.float32) * 2.0**-digits
    return numbers.to(dtype)


def normal(k: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers of `shape` (Box and Muller, 1958)."""
    radius = torch.sqrt(-2.0 * torch.log1p(-uniform(key(k, 1), shape)))
    return (radius * torch.cos(2.0 * math.pi * uniform(key(k, 2), shape))).to(dtype)


class keyed(TorchFunctionMode):
    """Within it, dropout and random tensors come from a key: the i-th draw from (seed, step, salt, i)."""

    def __init__(self, seed: Tensor, step: Tensor, salt: int) -> None:
        super().__init__()
        self.key: Tensor = key(salt, seed, step)
        self.draws = 0

    def _key(self) -> Tensor:
        self.draws += 1
        k: Tensor = mix((self.key + self.draws * 0x3504F333) & _MASK)
        return k

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        replacement = _DRAWS.get(func)
        if replacement is None:
            return func(*args, **kwargs)
        result = replacement(self._key, *args, **kwargs)
        return func(*args, **kwargs) if result is NotImplemented else result


def _mask(k: Tensor, shape: tuple[int, ...], p: float) -> Tensor:
    return bits(k, shape) >= int(p * 2**32)


def _drop(x: Tensor, keep: Tensor, p: float) -> Tensor:
    return torch.where(keep, x * (1.0 / (1.0 - p)), 0.0) if p < 1.0 else x * 0.0


def _dropout(k: Any, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    return _drop(input, _mask(k(), tuple(input.shape), p), p) if training and p > 0 else input


def _torch_dropout(k: Any, input: Tensor, p: float, train: bool) -> Any:
    return _dropout(k, input, p, train)


def _channel_dropout(unbatched: int) -> Callable[..., Any]:
    """Whole channels dropped; an input of `unbatched` dimensions has its channels first."""

    def replacement(k: Any, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
        if not training or p == 0:
            return input
        lead = 1 if input.ndim == unbatched else 2
        shape = (*input.shape[:lead], *(1 for _ in input.shape[lead:]))
        return _drop(input, _mask(k(), shape, p), p)

    return replacement


def _alpha_dropout(k: Any, input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False) -> Any:
    if not training or p == 0:
        return input
    if p == 1:
        return input * 0.0
    # Klambauer et al., Self-Normalizing Neural Networks (2017), section "New dropout technique".
    alpha = -1.7580993408473766
    a = ((1 - p) * (1 + p * alpha**2)) ** -0.5
    keep = _mask(k(), tuple(input.shape), p)
    return torch.where(keep, input, alpha) * a - a * alpha * p


def _attention(k: Any, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
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
    return _dropout(k, torch.softmax(scores, -1), dropout_p) @ value


def _shape(size: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, ...]:
    size = size or (kwargs.pop("size"),)
    return tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else tuple(size)


def _rand(draw: Callable[..., Tensor]) -> Callable[..., Any]:
    def replacement(k: Any, *size: Any, dtype: Any = None, device: Any = None, **kwargs: Any) -> Any:
        return draw(k(), _shape(size, kwargs), dtype or torch.get_default_dtype())

    return replacement


def _rand_like(draw: Callable[..., Tensor]) -> Callable[..., Any]:
    def replacement(k: Any, input: Tensor, *, dtype: Any = None, **kwargs: Any) -> Any:
        return draw(k(), tuple(input.shape), dtype or input.dtype)

    return replacement


def _bernoulli(k: Any, input: Tensor, p: float | None = None, *, generator: Any = None, out: Any = None) -> Any:
    return (uniform(k(), tuple(input.shape)) < (input if p is None else p)).to(input.dtype)


def _bernoulli_(k: Any, input: Tensor, p: Any = 0.5, *, generator: Any = None) -> Any:
    return input.copy_((uniform(k(), tuple(input.shape)) < p).to(input.dtype))


def _normal_(k: Any, input: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Any = None) -> Any:
    return input.copy_(normal(k(), tuple(input.shape), input.dtype) * std + mean)


def _uniform_(k: Any, input: Tensor, a: float = 0.0, b: float = 1.0, *, generator: Any = None, **names: Any) -> Any:
    low, high = names.get("from", a), names.get("to", b)
    return input.copy_(uniform(k(), tuple(input.shape), input.dtype) * (high - low) + low)


_DRAWS: dict[Any, Callable[..., Any]] = {
    F.dropout: _dropout,
    F.dropout1d: _channel_dropout(2),
    F.dropout2d: _channel_dropout(0),  # torch reads three dimensions as a batch here
    F.dropout3d: _channel_dropout(4),
    F.alpha_dropout: _alpha_dropout,
    torch.dropout: _torch_dropout,
    F.scaled_dot_product_attention: _attention,
    torch.rand: _rand(uniform),
    torch.randn: _rand(normal),
    torch.rand_like: _rand_like(uniform),
    torch.randn_like: _rand_like(normal),
    torch.bernoulli: _bernoulli,
    Tensor.bernoulli: _bernoulli,
    Tensor.bernoulli_: _bernoulli_,
    Tensor.normal_: _normal_,
    Tensor.uniform_: _uniform_,
}
