"""Data: the batches of a program, on the host and on the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from pipeline import load
from pipeline.description import Description
from pipeline.errors import WiringError
from pipeline.load import Load
from pipeline.mesh import Shard
from pipeline.programs.segments import run_stages
from pipeline.random import key, seeded
from pipeline.state import Batch, State, samples
from pipeline.tree import Tree, tree_map

if TYPE_CHECKING:
    from pipeline.programs.program import Program


def source(pipe: Description, data: Any = None) -> Load:
    """Load stage for an evaluation of `data`, or of the pipeline's own data set."""
    if data is None and pipe.load is None:
        raise WiringError("evaluation needs data: this pipeline has no load stage of its own")
    own = pipe.load or load.loader(())
    return own.over(own if data is None else data)


def epoch(program: Program, of: Load, seed: Any, number: int, start: int = 0, training: bool = True) -> Iterator[Shard]:
    """Batches of an epoch from batch `start` on, after the host's stages. Members with orders of their own get
    (M, B, ...) from the training data."""
    pipe, mesh = program.pipe, program.pipe.place.mesh
    if mesh is not None:
        for k, shard in enumerate(of.shards(seed, number, start, mesh.rows), start):
            yield Shard(prepared(pipe, shard.values, training, (seed, number, k, mesh.rank)), shard.rows)
        return
    if isinstance(seed, tuple):
        each = zip(*(of.epoch(own, number, start) for own in seed), strict=True)
        yield from (Shard(tree_map(lambda *xs: torch.stack(xs), *batches)) for batches in each)
        return
    for k, batch in enumerate(of.epoch(seed, number, start), start):
        yield Shard(prepared(pipe, batch, training, (seed, number, k)))


def prepared(pipe: Description, batch: Batch, training: bool, place: tuple[int, ...] = ()) -> Batch:
    """A batch after the stages on the host, whose draws are a function of its place: (seed, epoch, batch)."""
    host = [s for s in pipe.host if s.runs(training)]
    if not host:
        return batch
    with seeded(key(*place)):
        return {**batch, **run_stages(host, {**batch, "training": training}, {}, {})[0]}


def placed(program: Program, tree: Mapping[str, Tree], batch: Batch, training: bool = True) -> Shard:
    """A whole batch on the device, after the host's stages: on a mesh, the samples of this process. Draws are those of
    the batch of the pipeline's own data at this step."""
    pipe, mesh = program.pipe, program.pipe.place.mesh
    shard = Shard(batch) if mesh is None else mesh.rows(samples(batch, pipe.samples)).shard(batch)
    if any(s.runs(training) for s in pipe.host):
        batches = None if pipe.load is None else pipe.load.batches
        step = int(tree["step"]) if training else 0
        at: Any = (program.seed(tree) if training else 0, *(divmod(step, batches) if batches else (0, step)))
        at = at if mesh is None else (*at, mesh.rank)
        shard = Shard(prepared(pipe, shard.values, training, at), shard.rows)
    return Shard(pipe.place.batch(shard.values), shard.rows)


def ahead(pipe: Description, shards: Iterator[Shard]) -> Iterator[Shard]:
    """Shards on the device, each sent during the previous step."""
    rows: list[Any] = []

    def values() -> Iterator[Batch]:
        for shard in shards:
            rows.append(shard.rows)
            yield shard.values

    for batch in pipe.place.ahead(values()):
        yield Shard(batch, rows.pop(0))


def size(program: Program, shard: Shard) -> int:
    """Samples in a batch, of all processes together."""
    if shard.rows is not None:
        return shard.rows.whole
    values = shard.values
    return samples(values if program.orders is None else tree_map(lambda x: x[0], dict(values)), program.pipe.samples)


def at(program: Program, state: State) -> Shard:
    """The batch at `state.step`: number step % batches of epoch step // batches."""
    own = program.pipe.load
    if own is None or not own.batches:
        raise WiringError("a step needs a batch: this pipeline has no load stage that knows how many there are")
    number, start = divmod(int(state.step), own.batches)
    return next(epoch(program, own, program.seed(state.tree), number, start))


def first_and_last(program: Program, of: Load, training: bool) -> Iterator[Shard]:
    """The batches of an epoch that may differ in shape, on the device; none if the data does not tell."""
    if of.known and of.batches:
        for k in sorted({0, of.batches - 1}):
            shard = next(epoch(program, of, 0, 0, k, training))
            yield Shard(program.pipe.place.batch(shard.values), shard.rows)
