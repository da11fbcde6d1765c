"""Order: which samples are in batch k of epoch e, as arithmetic on (seed, epoch, position).

A keyed permutation of 0..n-1 that is evaluated where it is asked: nothing is stored, any position of any epoch is
found at once, and any number of workers agree without talking. The permutation is the swap-or-not shuffle (Hoang,
Morris, Rogaway: "An enciphering scheme based on a card shuffle", 2012), which is exact for every n: in each round a
position and its mirror image `key - position` are exchanged or not, by a hash of the pair.
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
"""After r rounds, two neighbours have stayed neighbours with probability 2**-r."""

BLOCK = 1 << 15
"""Positions evaluated at once on the host: the whole memory that an epoch's order takes, whatever N is."""


def keys(n: int, seed: Any, epoch: Any) -> Any:
    """What a shuffle of n samples needs to know: three numbers for each round, int64 of shape (ROUNDS, 3).

    An array of epochs, (E,), gives the keys of each: (E, ROUNDS, 3).
    """
    epoch, rounds = np.asarray(epoch)[..., None], np.arange(ROUNDS)
    k = key(seed, epoch, rounds)
    # A key has 32 bits, which reach every mirror of a small n only.
    wide = k if n <= 2**32 else (k << 30) ^ key(seed, epoch, rounds, 1)
    return np.stack([wide % n, k, mix(k) >> 1 | 1], -1)


def permute(position: Any, n: int, keys: Sequence[Any]) -> Any:
    """Where `position` goes in a shuffle: integers in [0, n) to integers in [0, n), each hit once.

    `position` is an int64 array or tensor of any shape, and so is the result: there is only arithmetic in here.
    `keys` are those of the epoch; with a tensor of positions, each may be a tensor.

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
        # Bit 31 of a * pair + k is a universal hash (Dietzfelbinger et al., 1997) and cheaper than a strong one; the
        # rounds make up for it. It becomes -1, which keeps the move, or 0, which cancels it.
        pair *= multiplier
        pair += k
        pair <<= 32
        pair >>= 63
        mirror -= position
        mirror &= pair
        position = position + mirror
    return position


Places: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""From positions in an epoch, int64 and rising by 1, to the samples there."""


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
    """Samples drawn by weights (N,), as torch.utils.data.WeightedRandomSampler draws them: with replacement by a
    function of each position alone, without by an array of N for the epoch."""

    n: int
    weights: np.ndarray
    replacement: bool = True

    def places(self, seed: int, epoch: int) -> Places:
        if self.replacement:
            ends = self.weights.cumsum()
            return lambda at: ends.searchsorted(_uniform(seed, epoch, at) * ends[-1], side="right")
        # Clocks that ring at the rates of the weights ring in the order of draws (Efraimidis and Spirakis, 2006).
        with np.errstate(divide="ignore", invalid="ignore"):
            clocks = -np.log1p(-_uniform(seed, epoch, np.arange(len(self.weights)))) / self.weights
        drawn = clocks.argsort(kind="stable")
        return lambda at: drawn[at]


@frozen(eq=False)
class Cycled:
    """n samples an epoch, pass after pass of another order, on over epochs."""

    n: int
    passes: Order

    def places(self, seed: int, epoch: int) -> Places:
        of = lru_cache(2)(lambda number: self.passes.places(seed, number))

        def places(at: np.ndarray) -> np.ndarray:
            number, within = np.divmod(at + epoch * self.n, self.passes.n)
            ends = np.flatnonzero(np.diff(number)) + 1
            parts = zip(number[[0, *ends]].tolist(), np.split(within, ends), strict=True)
            return np.concatenate([of(k)(part) for k, part in parts])

        return places


Order: TypeAlias = Whole | Weighted | Cycled
"""How many samples an epoch has, and which, by their positions."""


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
