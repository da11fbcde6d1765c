"""Mapped: arrays that stay on disk, of which only the rows of a batch are read."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from attrs import evolve, field, frozen
from torch import Tensor

from pipeline import files, order
from pipeline.errors import DataError
from pipeline.sources.prefetch import prefetch
from pipeline.sources.split import Split
from pipeline.sources.tensors import as_tensor, length
from pipeline.state import Batch

TOGETHER = 64
"""Number of batches in one computation of the shuffle."""
HELD = 64 << 20
"""Bytes up to which an array is read whole."""
THREADS = 8
"""Rows of a batch that are read from a disk at once."""
PROBED, PROBES, GOLDEN = 64, 64, 0.618034
"""Batches between two looks at whether a file is cached, the places looked at, and their shift each time."""
_SPLIT = (1 << 31) - 1
"""Epoch number of the split's shuffle, which no run uses."""


class FileRows:
    """The rows of an array in a file.

    While the file is in the system's cache, they are copied from its memory map, as quickly as from memory. Otherwise
    threads read them: a map would wait for one page after another, and end the process if a disk fails.
    """

    def __init__(self, array: np.memmap) -> None:
        self.map, self.name, self.start = np.asarray(array), str(array.filename), array.offset
        self.file = files.opened(Path(self.name))
        self.bytes = array.dtype.itemsize * int(np.prod(array.shape[1:]))
        self.pool = ThreadPoolExecutor(THREADS, "rows")
        self.calls, self.in_cache = 0, False
        weakref.finalize(self, self.file.close)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """The rows at these indices. Raises DataError if the file has become shorter."""
        if self.calls % PROBED == 0:
            self.in_cache = self.cached()
        self.calls += 1
        # A map that goes beyond the end of its file ends the process.
        if self.in_cache and os.fstat(self.file.fileno()).st_size >= self.start + self.map.nbytes:
            return self.map.take(rows, 0)
        batch = np.empty((len(rows), *self.map.shape[1:]), self.map.dtype)
        flat, offsets = batch.view(np.uint8).reshape(len(rows), -1), rows * self.bytes + self.start
        parts = zip(np.array_split(flat, THREADS), np.array_split(offsets, THREADS), strict=True)
        for done in [self.pool.submit(self._fill, *part) for part in parts]:
            done.result()
        return batch

    def cached(self) -> bool:
        """Whether bytes all over the file can be read without the disk, which Linux alone tells."""
        flag, size = getattr(os, "RWF_NOWAIT", None), self.map.nbytes
        if flag is None:
            return False
        try:
            for i in range(PROBES):
                at = (i + self.calls / PROBED * GOLDEN % 1) * size / PROBES  # other places each time
                os.preadv(self.file.fileno(), [bytearray(1)], self.start + int(at), flag)
        except OSError:  # it would wait, or the file system can't tell
            return False
        return True

    def _fill(self, flat: np.ndarray, offsets: np.ndarray) -> None:
        for row, offset in zip(flat, offsets.tolist(), strict=True):
            if os.preadv(self.file.fileno(), [row.data], offset) != self.bytes:
                raise DataError(f"{self.name} has become shorter than it was: byte {offset:,} is missing")


def _reader(array: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    if isinstance(array, np.memmap) and array.nbytes > HELD and array.flags.c_contiguous and array.ndim > 1:
        return FileRows(array)
    return (np.array(array) if array.nbytes <= HELD else array).__getitem__


@frozen(eq=False)
class Mapped:
    """A Source over arrays on disk, or over a stretch of a shuffle of their rows, which takes no memory.

    Non-finite values are not checked for: that would read the whole file.
    """

    arrays: Mapping[str, np.ndarray]
    converts: Mapping[str, Callable[[np.ndarray], Tensor]] = field(factory=dict)
    """Functions of a batch's rows, by name; by default `as_tensor`."""
    first: int = 0
    count: int | None = None
    keys: Any = None
    """Keys of the shuffle; see `order.permute`."""
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
        return self._read(self._located(indices.numpy()))

    def epoch(self, seed: int, epoch: int, batches: Iterable[Tensor]) -> Iterator[Batch]:
        """The batches at these indices, prefetched."""

        def read() -> Iterator[Batch]:
            pending = iter(batches)
            while together := [b.numpy() for b in islice(pending, TOGETHER)]:
                rows = self._located(np.concatenate(together))
                yield from map(self._read, np.split(rows, np.cumsum([len(b) for b in together])[:-1]))

        return prefetch(read())

    def _located(self, indices: np.ndarray) -> np.ndarray:
        """Rows in the file."""
        rows = (indices + self.first) % self.rows
        return rows if self.keys is None else order.permute(rows, self.rows, self.keys)

    def _read(self, rows: np.ndarray) -> Batch:
        batch = {name: read(rows) for name, read in self.readers.items()}
        return {n: self.converts[n](a) if n in self.converts else as_tensor(n, a) for n, a in batch.items()}

    def split(self, parts: Split) -> tuple[Mapped, Mapped]:
        """(Training, held out): two stretches of one shuffle by the seed, without an array of indices."""
        first, end = parts.stretch(self.rows)
        keys = order.keys(self.rows, parts.seed, _SPLIT).tolist()
        # The shuffle is a ring: the training samples begin after the held-out stretch.
        train = evolve(self, first=end, count=self.rows - (end - first), keys=keys)
        return train, evolve(self, first=first, count=end - first, keys=keys)
