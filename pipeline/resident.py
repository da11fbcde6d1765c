"""Resident: a whole data set on the device, with a window of its order of samples."""

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
"""Minimum number of samples, and of batches, in one computation of the order."""

AHEAD = 64
"""Number of epochs in one computation of shuffle keys."""

Permute: TypeAlias = Callable[[Tensor, int, int, Tensor], None]
"""Writes (count,) int64: the samples at positions `first` to `first + count` of a shuffle of n samples, by its keys."""


class Resident:
    """A data set on the device. Indices of many batches are computed at once, for a graph to gather by."""

    def __init__(
        self, place: Callable[[Any], Any], load: Load, tensors: dict[str, Tensor] | None = None,
        orders: int | None = None,
    ) -> None:  # fmt: skip
        self.load, self.n, self._place = load, load.order.n, place
        self.tensors: dict[str, Tensor] = tensors or place({k: t.contiguous() for k, t in load.tensors.items()})
        self.batches = load.batches or 0
        """Batches of an epoch."""
        self.window = max(min(max(WINDOW // load.size, BATCHES), self.batches), 1)
        """Number of batches with loaded indices."""
        width = self.window * sum(part.size for part in (load, *load.others))
        shape = (width,) if orders is None else (orders, width)
        self.order: Tensor = place(torch.zeros(shape, dtype=torch.int64))
        self.cursor: Tensor = place(torch.zeros(1, dtype=torch.int64))
        """Next batch of the window."""
        self.static = (*self.tensors.values(), self.order, self.cursor)
        self._keys: dict[tuple[int, int], Tensor] = {}
        self._places = lru_cache(2 * (orders or 1))(lambda load, seed, epoch: load.order.places(seed, epoch))
        self._loaded: tuple[Any, int, int] | None = None
        """Key of the loaded window: seed, epoch and number."""
        self._next = 0

    def sizes(self, start: int, count: int) -> list[int]:
        """Sizes of batches `start` to `start + count` of an epoch; the last one may be shorter."""
        whole = self.n // self.load.size
        return [self.load.size] * (start < whole) + [self.n % self.load.size] * (start + count > whole)

    def walk(
        self, seed: Any, epoch: int, start: int, count: int, permute: Permute | None = None
    ) -> Iterator[tuple[int, int]]:
        """Batches `start` to `start + count` of an epoch, in stretches of (size, count). The cursor and the indices are
        set before each is yielded."""
        size, whole, end = self.load.size, self.n // self.load.size, start + count
        while start < end:
            at = self.seek(seed, epoch, start, permute)
            stop = min(end, start - at + self.window, *([whole] if start < whole else []))
            self._next = at + stop - start
            yield (size if start < whole else self.n - whole * size), stop - start
            start = stop

    def seek(self, seed: Any, epoch: int, batch: int, permute: Permute | None = None) -> int:
        """Load the window of a batch; returns its place in the window."""
        window, at = divmod(batch, self.window)
        if self._loaded != (seed, epoch, window):
            self._fill(seed, epoch, window * self.window, permute)
            self._loaded = (seed, epoch, window)
        elif self._next == at:
            return at
        self.cursor.fill_(at)
        self._next = at
        return at

    def _fill(self, seed: Any, epoch: int, batch: int, permute: Permute | None) -> None:
        rows, first = self.order.view(-1, self.order.shape[-1]), dict[int, int]()
        for i, own in enumerate(seed if isinstance(seed, tuple) else (seed,) * len(rows)):
            if first.setdefault(own, i) < i:  # members with equal seeds share an order
                rows[i] = rows[first[own]]
            else:
                self._fill_one(rows[i], own, epoch, batch, permute)

    def _fill_one(self, order: Tensor, seed: int, epoch: int, batch: int, permute: Permute | None) -> None:
        streams = self.load.streams(seed)
        parts = torch.split(order, [self.window * load.size for load, _ in streams])
        for (load, own), part in zip(streams, parts, strict=True):
            first, n = batch * load.size, load.order.n
            indices, whole = part[: n - first], load.order == orders.Whole(n)
            if whole and permute is not None:
                permute(indices, first, n, self._keys_of(own, epoch))
                continue
            at = np.arange(first, first + len(indices))
            keys = self._keys_of(own, epoch).tolist() if whole else None
            computed = orders.permute(at, n, keys) if keys is not None else self._places(load, own, epoch)(at)
            indices.copy_(self._place(torch.from_numpy(computed)))

    def _keys_of(self, seed: int, epoch: int) -> Tensor:
        if (seed, epoch) not in self._keys:
            numbers = torch.from_numpy(orders.keys(self.n, seed, np.arange(epoch, epoch + AHEAD)))
            self._keys = {at: keys for at, keys in self._keys.items() if at[1] >= epoch}
            self._keys |= {(seed, epoch + i): keys for i, keys in enumerate(numbers.unbind())}
        return self._keys[seed, epoch]
