"""Data sets of single samples: any torch Dataset, in our order, with draws that do not depend on who reads them."""

from __future__ import annotations

import os
import random
import threading
import traceback
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import parent_process
from typing import Any, TypeAlias

import numpy as np
import torch
from attrs import field, frozen
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, IterableDataset, default_collate

from pipeline.errors import ConfigError, DataError, place_of
from pipeline.random import key
from pipeline.sources.tensors import Source, as_tensor, in_epoch
from pipeline.state import Batch

Task: TypeAlias = tuple[int, int, list[int]]
"""The seed of a run, an epoch, and the indices of a batch of it."""


def dataset(data: Any, *, names: Sequence[str] = ("inputs", "targets"), workers: int = 0, seed: int = 0) -> Samples:
    """A Source over a map-style torch Dataset, or anything with a length and `data[i]` for an int i.

    A sample is a mapping, whose keys are the names, or a tuple, whose parts get `names`. Its tensors, arrays and
    numbers become tensors of shape (B, ...), float64 arrays and floats as float32.

    What `data[i]` draws from torch's, Python's and NumPy's global generators is a function of (seed, seed of the run,
    epoch, i): it is the same for any number of `workers`, processes that read ahead, and where a run is resumed. A
    generator that the data set keeps for itself, or one without a seed, is not.

    Raises DataError for a data set that is empty, has no length, or has samples that do not fit their names, and for a
    sample that can't be read: with its index, from the error that it met.

    >>> data = dataset([(torch.rand(2), i % 2) for i in range(5)])
    >>> batch = data[torch.tensor([4, 1])]
    >>> batch["inputs"].shape, batch["targets"]
    (torch.Size([2, 2]), tensor([0, 1]))
    """
    kind = type(data).__name__
    if isinstance(data, IterableDataset):
        raise DataError(f"{kind} is an IterableDataset, whose order is its own: use load.loader(DataLoader(data, ...))")
    if not isinstance(workers, int) or workers < 0:
        raise ConfigError(f"workers={workers!r} is not a whole number from 0 on")
    try:
        empty = len(data) == 0
    except (TypeError, NotImplementedError):
        raise DataError(f"{kind} has no length: give it __len__, or use load.loader(DataLoader(data, ...))") from None
    if empty:
        raise DataError("the data set is empty: it has no samples")
    reader = Reader(data, tuple(names), seed)
    return Samples(reader, tuple(reader.read((0, 0, [0]))), workers)


@frozen(eq=False)
class Reader:
    """Reads batches, here or in a worker."""

    data: Any
    names: tuple[str, ...]
    seed: int

    def read(self, task: Task) -> Batch:
        """The samples of a batch, each with the global generators at where its key puts them."""
        seed, epoch, indices = task
        samples = []
        with _generators_kept():
            for i in indices:
                k = key(self.seed, seed, epoch, i)
                torch.default_generator.manual_seed(k)  # torch.manual_seed would also see to each GPU
                random.seed(k)
                np.random.seed(k)
                samples.append(self._sample(i))
        try:
            batch = default_collate(samples)
        except Exception as e:
            raise DataError(
                f"the samples {indices[0]}, ... of {type(self.data).__name__} make no batch: {e}; give tensors, arrays "
                "or numbers of one shape, or use load.loader(DataLoader(data, collate_fn=...))"
            ) from e
        return batch if isinstance(batch, Mapping) else dict(zip(self.names, batch, strict=True))

    def _sample(self, i: int) -> Any:
        kind = type(self.data).__name__
        try:
            sample = self.data[i]
        except DataError:
            raise
        except Exception as e:
            raise DataError(f"can't read sample {i} of {kind}: {type(e).__name__}: {e}{place_of(e)}") from e
        if not isinstance(sample, Mapping) and (not isinstance(sample, tuple | list) or len(sample) != len(self.names)):
            raise DataError(
                f"sample {i} of {kind} is {type(sample).__name__}, which does not fit the names "
                f"{', '.join(self.names)}; pass names=(...) to sources.dataset(), one for each part of a tuple"
            )
        return pytree.tree_map(_tensor, sample)

    def __getitems__(self, task: list[Task]) -> Batch | Failed:
        """What a DataLoader's worker calls. It can't send every exception, nor keep its message, so text goes."""
        try:
            return self.read(*task)
        except DataError as e:
            return Failed(str(e), "".join(traceback.format_exception(e.__cause__ or e)))


@frozen
class Failed:
    """What went wrong in a worker."""

    message: str
    trace: str


@frozen(eq=False)
class Samples:
    """A Source over single samples; see dataset()."""

    reader: Reader
    names: tuple[str, ...]
    workers: int = 0
    _pools: list[Pool] = field(factory=list, init=False, repr=False)
    """More than one where epochs were read at the same time."""

    def __attrs_post_init__(self) -> None:
        # Pools that the collector of cycles finds have lost the threads by which they would tell their workers to end,
        # and wait for them in vain. So it never does: they are held from outside until nothing reads them.
        weakref.finalize(self, self._pools.clear)

    def __len__(self) -> int:
        return len(self.reader.data)

    def __getitem__(self, indices: Tensor) -> Batch:
        return self.reader.read((0, 0, indices.tolist()))

    def epoch(self, seed: int, epoch: int, batches: Iterable[Tensor]) -> Iterator[Batch]:
        """The batches at some indices, each (B,) int64, in their order, as they are drawn in this epoch of a run."""
        tasks = ((seed, epoch, indices.tolist()) for indices in batches)
        if not self.workers:
            yield from map(self.reader.read, tasks)
            return
        pool = next((p for p in self._pools if not p.busy), None) or Pool(self.reader, self.workers)
        if pool not in self._pools:
            self._pools.append(pool)
        try:
            for made in pool.read(tasks):
                if isinstance(made, Failed):
                    raise DataError(made.message) from RuntimeError(f"in a worker:\n{made.trace}")
                yield made
        except (RuntimeError, KeyboardInterrupt) as e:
            self._pools.remove(pool)
            if isinstance(e, KeyboardInterrupt):
                raise
            raise DataError(f"a worker that reads {type(self.reader.data).__name__} has ended: {e}") from e
        finally:
            pool.busy = False  # what it has read ahead is passed over when the next epoch begins


class Pool:
    """Workers that stay from epoch to epoch."""

    def __init__(self, reader: Reader, workers: int) -> None:
        self.busy = False
        self.tasks = Tasks()
        self.loader: DataLoader[Any] = DataLoader(
            reader,  # type: ignore[arg-type]  # a Dataset by what it does
            batch_sampler=self.tasks,
            num_workers=workers,
            collate_fn=_same,
            worker_init_fn=_end_with_reader,
            persistent_workers=True,
            generator=torch.Generator(),  # it would draw from the global one
        )

    def read(self, tasks: Iterable[Task]) -> Iterator[Any]:
        self.busy, self.tasks.tasks = True, tasks
        return iter(self.loader)


class Tasks:
    """A batch sampler that yields what it was given last."""

    tasks: Iterable[Task] = ()

    def __iter__(self) -> Iterator[list[Task]]:
        return ([task] for task in self.tasks)


def _same(batch: Any) -> Any:
    return batch


def _end_with_reader(_worker: int) -> None:
    """A worker of torch looks for its reader every few seconds, once it has begun; this one ends at once. A signal to
    all of a terminal's processes is for the reader, which may need more batches before it can save."""
    os.setsid()
    reader = parent_process()
    assert reader is not None

    def watch() -> None:
        reader.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _tensor(value: Any) -> Any:
    """Arrays and numbers as tensors, of the dtypes that they have in every Source."""
    return as_tensor("a sample", value) if isinstance(value, np.ndarray | np.generic | float | int) else value


@contextmanager
def _generators_kept() -> Iterator[None]:
    kept = torch.default_generator.get_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.default_generator.set_state(kept[0])
        random.setstate(kept[1])
        np.random.set_state(kept[2])


@frozen(eq=False)
class Part:
    """Some samples of a Source, which stay there: `rows` (N,) int64 are their indices. Each is drawn as it is in the
    whole.

    >>> data = Part(dataset([(0.5, i) for i in range(10)]), torch.tensor([7, 2, 3]))
    >>> len(data), data[torch.tensor([0, 2])]["targets"]
    (3, tensor([7, 3]))
    """

    source: Source
    rows: Tensor

    def __attrs_post_init__(self) -> None:
        if len(self.rows) == 0:
            raise DataError("the data set is empty: it has no samples")
        if not 0 <= int(self.rows.min()) <= int(self.rows.max()) < len(self.source):
            raise DataError(f"a part has rows {self.rows.min()} to {self.rows.max()} of {len(self.source)} samples")

    @property
    def names(self) -> tuple[str, ...]:
        return self.source.names

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: Tensor) -> Batch:
        return self.source[self.rows[indices]]

    def epoch(self, seed: int, epoch: int, batches: Iterable[Tensor]) -> Iterator[Batch]:
        """As that of the whole."""
        return in_epoch(self.source, seed, epoch, (self.rows[indices] for indices in batches))
