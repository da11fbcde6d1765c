"""Random numbers as a pure function of a key: the same hash on every device, eager, compiled, fused or mapped.

A counter-based generator: number i under key k is a hash of (k, i). It has no state, so a step that draws is still a
pure function. `pipeline.draws` routes the draws of modules and stages (dropout, `torch.rand`) here.

Integers are int64 with 32-bit values, and multipliers are below 2**31, so that no product overflows. The mixing
function belongs to the xorshift-multiply family: C. Wellons, "Prospecting for hash functions" (2018).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from pipeline import mesh

Key = Callable[[], "int | Tensor"]
"""Returns the key of the next draw."""

MASK = 0xFFFFFFFF

BLOCK = 1 << 14
"""Numbers hashed at once on the host, so that they stay in the processor's cache."""

SPREAD = 0x2C1B3C6D


def mix(x: Any) -> Any:
    """A bijection of the 32-bit integers in which each input bit moves about half of the output bits.

    Takes an int, or an int64 tensor or uint32 array of any shape, with values in [0, 2**32).
    """
    x = (x ^ (x >> 16)) * 0x21F0AAAD & MASK
    x = (x ^ (x >> 15)) * 0x735A2D97 & MASK
    return x ^ (x >> 15)


def key(*parts: Any) -> Any:
    """A 32-bit key from ints or 0-d int64 tensors of up to 63 bits; their order matters.

    >>> key(1, 2) == key(1, 2), key(1, 2) == key(2, 1)
    (True, False)
    """
    k: Any = 0x1B873593
    for part in parts:
        k = mix((k * 5 ^ part ^ part >> 32) & MASK)
    return settled(k)


def settled(k: Any) -> Any:
    """The key, materialised if it is a tensor.

    Otherwise a compiler would recompute it in each loop that reads it, and its expression doubles with each round of
    mixing. A strided view needs memory behind it.
    """
    return k.as_strided(k.shape, k.stride()) if isinstance(k, Tensor) else k


def computed() -> bool:
    """Whether numbers are computed now, and not traced or mapped."""
    traced = get_proxy_mode() is not None or torch.compiler.is_compiling()
    return not traced and not transformed()


def transformed() -> bool:
    """Whether this code is under a transformation of torch.func, such as vmap."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def known(k: int | Tensor) -> int | Tensor:
    """A number as an int if it is a tensor on the host that is computed now: its arithmetic is quicker."""
    return int(k) if type(k) is Tensor and k.device.type == "cpu" and computed() else k


def bits(k: int | Tensor, shape: tuple[int, ...]) -> Tensor:
    """Independent 32-bit integers, as int64 of `shape` (up to 2**32 numbers), from a key: an int or 0-d int64."""
    # The multiplication spreads the counter: otherwise streams of two keys could be shifted copies.
    first, n, k = mesh.draw_offset(shape), math.prod(shape), known(k)
    if isinstance(k, Tensor):
        count = torch.arange(first, first + n, device=k.device)
        numbers: Tensor = mix((count * SPREAD ^ k) & MASK)
        return numbers.reshape(shape)
    hashed = np.empty(n, np.int64)  # by numpy, whose integers may have 32 bits: 10 times as fast
    for at in range(0, n, BLOCK):
        block = np.arange(first + at, first + min(at + BLOCK, n)).astype(np.uint32)
        hashed[at : at + BLOCK] = mix(block * np.uint32(SPREAD) ^ np.uint32(k))
    return torch.from_numpy(hashed).reshape(shape)


def seed_torch(k: int) -> None:
    """Seed torch's global generator; torch.manual_seed would also seed each GPU."""
    torch.default_generator.manual_seed(k)


def seed_all(k: int) -> None:
    """Seed the global generators of torch, Python and NumPy."""
    seed_torch(k)
    random.seed(k)
    np.random.seed(k)


@contextmanager
def restored() -> Iterator[None]:
    """Context after which the global generators are as before."""
    before = torch.default_generator.get_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.default_generator.set_state(before[0])
        random.setstate(before[1])
        np.random.set_state(before[2])


@contextmanager
def seeded(k: int) -> Iterator[None]:
    """Context in which draws from the global generators are a function of a key."""
    with restored():
        seed_all(k)
        yield


def uniform(k: int | Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers in [0, 1), multiples of 2**-24 (or of the dtype's precision), of `shape`.

    >>> x = uniform(torch.tensor(7), (2, 3)); x.shape, bool(((x >= 0) & (x < 1)).all())
    (torch.Size([2, 3]), True)
    """
    if dtype.is_complex:
        return torch.complex(*(uniform(key(k, i), shape, dtype.to_real()) for i in (1, 2)))
    digits = min(24, 1 - round(math.log2(torch.finfo(dtype).eps)))  # more would round up to 1
    numbers: Tensor = (bits(k, shape) >> (32 - digits)).to(torch.float32) * 2.0**-digits
    return numbers.to(dtype)


def normal(k: int | Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers of `shape` (Box and Muller, 1958)."""
    if dtype.is_complex:  # of variance 1, as torch's
        return torch.complex(*(math.sqrt(0.5) * normal(key(k, i), shape, dtype.to_real()) for i in (1, 2)))
    radius = torch.sqrt(-2.0 * torch.log1p(-uniform(key(k, 1), shape)))
    return (radius * torch.cos(2.0 * math.pi * uniform(key(k, 2), shape))).to(dtype)
