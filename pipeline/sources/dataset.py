"""Data sets of single samples: any torch Dataset, in our order, with draws that do not depend on the workers."""

from __future__ import annotations

import os
import signal
import threading
import traceback
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from multiprocessing import parent_process
from typing import Any, TypeAlias

import numpy as np
import torch
from attrs import field, frozen
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, IterableDataset, default_collate

from pipeline.errors import ConfigError, DataError, place_of
from pipeline.random import key, restored, seed_all, seed_torch
from pipeline.sources.tensors import EMPTY, Source, as_tensor, in_epoch
from pipeline.state import Batch

Job: TypeAlias = tuple[int, int, list[int]]
"""The seed of a run, an epoch, and the indices of a batch."""
STOPPING = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
"""Signals of a terminal to all of its processes."""


def dataset(data: Any, *, names: Sequence[str] = ("inputs", "targets"), workers: int = 0, seed: int = 0) -> Samples:
    """A Source over a map-style torch Dataset, or any object with a length and `data[i]` for an int i.

    A sample is a mapping by name, or a tuple named by `names`. Its tensors, arrays and numbers become tensors of shape
    (B, ...), float64 arrays and floats as float32.

    Draws of `data[i]` from the global generators of torch, Python and NumPy are a function of (seed, seed of the run,
    epoch, i), with any number of `workers` (processes that prefetch) and after a resume. Draws from a generator of the
    data set's own are not. Workers keep the data set as it was when they began.

    Raises DataError for a data set that is empty or has no length, for samples that do not fit the names, and, with its
    index, for a sample that can't be read.

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
        raise DataError(EMPTY)
    reader = Reader(data, tuple(names), seed)
    return Samples(reader, tuple(reader.read((0, 0, [0]))), workers)


class Batched(ABC):
    """A data set of ours that reads whole batches faster than sample by sample. It draws from torch's generator."""

    @abstractmethod
    def batch(self, indices: Sequence[int], epoch: int, seed: Callable[[int], None]) -> Sequence[Tensor]:
        """The samples at these indices in an epoch, each drawn after `seed` of its index."""


@frozen(eq=False)
class Reader:
    """Reads batches, in this process or in a worker."""

    data: Any
    names: tuple[str, ...]
    seed: int

    def read(self, job: Job) -> Batch:
        """The samples of a batch, each with the global generators seeded by its key."""
        seed, epoch, indices = job
        samples = []
        with restored():
            if isinstance(self.data, Batched):
                values = self.data.batch(indices, epoch, lambda i: seed_torch(key(self.seed, seed, epoch, i)))
                return dict(zip(self.names, values, strict=True))
            for i in indices:
                seed_all(key(self.seed, seed, epoch, i))
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
                f"{', '.join(self.names)}; pass names=(...) to sources.dataset(), one for each value of a tuple"
            )
        return pytree.tree_map(_tensor, sample)

    def __getitems__(self, jobs: list[Job]) -> Batch | Failed:
        """Called by a DataLoader's worker, which can't send every exception."""
        try:
            return self.read(*jobs)
        except DataError as e:
            return Failed(str(e), "".join(traceback.format_exception(e.__cause__ or e)))


@frozen
class Failed:
    """An error in a worker."""

    message: str
    trace: str


@frozen(eq=False)
class Samples:
    """A Source over single samples; see dataset()."""

    reader: Reader
    names: tuple[str, ...]
    workers: int = 0
    _pools: list[Pool] = field(factory=list, init=False, repr=False)
    """Several, if epochs were read at the same time."""

    def __attrs_post_init__(self) -> None:
        # If the cycle collector finds a pool, its threads that end the workers are gone, and it waits for the workers
        # in vain. The finalizer holds the pools until their Samples is gone.
        weakref.finalize(self, self._pools.clear)

    def __len__(self) -> int:
        return len(self.reader.data)

    def __getitem__(self, indices: Tensor) -> Batch:
        return self.reader.read((0, 0, indices.tolist()))

    def epoch(self, seed: int, epoch: int, batches: Iterable[Tensor]) -> Iterator[Batch]:
        """The batches at these indices, each (B,) int64, as drawn in this epoch of a run."""
        jobs = ((seed, epoch, indices.tolist()) for indices in batches)
        if not self.workers:
            yield from map(self.reader.read, jobs)
            return
        pool = next((p for p in self._pools if not p.busy), None) or Pool(self.reader, self.workers)
        if pool not in self._pools:
            self._pools.append(pool)
        try:
            for batch in pool.read(jobs):
                if isinstance(batch, Failed):
                    raise DataError(batch.message) from RuntimeError(f"in a worker:\n{batch.trace}")
                yield batch
        except (RuntimeError, KeyboardInterrupt) as e:
            self._pools.remove(pool)
            if isinstance(e, KeyboardInterrupt):
                raise
            raise DataError(f"a worker that reads {type(self.reader.data).__name__} has ended: {e}") from e
        finally:
            pool.busy = False  # the next epoch drops its prefetched batches


class Pool:
    """Workers that stay from epoch to epoch."""

    def __init__(self, reader: Reader, workers: int) -> None:
        self.busy = False
        self.jobs = Jobs()
        self.loader: DataLoader[Any] = DataLoader(
            reader,  # type: ignore[arg-type]  # a Dataset by its methods
            batch_sampler=self.jobs,
            num_workers=workers,
            collate_fn=_identity,
            worker_init_fn=_end_with_parent,
            persistent_workers=True,
            generator=torch.Generator(),  # by default it would draw from the global generator
        )

    def read(self, jobs: Iterable[Job]) -> Iterator[Any]:
        self.busy, self.jobs.jobs = True, jobs
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # workers that start have no session of their own yet
        try:
            return iter(self.loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class Jobs:
    """A batch sampler that yields the jobs of the current epoch."""

    jobs: Iterable[Job] = ()

    def __iter__(self) -> Iterator[list[Job]]:
        return ([job] for job in self.jobs)


def _identity(batch: Any) -> Any:
    return batch


def _end_with_parent(_worker: int) -> None:
    """End the worker as soon as its parent ends; torch's own watch looks every few seconds.

    In a session of its own, it gets no Ctrl-C of the terminal: the parent may need more batches before it saves.
    """
    os.setsid()
    while arrived := signal.sigpending() & STOPPING:
        signal.sigwait(arrived)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _tensor(value: Any) -> Any:
    """Arrays and numbers as tensors, of the same dtypes as in any Source."""
    return as_tensor("a sample", value) if isinstance(value, np.ndarray | np.generic | float | int) else value


@frozen(eq=False)
class Subset:
    """The samples of a Source at the indices `rows`, (N,) int64, each drawn as in the whole Source.

    >>> data = Subset(dataset([(0.5, i) for i in range(10)]), torch.tensor([7, 2, 3]))
    >>> len(data), data[torch.tensor([0, 2])]["targets"]
    (3, tensor([7, 3]))
    """

    source: Source
    rows: Tensor

    def __attrs_post_init__(self) -> None:
        if len(self.rows) == 0:
            raise DataError(EMPTY)
        if not 0 <= int(self.rows.min()) <= int(self.rows.max()) < len(self.source):
            raise DataError(f"a subset has rows {self.rows.min()} to {self.rows.max()} of {len(self.source)} samples")

    @property
    def names(self) -> tuple[str, ...]:
        return self.source.names

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: Tensor) -> Batch:
        return self.source[self.rows[indices]]

    def epoch(self, seed: int, epoch: int, batches: Iterable[Tensor]) -> Iterator[Batch]:
        return in_epoch(self.source, seed, epoch, (self.rows[indices] for indices in batches))
