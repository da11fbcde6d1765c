"""Load: where batches come from. The only step that knows about data sets, epochs and positions."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from attrs import field, frozen
from torch import Tensor

from pipeline import order
from pipeline.errors import ConfigError, DataError
from pipeline.sources import Source, Tensors, source
from pipeline.stage import Stage, is_count
from pipeline.state import Batch

AHEAD = 64
"""Epochs whose keys are worked out together."""


def _nothing() -> None:
    """A load stage's work is done by `Load.epoch`, before the step."""


@frozen(eq=False)
class Load(Stage):
    """A stage that begins a pipeline; `names` of its values are known where the data set has them."""

    function: Callable[..., Any] = field(default=_nothing, repr=False)
    data: Any = None
    size: int = 0
    shuffle: bool = True
    drop_last: bool = False
    fields: tuple[str, ...] = ()
    """Names for the parts of a tuple that an iterable yields."""

    known: bool = field(init=False)
    """Whether the data set tells its names and its length before it is read."""

    @known.default
    def _known(self) -> bool:
        return isinstance(self.data, Source)

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

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from batch `start` on, on the host."""
        if not self.known:
            yield from self._iterate(start)
            return
        options = {"shuffle": self.shuffle, "drop_last": self.drop_last, "start": start}
        for indices in order.batches(len(self.data), self.size, seed, epoch, **options):  # type: ignore[arg-type]  # mixed option types
            yield self.data[indices]

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
            for name, value in item.items():
                if not isinstance(value, Tensor):
                    raise DataError(
                        f"the loader yielded {name!r} as {type(value).__name__}; leave it out or collate it to a tensor"
                    )
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
        if not isinstance(data, Source | Mapping | tuple) and isinstance(data, Iterable) and not pair:
            return loader(data, names=self.fields or ("inputs", "targets"))
        # Without gradients, several times a training batch takes no more memory.
        known, limit = source(data), 8 * self.size or 256
        # In as few batches of nearly one size as the limit allows: mostly one graph, not two.
        even = -(-len(known) // order.count(len(known), limit))
        return batches(known, size=even, shuffle=False)


def batches(data: Any, *, size: int, shuffle: bool = True, drop_last: bool = False) -> Load:
    """Batches of `size` samples from a Source, a mapping of tensors or arrays, or a tuple (inputs, targets).

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


def loader(data: Iterable[Any], *, names: tuple[str, ...] = ("inputs", "targets")) -> Load:
    """Batches from a torch DataLoader or any iterable of batches, which is iterated anew each epoch.

    It yields mappings, or tuples whose parts get `names`. Its order is its own, so (seed, epoch) does not fix it.
    """
    if not isinstance(data, Iterable):
        raise DataError(f"load.loader() takes an iterable of batches, not {type(data).__name__}")
    if isinstance(data, Iterator):
        raise DataError("load.loader() iterates anew in each epoch; pass a DataLoader or a list, not an iterator")
    return Load("load.loader", data=data, fields=tuple(names))


@frozen(eq=False)
class Placed:
    """A data set on the device, with what a graph computes its batches from: the order is evaluated where it is used."""

    load: Load
    tensors: Mapping[str, Tensor]
    keys: Tensor
    """Of the epoch's shuffle: int64, three a round."""
    cursor: Tensor
    """The next batch of the epoch: int64, (1,)."""
    n: int
    _ahead: dict[tuple[int, int], Tensor] = field(factory=dict)
    """The keys of some epochs, by seed and epoch: worked out many at a time."""
    _at: list[tuple[int, int] | None] = field(factory=lambda: [None])

    @classmethod
    def on(cls, place: Callable[[Any], Any], load: Load, tensors: Mapping[str, Tensor] | None = None) -> Placed:
        """What `place` makes of the data set, or of `tensors` where that is done."""
        tensors = tensors or {name: t.contiguous() for name, t in load.data.tensors.items()}
        keys, cursor = torch.zeros(3 * order.ROUNDS, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
        return cls(load, place(tensors), place(keys), place(cursor), len(load.data))

    @property
    def static(self) -> tuple[Tensor, ...]:
        return (*self.tensors.values(), self.keys, self.cursor)

    def signature(self, size: int) -> tuple[Any, ...]:
        """What a graph that gathers batches of `size` is made for."""
        shapes = tuple((name, t.shape, t.dtype, t.device) for name, t in self.tensors.items())
        return (size, self.load.size, self.load.shuffle, *shapes)

    def stretches(self, start: int, count: int) -> list[tuple[int, int]]:
        """Batches `start` to `start + count` of an epoch as (size, how many): all of one size but the last of the epoch."""
        size, whole = self.load.size, self.n // self.load.size
        full = max(min(whole - start, count), 0)
        return [(s, k) for s, k in ((size, full), (self.n - whole * size, count - full)) if k]

    def seek(self, seed: int, epoch: int, start: int) -> None:
        """Make batch `start` of an epoch the next one."""
        if self.load.shuffle and self._at[0] != (seed, epoch):
            if (seed, epoch) not in self._ahead:
                self._ahead.clear()
                numbers = torch.from_numpy(order.keys(self.n, seed, np.arange(epoch, epoch + AHEAD))).flatten(1)
                self._ahead.update({(seed, epoch + i): row for i, row in enumerate(numbers.unbind())})
            self.keys.copy_(self._ahead[seed, epoch])
            self._at[0] = (seed, epoch)
        self.cursor.fill_(start)

    def gather(self, size: int, static: Sequence[Tensor]) -> tuple[Batch, list[Tensor]]:
        """The next batch, and the cursor after it: a pure function of the tensors in `static`."""
        *data, keys, cursor = static
        positions = cursor * self.load.size + torch.arange(size, device=cursor.device)
        if self.load.shuffle:
            numbers = keys.unbind()
            positions = order.permute(positions, self.n, list(zip(*[iter(numbers)] * 3, strict=True)))
        batch = {name: t.index_select(0, positions) for name, t in zip(self.tensors, data, strict=True)}
        return batch, [cursor + 1]


def first(load: Load, samples: int) -> Batch:
    """A small batch to look at: the first `samples` of the data set, or what an iterable yields first."""
    if load.known:
        batch: Batch = load.data[torch.arange(min(samples, len(load.data)))]
        return batch
    return next(iter(load.epoch(0, 0)))
