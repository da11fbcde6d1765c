"""Order: the samples of batch k of epoch e, as arithmetic on (seed, epoch, position).

A keyed permutation of 0..n-1, evaluated at any position: nothing is stored, any batch of any epoch is computed
directly, and workers agree without communication. It is the swap-or-not shuffle (Hoang, Morris, Rogaway: "An
enciphering scheme based on a card shuffle", 2012), a permutation for every n: in each round, a hash of a position and
its mirror image `key - position` decides whether they are exchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import torch
from attrs import frozen
from torch import Tensor

from pipeline.random import key, mix

ROUNDS = 24
"""Two neighbours are still neighbours after r rounds with probability 2**-r."""

BLOCK = 1 << 15
"""Positions evaluated at once on the host: the memory of an epoch's order, for any n."""


def keys(n: int, seed: Any, epoch: Any) -> Any:
    """Keys of a shuffle of n samples: int64 (ROUNDS, 3), or for epochs (E,), (E, ROUNDS, 3)."""
    epoch, rounds = np.asarray(epoch)[..., None], np.arange(ROUNDS)
    k = key(seed, epoch, rounds)
    # A key has 32 bits: a larger n needs two.
    wide = k if n <= 2**32 else (k << 30) ^ key(seed, epoch, rounds, 1)
    return np.stack([wide % n, k, mix(k) >> 1 | 1], -1)


def permute(position: Any, n: int, keys: Sequence[Any]) -> Any:
    """Positions in [0, n) -> samples in [0, n), one to one: an int64 array or tensor of any shape.

    `keys`: of the epoch; with a tensor of positions, each may be a tensor.

    >>> permute(np.arange(5), 5, keys(5, seed=0, epoch=0)).tolist()
    [3, 2, 4, 0, 1]
    """
    maximum: Any = torch.maximum if isinstance(position, Tensor) else np.maximum
    for turn, k, multiplier in keys:
        mirror = turn - position
        negative = mirror >> 63
        negative &= n
        mirror += negative
        pair = maximum(position, mirror)
        if n > 2**32:
            pair = (pair ^ (pair >> 32)) & 0xFFFFFFFF
        # Bit 31 of a * pair + k is a universal hash (Dietzfelbinger et al., 1997): weak but cheap, and there are many
        # rounds. It becomes a mask: -1 exchanges, 0 does not.
        pair *= multiplier
        pair += k
        pair <<= 32
        pair >>= 63
        mirror -= position
        mirror &= pair
        position = position + mirror
    return position


Places: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""Positions in an epoch, int64 and rising by 1 -> samples."""


@frozen
class Whole:
    """Each of n samples once."""

    n: int
    shuffle: bool = True

    def places(self, seed: int, epoch: int) -> Places:
        rounds = keys(self.n, seed, epoch) if self.shuffle else ()
        return lambda at: permute(at, self.n, rounds)


@frozen(eq=False)
class Weighted:
    """n samples drawn by weights (N,), as torch's WeightedRandomSampler: with replacement, by a function of each
    position; without, by an array of N for the epoch."""

    n: int
    weights: np.ndarray
    replacement: bool = True

    def places(self, seed: int, epoch: int) -> Places:
        if self.replacement:
            ends = self.weights.cumsum()
            return lambda at: ends.searchsorted(_uniform(seed, epoch, at) * ends[-1], side="right")
        # Exponential times with the weights as rates, sorted, give the order of draws (Efraimidis and Spirakis, 2006).
        with np.errstate(divide="ignore", invalid="ignore"):
            times = -np.log1p(-_uniform(seed, epoch, np.arange(len(self.weights)))) / self.weights
        drawn = times.argsort(kind="stable")
        return lambda at: drawn[at]


@frozen(eq=False)
class Cycled:
    """n samples an epoch of another order, pass after pass, on across epochs."""

    n: int
    passes: Order

    def places(self, seed: int, epoch: int) -> Places:
        in_pass = lru_cache(2)(lambda number: self.passes.places(seed, number))

        def places(at: np.ndarray) -> np.ndarray:
            number, within = np.divmod(at + epoch * self.n, self.passes.n)
            ends = np.flatnonzero(np.diff(number)) + 1
            pieces = zip(number[[0, *ends]].tolist(), np.split(within, ends), strict=True)
            return np.concatenate([in_pass(k)(piece) for k, piece in pieces])

        return places


Order: TypeAlias = Whole | Weighted | Cycled
"""The samples of an epoch, `n` of them, by their positions."""


def _uniform(seed: int, epoch: int, at: np.ndarray) -> np.ndarray:
    """A number in [0, 1) for each position, a multiple of 2**-53."""
    high, low = (key(seed, epoch, at, part) for part in (0, 1))
    return np.asarray((high << 21 | low >> 11) * 2.0**-53)


def batches(order: Order, size: int, seed: int, epoch: int, *, drop_last: bool = False,
            start: int = 0) -> Iterator[Tensor]:  # fmt: skip
    """The indices of each batch of an epoch, from batch `start` on: int64 of shape (size,), the last one shorter.

    >>> [len(b) for b in batches(Whole(10), 4, seed=0, epoch=0)]
    [4, 4, 2]
    """
    end = order.n - order.n % size if drop_last else order.n
    block, places = max(BLOCK // size, 1) * size, order.places(seed, epoch)
    for first in range(start * size, end, block):
        yield from torch.split(torch.from_numpy(places(np.arange(first, min(first + block, end)))), size)


def count(n: int, size: int, drop_last: bool = False) -> int:
    """Batches in an epoch."""
    return n // size if drop_last else -(-n // size)
