"""Load: where batches come from. The only step that knows about data sets, epochs and positions."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from attrs import evolve, field, frozen
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from pipeline import order
from pipeline.errors import ConfigError, DataError
from pipeline.mesh import ROWS, Rows
from pipeline.sources import Source, Tensors, source
from pipeline.sources.tensors import in_epoch
from pipeline.stage import Part, is_count
from pipeline.state import Batch


@frozen(eq=False, repr=False)
class Load(Part):
    """What begins a pipeline, before the step: batches by `epoch`. Its values' names are known where the data set has
    them."""

    data: Any = None
    size: int = 0
    shuffle: bool = True
    drop_last: bool = False
    fields: tuple[str, ...] = ()
    """Names for the parts of a tuple that an iterable yields."""
    samples: str | None = None
    """The value whose first dimension is the number of samples, where not all have the same."""

    known: bool = field(init=False)
    """Whether the data set tells its names and its length before it is read."""

    @known.default
    def _known(self) -> bool:
        return isinstance(self.data, Source)

    def __repr__(self) -> str:
        """What is loaded: `load.batches(1,437 samples of inputs, targets, size=64)`."""
        if not self.known:
            return f"{self.name}({type(self.data).__name__} of {', '.join(self.fields)})"
        options = [
            f"size={self.size}",
            *(["shuffle=False"] * (not self.shuffle)),
            *(["drop_last=True"] * self.drop_last),
        ]
        return f"{self.name}({len(self.data):,} samples of {', '.join(self.writes)}, {', '.join(options)})"

    @property
    def in_memory(self) -> bool:
        """Whether the data set is tensors, which a graph can gather from."""
        return isinstance(self.data, Tensors)

    @property
    def batches(self) -> int | None:
        """Batches in an epoch, or None where an iterable does not say."""
        if self.known:
            return order.count(len(self.data), self.size, self.drop_last)
        try:
            return len(self.data)
        except TypeError:
            return None

    def epoch(
        self, seed: int, epoch: int, start: int = 0, part: Callable[[int], Rows] | None = None
    ) -> Iterator[Batch]:
        """The batches of one epoch, from batch `start` on, on the host: of each, the `part` of so many samples."""
        if not self.known:
            if part is not None:
                raise DataError(
                    f"{self.name}() has an order of its own, which processes do not share; on a mesh use "
                    "load.batches(), which takes a torch Dataset too"
                )
            yield from self._iterate(start)
            return
        options = {"shuffle": self.shuffle, "drop_last": self.drop_last, "start": start}
        indices = order.batches(len(self.data), self.size, seed, epoch, **options)  # type: ignore[arg-type]  # mixed option types
        if part is None:
            yield from map(self._named, in_epoch(self.data, seed, epoch, indices))
            return
        waiting: deque[Rows] = deque()

        def own() -> Iterator[Tensor]:
            for whole in indices:
                waiting.append(part(len(whole)))
                yield whole[waiting[-1].taken]

        for batch in in_epoch(self.data, seed, epoch, own()):
            yield {**self._named(batch), ROWS: waiting.popleft()}

    def at(self, indices: Tensor) -> Batch:
        """The samples at some indices, (B,) int64, of a data set that is known."""
        return self._named(self.data[indices])

    def _named(self, batch: Any) -> Batch:
        if not isinstance(batch, Mapping):
            raise DataError(
                f"{type(self.data).__name__}[indices] gave {type(batch).__name__}, not a mapping from names to "
                "tensors; a data set of single samples goes through sources.dataset(...)"
            )
        return batch

    def _iterate(self, start: int) -> Iterator[Batch]:
        empty = True
        for k, item in enumerate(self.data):
            empty = False
            if k >= start:
                yield self.batch(item)
        if empty:
            raise DataError(
                "the iterable given to load.loader() yielded nothing: an epoch iterates it anew, so pass a DataLoader "
                "or a list, not an iterator that is used up"
            )

    def batch(self, item: Any) -> Batch:
        """What a loader yields as a Batch: a mapping as it is, a sequence under the names of `fields`."""
        if isinstance(item, Mapping):
            return item
        if isinstance(item, Tensor):
            item = (item,)
        if not isinstance(item, Sequence) or len(item) != len(self.fields):
            raise DataError(
                f"the loader yielded {type(item).__name__}, which does not fit the names {', '.join(self.fields)}; "
                f'pass names=(...) to load.loader(), one for each part: load.loader(data, names=("inputs", "targets"))'
            )
        return dict(zip(self.fields, item, strict=True))

    def over(self, data: Any) -> Load:
        """A Load of other data in its own order, nothing dropped: what validation reads."""
        pair = isinstance(data, list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)
        known = isinstance(data, Source | Mapping | tuple | Dataset) and not isinstance(data, IterableDataset)
        if isinstance(data, Iterable) and not known and not pair:
            return loader(data, names=self.fields or ("inputs", "targets"), samples=self.samples)
        # Without gradients, several times a training batch takes no more memory.
        whole, limit = source(data), 8 * self.size or 256
        # In as few batches of nearly one size as the limit allows: mostly one graph, not two.
        even = -(-len(whole) // order.count(len(whole), limit))
        return evolve(batches(whole, size=even, shuffle=False), samples=self.samples)


def batches(data: Any, *, size: int, shuffle: bool = True, drop_last: bool = False) -> Load:
    """Batches of `size` samples from a Source, a mapping of tensors or arrays, a tuple (inputs, targets), or a torch
    Dataset, which sources.dataset() reads with workers.

    Shuffled anew each epoch by a pure function of (seed, epoch, batch); every sample is used once an epoch, the
    last batch being shorter unless `drop_last`. A `size` above N gives one batch of N.
    Raises ConfigError for a size below 1 and DataError for an empty or uneven data set.

    >>> load = batches((torch.randn(10, 4), torch.zeros(10)), size=4)
    >>> [len(batch["inputs"]) for batch in load.epoch(seed=0, epoch=0)]
    [4, 4, 2]
    """
    if not is_count(size):
        raise ConfigError(f"batch size {size} is not a positive whole number")
    known = source(data)
    size = min(operator.index(size), len(known))
    return Load("load.batches", writes=known.names, data=known, size=size, shuffle=shuffle, drop_last=drop_last)


def loader(data: Iterable[Any], *, names: tuple[str, ...] = ("inputs", "targets"), samples: str | None = None) -> Load:
    """Batches from a torch DataLoader or any iterable of batches, which is iterated anew each epoch.

    It yields mappings, or tuples whose parts get `names`: tensors, arrays, numbers, nested dicts and lists of them.
    What is none of these, such as strings, is there for stages before place only. Its order is its own, so
    (seed, epoch) does not fix it. `samples` names the value whose first dimension is the number of samples, where the
    tensors differ in it, and neither `targets` nor `inputs` is the one.
    """
    if not isinstance(data, Iterable):
        raise DataError(f"load.loader() takes an iterable of batches, not {type(data).__name__}")
    if isinstance(data, Iterator):
        raise DataError("load.loader() iterates anew in each epoch; pass a DataLoader or a list, not an iterator")
    return Load("load.loader", data=data, fields=tuple(names), samples=samples)


def first(load: Load, samples: int) -> Batch:
    """A small batch to look at: the first `samples` of the data set, or what an iterable yields first."""
    if load.known:
        return load.at(torch.arange(min(samples, len(load.data))))
    return next(iter(load.epoch(0, 0)))
