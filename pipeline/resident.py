"""Resident: a data set that lives on the device as a whole, with the order in which its samples come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pipeline import order as orders
from pipeline.load import Load

WINDOW, BATCHES = 2048, 64
"""The order is worked out for at least so many samples, and so many batches, at once."""

AHEAD = 64
"""Epochs whose keys are worked out together."""

Permute: TypeAlias = Callable[[Tensor, int, int, Tensor], None]
"""A fast way to write into (count,) int64 where so many positions, from one on, go in a shuffle of n samples by its
keys."""


class Resident:
    """A data set on the device. Its order is worked out for many batches at once, into a tensor that a graph gathers
    by."""

    def __init__(
        self, place: Callable[[Any], Any], load: Load, tensors: dict[str, Tensor] | None = None,
        orders: int | None = None,
    ) -> None:  # fmt: skip
        self.load, self.n, self._place = load, load.order.n, place
        self.tensors: dict[str, Tensor] = tensors or place({k: t.contiguous() for k, t in load.tensors.items()})
        self.batches = load.batches or 0
        """Of an epoch."""
        self.window = max(min(max(WINDOW // load.size, BATCHES), self.batches), 1)
        """Batches whose order is there."""
        width = self.window * sum(part.size for part in (load, *load.others))
        shape = (width,) if orders is None else (orders, width)
        self.order: Tensor = place(torch.zeros(shape, dtype=torch.int64))
        self.cursor: Tensor = place(torch.zeros(1, dtype=torch.int64))
        """The next batch of the window."""
        self.static = (*self.tensors.values(), self.order, self.cursor)
        self._keys: dict[tuple[int, int], Tensor] = {}
        self._places = lru_cache(2 * (orders or 1))(lambda load, seed, epoch: load.order.places(seed, epoch))
        self._there: tuple[Any, int, int] | None = None
        """Seed, epoch and window whose order is there."""
        self._next = 0

    def sizes(self, start: int, count: int) -> list[int]:
        """The sizes of batches `start` to `start + count` of an epoch: of them all but, perhaps, the last one."""
        whole = self.n // self.load.size
        return [self.load.size] * (start < whole) + [self.n % self.load.size] * (start + count > whole)

    def walk(
        self, seed: Any, epoch: int, start: int, count: int, permute: Permute | None = None
    ) -> Iterator[tuple[int, int]]:
        """Batches `start` to `start + count` of an epoch, in stretches of (size, how many): before each is given out,
        the cursor and the order are where it begins."""
        size, whole, end = self.load.size, self.n // self.load.size, start + count
        while start < end:
            at = self.seek(seed, epoch, start, permute)
            stop = min(end, start - at + self.window, *([whole] if start < whole else []))
            self._next = at + stop - start
            yield (size if start < whole else self.n - whole * size), stop - start
            start = stop

    def seek(self, seed: Any, epoch: int, batch: int, permute: Permute | None = None) -> int:
        """Have the order of the window that a batch of an epoch is in; its place in there."""
        window, at = divmod(batch, self.window)
        if self._there != (seed, epoch, window):
            self._fill(seed, epoch, window * self.window, permute)
            self._there = (seed, epoch, window)
        elif self._next == at:
            return at
        self.cursor.fill_(at)
        self._next = at
        return at

    def _fill(self, seed: Any, epoch: int, batch: int, permute: Permute | None) -> None:
        rows, first = self.order.view(-1, self.order.shape[-1]), dict[int, int]()
        for i, own in enumerate(seed if isinstance(seed, tuple) else (seed,) * len(rows)):
            if first.setdefault(own, i) < i:  # members of one seed have one order
                rows[i] = rows[first[own]]
            else:
                self._fill_one(rows[i], own, epoch, batch, permute)

    def _fill_one(self, order: Tensor, seed: int, epoch: int, batch: int, permute: Permute | None) -> None:
        streams = self.load.streams(seed)
        parts = torch.split(order, [self.window * load.size for load, _ in streams])
        for (load, own), part in zip(streams, parts, strict=True):
            first, n = batch * load.size, load.order.n
            there, whole = part[: n - first], load.order == orders.Whole(n)
            if whole and permute is not None:
                permute(there, first, n, self._keys_of(own, epoch))
                continue
            at = np.arange(first, first + len(there))
            keys = self._keys_of(own, epoch).tolist() if whole else None
            found = orders.permute(at, n, keys) if keys is not None else self._places(load, own, epoch)(at)
            there.copy_(self._place(torch.from_numpy(found)))

    def _keys_of(self, seed: int, epoch: int) -> Tensor:
        if (seed, epoch) not in self._keys:
            numbers = torch.from_numpy(orders.keys(self.n, seed, np.arange(epoch, epoch + AHEAD)))
            self._keys = {at: keys for at, keys in self._keys.items() if at[1] >= epoch}
            self._keys |= {(seed, epoch + i): keys for i, keys in enumerate(numbers.unbind())}
        return self._keys[seed, epoch]
