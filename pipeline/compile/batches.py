"""Feeds: where a program's batch comes from: tensors that stay in place, or that are given with each call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, TypeAlias

import torch
from attrs import frozen
from torch import Tensor
from torch.utils import _pytree as pytree

from pipeline.errors import CaptureError, StateError, WiringError
from pipeline.load import Load
from pipeline.mesh import Mesh, Shard
from pipeline.order import Whole
from pipeline.programs import data as batches_of
from pipeline.programs.program import Program
from pipeline.resident import Resident
from pipeline.sources import Tensors
from pipeline.state import Batch
from pipeline.tree import describe

Signature: TypeAlias = tuple[Any, ...]

DATA_SETS = 8
"""How many data sets stay on the device, the pipeline's own among them."""

OWN_DATA = (
    "a data set of tensors in memory that fits on the device, and no stages before place: use load.batches() with "
    "tensors, or pass each batch"
)


@frozen(eq=False)
class Feed:
    """A batch as inputs of a graph."""

    signature: Signature
    batch: str
    """In words."""
    static: tuple[Tensor, ...]
    given: tuple[Tensor, ...]
    read: Callable[[Sequence[Tensor]], tuple[Shard, list[Tensor]]]
    """From these tensors, the batch, and what the last ones of the static ones become."""
    moved: int = 0
    """How many of the static ones a step moves on."""


def given_feed(names: tuple[str, ...], shard: Shard) -> Feed:
    """A placed batch that comes with each call, under names."""
    leaves, spec = pytree.tree_flatten({name: shard.values[name] for name in names})
    given, signature = given_inputs(names, shard)

    def read(flat: Sequence[Tensor]) -> tuple[Shard, list[Tensor]]:
        tensors = iter(flat)
        values = pytree.tree_unflatten([next(tensors) if isinstance(x, Tensor) else x for x in leaves], spec)
        return Shard(values, shard.rows), []

    return Feed(signature, describe(shard.values), (), given, read)


def given_inputs(names: Sequence[str], shard: Shard) -> tuple[tuple[Tensor, ...], Signature]:
    """A placed batch as inputs, under the names that a step was first called with. Raises CaptureError for what is no
    plain tensor."""
    try:
        values = [shard.values[name] for name in names]
    except KeyError as e:
        raise StateError(f"the batch has no {e.args[0]!r}; batches of one compiled step have the same names") from None
    structure: tuple[str, ...] = () if shard.rows is None else (repr(shard.rows),)
    if not all(isinstance(value, Tensor) for value in values):
        values, spec = pytree.tree_flatten(values)
        structure = (*structure, repr(spec), *[repr(value) for value in values if not isinstance(value, Tensor)])
    tensors = [t for t in values if isinstance(t, Tensor)]
    if odd := [t.layout for t in tensors if t.layout is not torch.strided]:
        raise CaptureError(f"the batch has a tensor of layout {odd[0]}, which no graph takes; use fallback='eager'")
    # Graphs are made for contiguous batches: strides are not looked at.
    inputs = tuple([t.contiguous() for t in tensors])
    return inputs, (*structure, *[(t.shape, t.dtype, t.device) for t in inputs])


def resident_feed(data: Resident, size: int, mesh: Mesh | None = None) -> Feed:
    """The batches of one size that a graph gathers from a data set on the device: on a mesh, a process's part of
    each."""
    own = None if mesh is None else mesh.rows(size)
    at = slice(0, size) if own is None else own.taken
    loads = (data.load, *data.load.others)
    shapes = ", ".join(f"{name} {(size, *t.shape[1:])}" for name, t in data.tensors.items())
    words = f"{shapes} of its own {data.n:,} samples"
    kinds = tuple((name, t.shape, t.dtype, t.device) for name, t in data.tensors.items())

    def read(static: Sequence[Tensor]) -> tuple[Shard, list[Tensor]]:
        *tensors, order, cursor = static
        batch: dict[str, Any] = {}
        waiting, begin = iter(tensors), 0
        for load in loads:
            rows = at if load is data.load else slice(0, load.size)
            there = torch.arange(begin + rows.start, begin + rows.stop, device=cursor.device)
            samples = order.index_select(-1, cursor * load.size + there)
            batch |= load.data.batch([gathered(next(waiting), samples) for _ in load.data.tensors])
            begin += data.window * load.size
        return Shard(batch, own), [cursor + 1]

    sizes = (size, *[load.size for load in loads])
    return Feed((*sizes, *data.order.shape, *kinds), words, data.static, (), read, moved=1)


def gathered(t: Tensor, samples: Tensor) -> Tensor:
    """The rows of a tensor at some indices, of any shape."""
    rows = t.index_select(0, samples.flatten())
    return rows if samples.ndim == 1 else rows.reshape(*samples.shape, *t.shape[1:])


class Feeds:
    """The data sets of a pipeline's programs: its own, and those that it is evaluated on."""

    def __init__(self, program: Program) -> None:
        self.program, self.pipe = program, program.pipe
        pipe = program.pipe
        self.resident = pipe.load is not None and self._can_stay(pipe.load)
        """Whether the pipeline's own data set can be on the device as a whole, so that a graph gathers its batches."""
        self._sets: dict[Any, Resident] = {}

    def own(self) -> Load:
        """The pipeline's own load stage. Raises WiringError where a graph can't gather from its data."""
        if self.pipe.load is None or not self.resident:
            raise WiringError(f"steps without batches need {OWN_DATA}")
        return self.pipe.load

    @cached_property
    def batches(self) -> int:
        """Of an epoch of the pipeline's own data."""
        return self.own().batches or 0

    @cached_property
    def home(self) -> Resident:
        """The pipeline's own data set on the device."""
        return self.place(self.own())

    def place(self, source: Load) -> Resident:
        """A data set on the device, once."""
        places = [(t.data_ptr(), t.shape, t.stride(), t.dtype) for t in source.tensors.values()]
        data = (tuple(source.tensors), *places)  # a mapping of tensors is made a new Source each time
        sizes = (source.size, *[load.size for load in source.others])
        key = (data, sizes, source.drop_last, source is self.pipe.load)
        if key not in self._sets:
            if len(self._sets) >= DATA_SETS:
                self._sets = {k: r for k, r in self._sets.items() if r.load is self.pipe.load}
            copies = [r.tensors for (d, *_), r in self._sets.items() if d == data]
            own = self.program.orders if source is self.pipe.load else None
            self._sets[key] = Resident(self.pipe.place.tree, source, next(iter(copies), None), own)
        return self._sets[key]

    def stack(self, batches: Sequence[Batch]) -> tuple[Resident, Signature]:
        """Batches of tensors of one shape, one after the other in a data set on the device, and what that is known by.

        Its tensors stay, and are written anew for the next batches of such a shape.
        """
        first = {name: t.contiguous() for name, t in batches[0].items()}
        size = len(next(iter(first.values())))
        key = ("stacked", len(batches), *[(name, t.shape, t.dtype) for name, t in first.items()])
        if key not in self._sets:
            empty = {name: t.new_zeros((len(batches) * size, *t.shape[1:])) for name, t in first.items()}
            order = Whole(len(batches) * size, shuffle=False)
            load = Load("load.batches", data=Tensors(empty), size=size, order=order)
            self._sets[key] = Resident(self.pipe.place.tree, load)
        for name, whole in self._sets[key].tensors.items():
            torch.cat([batch[name] for batch in batches], out=whole)
        return self._sets[key], key

    def epoch(self, source: Load, training: bool) -> Iterator[tuple[Feed, int | None]]:
        """An epoch of a data set in its own order, as feeds, and for how many steps each serves."""
        if self._can_stay(source):
            data = self.place(source)
            for size, steps in data.walk(0, 0, 0, data.batches):
                yield resident_feed(data, size, self.pipe.place.mesh), steps
            return
        shards = batches_of.epoch(self.program, source, 0, 0, training=training)
        for shard in batches_of.ahead(self.pipe, shards):
            yield given_feed(tuple(shard.values), shard), None

    def kinds(self, source: Load, training: bool) -> list[Feed]:
        """One feed for each shape of batch that a known data set has."""
        if self._can_stay(source):
            data = self.place(source)
            data.seek(0, 0, 0)
            return [resident_feed(data, size, self.pipe.place.mesh) for size in data.sizes(0, data.batches)]
        shards = batches_of.first_and_last(self.program, source, training)
        feeds = [given_feed(tuple(shard.values), shard) for shard in shards]
        return list({feed.signature: feed for feed in feeds}.values())

    def _can_stay(self, source: Load) -> bool:
        if self.pipe.host or not source.in_memory or (source.others and self.pipe.place.mesh is not None):
            return False
        asked = source is self.pipe.load and source is not self.pipe.stages[0]  # it stands after place
        return asked or self.pipe.place.fits(source.tensors.values())
