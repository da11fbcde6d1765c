"""Mapped: arrays that stay on disk. Only the rows of a batch are read."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from attrs import evolve, field, frozen
from torch import Tensor

from pipeline import order
from pipeline.errors import DataError
from pipeline.sources.parts import Split
from pipeline.sources.tensors import as_tensor
from pipeline.state import Batch

HELD = 64 << 20
"""So many bytes read stay in this process before they are given back to the system, which keeps the file's pages."""


class Pages:
    """The pages of a file that a process has touched."""

    def __init__(self, array: np.ndarray) -> None:
        base: Any = array
        while isinstance(base, np.ndarray):
            base = base.base
        self.map: Any = base
        self.read = 0
        with suppress(AttributeError, OSError):  # a hint that not all systems know, nor an array in memory
            self.map.madvise(mmap.MADV_RANDOM)

    def count(self, bytes: int) -> None:
        """Note that so many were read; now and then they are given back."""
        self.read += bytes
        if self.read >= HELD and self.map is not None:
            self.read = 0
            with suppress(AttributeError, OSError):
                self.map.madvise(mmap.MADV_DONTNEED)


@frozen(eq=False)
class Mapped:
    """A Source over arrays on disk, of n rows each; or over a stretch of a shuffle of them, evaluated where it is
    asked, so that a part takes no memory either.

    Values that are not finite are not looked for: that would read all there is.
    """

    arrays: Mapping[str, np.ndarray]
    first: int = 0
    count: int | None = None
    keys: Any = None
    """Of the shuffle."""
    rows: int = field(init=False)
    pages: dict[str, Pages] = field(init=False)

    @rows.default
    def _rows(self) -> int:
        lengths = {name: len(a) if a.ndim else 0 for name, a in self.arrays.items()}
        if not lengths or min(lengths.values()) == 0:
            raise DataError("the data set is empty: it has no samples")
        if len(set(lengths.values())) > 1:
            raise DataError(
                f"the parts of the data set differ in length: {', '.join(f'{k} {n}' for k, n in lengths.items())}"
            )
        return next(iter(lengths.values()))

    @pages.default
    def _pages(self) -> dict[str, Pages]:
        return {name: Pages(array) for name, array in self.arrays.items()}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.arrays)

    def __len__(self) -> int:
        return self.rows if self.count is None else self.count

    def __getitem__(self, indices: Tensor) -> Batch:
        at = (indices.numpy() + self.first) % self.rows
        if self.keys is not None:
            at = order.permute(at, self.rows, self.keys)
        found: dict[str, Any] = {}
        for name, array in self.arrays.items():
            part = np.asarray(array[at])
            self.pages[name].count(part.nbytes)
            found[name] = as_tensor(name, part)
        return found

    def parted(self, parts: Split) -> tuple[Mapped, Mapped]:
        """Two parts (training, held out) of one shuffle by the seed, which holds no index."""
        share = parts.share if parts.folds is None else 1 / parts.folds
        held = -int(-share * self.rows // 1)
        if not 0 < held < self.rows:
            raise DataError(f"{self.rows} samples can't be split into two parts with {share:.0%} held out")
        keys = order.keys(self.rows, parts.seed, _SPLIT).tolist()
        # The shuffle is a ring: a fold is a stretch of it, and what is trained on begins behind that.
        first = parts.fold * self.rows // (parts.folds or 1) if parts.folds else self.rows - held
        train = evolve(self, first=first + held, count=self.rows - held, keys=keys)
        return train, evolve(self, first=first, count=held, keys=keys)


_SPLIT = (1 << 31) - 1
"""No epoch has this number, so that the split's shuffle is no epoch's."""


def small(arrays: Mapping[str, np.ndarray], most: int = 1 << 30) -> bool:
    """Whether arrays fit into memory without a thought."""
    return sum(a.nbytes for a in arrays.values()) <= most


def loaded(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Arrays as tensors in memory."""
    return {name: as_tensor(name, np.array(a)) for name, a in arrays.items()}
