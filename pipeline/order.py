"""Order: which samples are in batch k of epoch e, as arithmetic on (seed, epoch, position).

A keyed permutation of 0..n-1 that is evaluated where it is asked: nothing is stored, any position of any epoch is
found at once, and any number of workers agree without talking. The permutation is the swap-or-not shuffle (Hoang,
Morris, Rogaway: "An enciphering scheme based on a card shuffle", 2012), which is exact for every n: in each round a
position and its mirror image `key - position` are exchanged or not, by a hash of the pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.random import key, mix

ROUNDS = 20
"""After r rounds, two neighbours have stayed neighbours with probability 2**-r."""

BLOCK = 1 << 15
"""Positions evaluated at once on the host: the whole memory that an epoch's order takes, whatever N is."""


def permute(position: Any, n: int, seed: Any, epoch: Any) -> Any:
    """Where `position` goes in the shuffle of `epoch`: integers in [0, n) to integers in [0, n), each hit once.

    `position` is an int, or an int64 array or tensor of any shape, and so is the result: there is only arithmetic in here.
    `seed` and `epoch` are ints or 0-d int64 tensors.

    >>> [permute(i, 5, seed=0, epoch=0) for i in range(5)]
    [4, 2, 3, 0, 1]
    """
    for r in range(ROUNDS):
        k = key(seed, epoch, r)
        # A key has 32 bits, which reach every mirror of a small n only.
        wide = k if n <= 2**32 else (k << 30) ^ key(seed, epoch, r, 1)
        mirror = wide % n - position
        mirror = mirror + ((mirror >> 63) & n)
        move = mirror - position
        larger = position + (move & ~(move >> 63))  # names the pair
        if n > 2**32:
            larger = larger ^ (larger >> 32)
        # The top bit of the hash decides: -1 keeps the move, 0 cancels it.
        position = position + (move & -(mix((larger ^ k) & 0xFFFFFFFF) >> 31))
    return position


def batches(n: int, size: int, seed: int, epoch: int, *, shuffle: bool = True, drop_last: bool = False,
            start: int = 0) -> Iterator[Tensor]:  # fmt: skip
    """The indices of each batch of an epoch, from batch `start` on: int64 of shape (size,), the last one shorter.

    >>> [len(b) for b in batches(10, 4, seed=0, epoch=0)]
    [4, 4, 2]
    """
    end = n - n % size if drop_last else n
    block = max(BLOCK // size, 1) * size
    for first in range(start * size, end, block):
        positions = np.arange(first, min(first + block, end))
        indices = torch.from_numpy(permute(positions, n, seed, epoch) if shuffle else positions)
        yield from torch.split(indices, size)


def count(n: int, size: int, drop_last: bool = False) -> int:
    """Batches in an epoch."""
    return n // size if drop_last else -(-n // size)
