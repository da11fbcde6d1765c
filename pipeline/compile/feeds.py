"""Feeds: where a program's batch comes from: tensors that stay in place, or that are given with each call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from attrs import frozen
from torch import Tensor

from pipeline import order
from pipeline.compose import Composition
from pipeline.errors import StateError, WiringError
from pipeline.load import Load
from pipeline.stage import describe
from pipeline.state import Batch

Signature: TypeAlias = tuple[Any, ...]

DATA_SETS = 8
"""How many data sets stay on the device, the pipeline's own among them."""

WINDOW, BATCHES = 2048, 64
"""The order is worked out for at least so many samples, and so many batches, at once."""

AHEAD = 64
"""Epochs whose keys are worked out together."""

OWN_DATA = (
    "a data set of tensors in memory that fits on the device, and no stages before place: use load.batches() with tensors, "
    "or pass each batch"
)


Permute: TypeAlias = Callable[[Tensor, int, int, Tensor], None]
"""A fast way to write into (count,) int64 where so many positions, from one on, go in a shuffle of n samples by its keys."""


@frozen(eq=False)
class Feed:
    """A batch as inputs of a graph."""

    signature: Signature
    batch: str
    """In words."""
    static: tuple[Tensor, ...]
    given: tuple[Tensor, ...]
    read: Callable[[Sequence[Tensor]], tuple[Batch, list[Tensor]]]
    """From these tensors, the batch, and what the last ones of the static ones become."""
    moved: int = 0
    """How many of the static ones a step moves on."""


def given_feed(names: tuple[str, ...], batch: Batch) -> Feed:
    """A batch that comes with each call, under names."""
    given, signature = given_inputs(names, batch)
    return Feed(signature, describe(batch), (), given, lambda flat: (dict(zip(names, flat, strict=True)), []))


def given_inputs(names: Sequence[str], batch: Batch) -> tuple[tuple[Tensor, ...], Signature]:
    """A batch as inputs, under the names that a step was first called with."""
    try:
        # Graphs are made for contiguous batches: strides are not looked at.
        inputs = tuple([batch[name].contiguous() for name in names])
    except KeyError as e:
        raise StateError(f"the batch has no {e.args[0]!r}; batches of one compiled step have the same names") from None
    return inputs, tuple([(t.shape, t.dtype, t.device) for t in inputs])


class Resident:
    """A data set on the device. Its order is worked out for many batches at once, into a tensor that a graph gathers by."""

    def __init__(self, place: Callable[[Any], Any], load: Load, tensors: dict[str, Tensor] | None = None) -> None:
        self.load, self.n = load, len(load.data)
        self.tensors: dict[str, Tensor] = tensors or place({k: t.contiguous() for k, t in load.data.tensors.items()})
        self.batches = load.batches or 0
        """Of an epoch."""
        self.window = max(min(max(WINDOW // load.size, BATCHES), self.batches), 1)
        """Batches whose order is there."""
        self.order: Tensor = place(torch.zeros(self.window * load.size, dtype=torch.int64))
        self.cursor: Tensor = place(torch.zeros(1, dtype=torch.int64))
        """The next batch of the window."""
        self.static = (*self.tensors.values(), self.order, self.cursor)
        self._keys: dict[tuple[int, int], Tensor] = {}
        self._there: tuple[int, int, int] | None = None
        """Seed, epoch and window whose order is there."""
        self._next = 0

    def feed(self, size: int) -> Feed:
        """Its batches of one size."""
        shapes = ", ".join(f"{name} {(size, *t.shape[1:])}" for name, t in self.tensors.items())
        words = f"{shapes} of its own {self.n:,} samples"
        kinds = tuple((name, t.shape, t.dtype, t.device) for name, t in self.tensors.items())

        def read(static: Sequence[Tensor]) -> tuple[Batch, list[Tensor]]:
            *data, order, cursor = static
            positions = cursor * self.load.size + torch.arange(size, device=cursor.device)
            samples = order.index_select(0, positions)
            return {k: t.index_select(0, samples) for k, t in zip(self.tensors, data, strict=True)}, [cursor + 1]

        return Feed((size, self.load.size, self.window, *kinds), words, self.static, (), read, moved=1)

    def sizes(self, start: int, count: int) -> list[int]:
        """The sizes of batches `start` to `start + count` of an epoch: of them all but, perhaps, the last one."""
        whole = self.n // self.load.size
        return [
            *([self.load.size] if start < whole else []),
            *([self.n % self.load.size] if start + count > whole else []),
        ]

    def walk(
        self, seed: int, epoch: int, start: int, count: int, permute: Permute | None = None
    ) -> Iterator[tuple[int, int]]:
        """Batches `start` to `start + count` of an epoch, in stretches of (size, how many): before each is given out, the
        cursor and the order are where it begins."""
        size, whole, end = self.load.size, self.n // self.load.size, start + count
        while start < end:
            at = self.seek(seed, epoch, start, permute)
            stop = min(end, start - at + self.window, *([whole] if start < whole else []))
            self._next = at + stop - start
            yield (size if start < whole else self.n - whole * size), stop - start
            start = stop

    def seek(self, seed: int, epoch: int, batch: int, permute: Permute | None = None) -> int:
        """Have the order of the window that a batch of an epoch is in; its place in there."""
        window, at = divmod(batch, self.window)
        if self._there != (seed, epoch, window):
            self._fill(seed, epoch, window * self.window * self.load.size, permute)
            self._there = (seed, epoch, window)
        elif self._next == at:
            return at
        self.cursor.fill_(at)
        return at

    def _fill(self, seed: int, epoch: int, first: int, permute: Permute | None) -> None:
        there = self.order[: min(self.n - first, len(self.order))]
        if not self.load.shuffle:
            there.copy_(torch.arange(first, first + len(there)))
            return
        if (seed, epoch) not in self._keys:
            numbers = torch.from_numpy(order.keys(self.n, seed, np.arange(epoch, epoch + AHEAD)))
            self._keys = {(seed, epoch + i): keys for i, keys in enumerate(numbers.unbind())}
        keys = self._keys[seed, epoch]
        if permute is not None:
            permute(there, first, self.n, keys)
        else:
            positions = order.permute(np.arange(first, first + len(there)), self.n, keys.tolist())
            there.copy_(torch.from_numpy(positions))


class Feeds:
    """The data sets of a pipeline's programs: its own, and those that it is evaluated on."""

    def __init__(self, pipe: Composition) -> None:
        self.pipe = pipe
        self.resident = pipe.load is not None and self._can_stay(pipe.load)
        """Whether the pipeline's own data set can be on the device as a whole, so that a graph gathers its batches."""
        self._sets: dict[Any, Resident] = {}

    def own(self) -> Load:
        """The pipeline's own load stage. Raises WiringError where a graph can't gather from its data."""
        if self.pipe.load is None or not self.resident:
            raise WiringError(f"steps without batches need {OWN_DATA}")
        return self.pipe.load

    def place(self, source: Load) -> Resident:
        """A data set on the device, once."""
        places = [(t.data_ptr(), t.shape, t.stride(), t.dtype) for t in source.data.tensors.values()]
        data = (tuple(source.data.tensors), *places)  # a mapping of tensors is made a new Source each time
        key = (data, source.size, source.shuffle)
        if key not in self._sets:
            if len(self._sets) >= DATA_SETS:
                self._sets = {k: r for k, r in self._sets.items() if r.load is self.pipe.load}
            copies = [r.tensors for (d, *_), r in self._sets.items() if d == data]
            self._sets[key] = Resident(self.pipe.place.tree, source, *copies[:1])
        return self._sets[key]

    def epoch(self, source: Load, training: bool) -> Iterator[tuple[Feed, int | None]]:
        """An epoch of a data set in its own order, as feeds, and for how many steps each serves."""
        if self._can_stay(source):
            data = self.place(source)
            for size, steps in data.walk(0, 0, 0, data.batches):
                yield data.feed(size), steps
            return
        for batch in self.pipe.place.ahead(self.pipe.prepared(b, training) for b in source.epoch(0, 0)):
            yield given_feed(tuple(batch), batch), None

    def kinds(self, source: Load, training: bool) -> list[Feed]:
        """One feed for each shape of batch that a known data set has."""
        if self._can_stay(source):
            data = self.place(source)
            data.seek(0, 0, 0)
            return [data.feed(size) for size in data.sizes(0, data.batches)]
        feeds = [given_feed(tuple(b), b) for b in self.pipe.first_and_last(source, training)]
        return list({feed.signature: feed for feed in feeds}.values())

    def _can_stay(self, source: Load) -> bool:
        if self.pipe.host or not source.in_memory:
            return False
        asked = source is self.pipe.load and source is not self.pipe.stages[0]  # it stands after place
        return asked or self.pipe.place.fits(source.data.tensors.values())
