"""Mapped: arrays that stay on disk. Only the rows of a batch are read."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from attrs import evolve, field, frozen
from torch import Tensor

from pipeline import files, order
from pipeline.errors import DataError
from pipeline.sources.prefetch import ahead
from pipeline.sources.split import Split
from pipeline.sources.tensors import as_tensor, length
from pipeline.state import Batch

TOGETHER = 64
"""Batches whose places in a shuffle are worked out at once."""
HELD = 64 << 20
"""An array of at most so many bytes is read as a whole."""


class Rows:
    """The rows of an array in a file, each read where it is asked for.

    A memory map would be as quick, but what it touches counts as this process's memory.
    """

    def __init__(self, array: np.memmap) -> None:
        self.array = array
        self.file = files.opened(Path(str(array.filename)))
        self.bytes = array.dtype.itemsize * int(np.prod(array.shape[1:]))
        weakref.finalize(self, self.file.close)

    def at(self, rows: np.ndarray) -> np.ndarray:
        """Some rows. Raises DataError where the file has become shorter."""
        made = np.empty((len(rows), *self.array.shape[1:]), self.array.dtype)
        flat = made.view(np.uint8).reshape(len(rows), -1)
        for row, offset in zip(flat, (rows * self.bytes + self.array.offset).tolist(), strict=True):
            if os.preadv(self.file.fileno(), [row.data], offset) != self.bytes:
                raise DataError(f"{self.array.filename} has become shorter than it was: byte {offset:,} is missing")
        return made


def _reader(array: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    if isinstance(array, np.memmap) and array.nbytes > HELD and array.flags.c_contiguous and array.ndim > 1:
        return Rows(array).at
    return (np.array(array) if array.nbytes <= HELD else array).__getitem__


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
    readers: dict[str, Callable[[np.ndarray], np.ndarray]] = field(init=False)

    @rows.default
    def _rows(self) -> int:
        return length(self.arrays)

    @readers.default
    def _readers(self) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
        return {name: _reader(array) for name, array in self.arrays.items()}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.arrays)

    def __len__(self) -> int:
        return self.rows if self.count is None else self.count

    def __getitem__(self, indices: Tensor) -> Batch:
        return self._read(self._places(indices.numpy()))

    def epoch(self, seed: int, epoch: int, batches: Iterable[Tensor]) -> Iterator[Batch]:
        """The batches at some indices, read ahead."""

        def read() -> Iterator[Batch]:
            pending = iter(batches)
            while together := [b.numpy() for b in islice(pending, TOGETHER)]:
                places = self._places(np.concatenate(together))
                for part in np.split(places, np.cumsum([len(b) for b in together])[:-1]):
                    yield self._read(part)

        return ahead(read())

    def _places(self, indices: np.ndarray) -> np.ndarray:
        """Where samples are in the file."""
        at = (indices + self.first) % self.rows
        return at if self.keys is None else order.permute(at, self.rows, self.keys)

    def _read(self, places: np.ndarray) -> Batch:
        return {name: as_tensor(name, read(places)) for name, read in self.readers.items()}

    def parted(self, parts: Split) -> tuple[Mapped, Mapped]:
        """Two parts (training, held out) of one shuffle by the seed, which holds no index."""
        share = parts.share if parts.folds is None else 1 / parts.folds
        held = -int(-share * self.rows // 1)
        if not 0 < held < self.rows:
            raise DataError(f"{self.rows} samples can't be split into two parts with {share:.0%} held out")
        keys = order.keys(self.rows, parts.seed, _SPLIT).tolist()
        # The shuffle is a ring: a fold is a stretch of it, and what is trained on begins behind that.
        first = self.rows - held
        if parts.folds is not None:
            first = parts.fold * self.rows // parts.folds
            held = (parts.fold + 1) * self.rows // parts.folds - first
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
