"""Batches: inputs of a graph, either static, such as a data set on the device, or given with each call."""

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
from pipeline.programs.data import ahead, epoch, first_and_last
from pipeline.programs.program import Program
from pipeline.resident import Resident
from pipeline.sources import Tensors
from pipeline.state import Batch
from pipeline.tree import describe

Signature: TypeAlias = tuple[Any, ...]

DATA_SETS = 8
"""Data sets that stay on the device, the pipeline's own among them."""

OWN_DATA = (
    "a data set of tensors in memory that fits on the device, and no stages before place: use load.batches() with "
    "tensors, or pass each batch"
)


@frozen(eq=False)
class BatchInputs:
    """A batch as inputs of a graph."""

    signature: Signature
    words: str
    static: tuple[Tensor, ...]
    """Tensors that stay in place."""
    given: tuple[Tensor, ...]
    """Tensors given with each call."""
    read: Callable[[Sequence[Tensor]], tuple[Shard, list[Tensor]]]
    """(*static, *given) -> the batch, and the next values of the last `moved` static tensors."""
    moved: int = 0


def passed_batch(names: tuple[str, ...], shard: Shard) -> BatchInputs:
    """A placed batch that is passed to each call, under names."""
    leaves, spec = pytree.tree_flatten({name: shard.values[name] for name in names})
    given, signature = passed_tensors(names, shard)

    def read(flat: Sequence[Tensor]) -> tuple[Shard, list[Tensor]]:
        tensors = iter(flat)
        values = pytree.tree_unflatten([next(tensors) if isinstance(x, Tensor) else x for x in leaves], spec)
        return Shard(values, shard.rows), []

    return BatchInputs(signature, describe(shard.values), (), given, read)


def passed_tensors(names: Sequence[str], shard: Shard) -> tuple[tuple[Tensor, ...], Signature]:
    """The tensors of a placed batch, and its signature. Raises CaptureError for a tensor that is not strided."""
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
    # Graphs are compiled for contiguous batches, so the signature has no strides.
    inputs = tuple([t.contiguous() for t in tensors])
    return inputs, (*structure, *[(t.shape, t.dtype, t.device) for t in inputs])


def resident_batch(data: Resident, size: int, mesh: Mesh | None = None) -> BatchInputs:
    """A batch of `size` samples that a graph gathers from a data set on the device; on a mesh, the local shard of
    it."""
    own = None if mesh is None else mesh.rows(size)
    local = slice(0, size) if own is None else own.taken
    loads = (data.load, *data.load.others)
    shapes = ", ".join(f"{name} {(size, *t.shape[1:])}" for name, t in data.tensors.items())
    kinds = tuple((name, t.shape, t.dtype, t.device) for name, t in data.tensors.items())

    def read(static: Sequence[Tensor]) -> tuple[Shard, list[Tensor]]:
        *tensors, order, cursor = static
        batch: dict[str, Any] = {}
        waiting, begin = iter(tensors), 0
        for load in loads:
            span = local if load is data.load else slice(0, load.size)
            places = torch.arange(begin + span.start, begin + span.stop, device=cursor.device)
            samples = order.index_select(-1, cursor * load.size + places)
            batch |= load.data.batch([_gathered(next(waiting), samples) for _ in load.data.tensors])
            begin += data.window * load.size
        return Shard(batch, own), [cursor + 1]

    signature = (size, *[load.size for load in loads], *data.order.shape, *kinds)
    return BatchInputs(signature, f"{shapes} of its own {data.n:,} samples", data.static, (), read, moved=1)


def _gathered(t: Tensor, samples: Tensor) -> Tensor:
    """The rows of a tensor at indices of any shape."""
    rows = t.index_select(0, samples.flatten())
    return rows if samples.ndim == 1 else rows.reshape(*samples.shape, *t.shape[1:])


class DataSets:
    """The data sets of a pipeline's programs: the training's, and the evaluations'."""

    def __init__(self, program: Program) -> None:
        self.program, self.pipe = program, program.pipe
        pipe = program.pipe
        self.resident = pipe.load is not None and self._can_stay(pipe.load)
        """Whether the pipeline's own data set stays on the device, so that a graph gathers its batches."""
        self._sets: dict[Any, Resident] = {}

    def own(self) -> Load:
        """The pipeline's own load stage. Raises WiringError if a graph can't gather from its data."""
        if self.pipe.load is None or not self.resident:
            raise WiringError(f"steps without batches need {OWN_DATA}")
        return self.pipe.load

    @cached_property
    def batches(self) -> int:
        """Batches in an epoch of the pipeline's own data."""
        return self.own().batches or 0

    @cached_property
    def home(self) -> Resident:
        """The pipeline's own data set on the device."""
        return self.place(self.own())

    def place(self, source: Load) -> Resident:
        """A data set on the device, copied once."""
        storages = [(t.data_ptr(), t.shape, t.stride(), t.dtype) for t in source.tensors.values()]
        data = (tuple(source.tensors), *storages)  # a mapping of tensors is a new Source each time
        sizes = (source.size, *[load.size for load in source.others])
        key = (data, sizes, source.drop_last, source is self.pipe.load)
        if key not in self._sets:
            if len(self._sets) >= DATA_SETS:
                self._sets = {k: r for k, r in self._sets.items() if r.load is self.pipe.load}
            copies = [r.tensors for (d, *_), r in self._sets.items() if d == data]
            orders = self.program.orders if source is self.pipe.load else None
            self._sets[key] = Resident(self.pipe.place.tree, source, next(iter(copies), None), orders)
        return self._sets[key]

    def stack(self, batches: Sequence[Batch]) -> tuple[Resident, Signature]:
        """Batches of tensors of one shape, concatenated to a data set on the device, and its key.

        The next batches of this shape are written into the same tensors.
        """
        first = {name: t.contiguous() for name, t in batches[0].items()}
        size = len(next(iter(first.values())))
        key = ("stacked", len(batches), *[(name, t.shape, t.dtype) for name, t in first.items()])
        if key not in self._sets:
            empty = {name: t.new_zeros((len(batches) * size, *t.shape[1:])) for name, t in first.items()}
            order = Whole(len(batches) * size, shuffle=False)
            load = Load("load.batches", data=Tensors(empty), size=size, order=order)
            self._sets[key] = Resident(self.pipe.place.tree, load)
        for name, stacked in self._sets[key].tensors.items():
            torch.cat([batch[name] for batch in batches], out=stacked)
        return self._sets[key], key

    def epoch(self, source: Load, training: bool) -> Iterator[tuple[BatchInputs, int | None]]:
        """An epoch of a data set in its own order: inputs, and the number of steps on each (None: one)."""
        if self._can_stay(source):
            data = self.place(source)
            for size, steps in data.walk(0, 0, 0, data.batches):
                yield resident_batch(data, size, self.pipe.place.mesh), steps
            return
        for shard in ahead(self.pipe, epoch(self.program, source, 0, 0, training=training)):
            yield passed_batch(tuple(shard.values), shard), None

    def shapes(self, source: Load, training: bool) -> list[BatchInputs]:
        """One batch for each shape in a data set of known length."""
        if self._can_stay(source):
            data = self.place(source)
            data.seek(0, 0, 0)
            return [resident_batch(data, size, self.pipe.place.mesh) for size in data.sizes(0, data.batches)]
        shards = first_and_last(self.program, source, training)
        batches = [passed_batch(tuple(shard.values), shard) for shard in shards]
        return list({batch.signature: batch for batch in batches}.values())

    def _can_stay(self, source: Load) -> bool:
        if self.pipe.host or not source.in_memory or (source.others and self.pipe.place.mesh is not None):
            return False
        after_place = source is self.pipe.load and source is not self.pipe.stages[0]
        return after_place or self.pipe.place.fits(source.tensors.values())
