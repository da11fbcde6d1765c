"""Self-check: compare a step on a mesh with the step of one process alone, on the user's own pipeline and data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from attrs import evolve
from torch import Tensor
from torch.utils import _pytree as pytree

from pipeline import load, place
from pipeline.backward import Gradients
from pipeline.compile.verify import check, distance
from pipeline.description import Description
from pipeline.errors import CaptureError, DataError, StageError
from pipeline.mesh import Mesh, Shard
from pipeline.place import Place
from pipeline.programs import data
from pipeline.programs.evaluate import step
from pipeline.programs.hyper import hyper_values
from pipeline.programs.mesh import OnMesh
from pipeline.programs.program import Program
from pipeline.programs.segments import batch_weight, run_stages
from pipeline.programs.single import Single, kept
from pipeline.state import Batch, State, samples
from pipeline.tree import paths

LIMIT = 2**30
"""Bytes of a sharded State above which it is not gathered for a check."""


def check_mesh(program: Program, state: State) -> None:
    """Raise StageError if a step on a mesh differs from the same step on one process by more than rounding, as when a
    stage reads all samples of a batch at once; DataError if the processes have other data.

    A few samples of the data are enough. A large sharded State is not checked.
    """
    pipe = program.pipe
    if not isinstance(program, OnMesh) or pipe.load is None or not pipe.backwards:
        return
    on, mesh, source = program.sharding, program.sharding.mesh, data.source(pipe)
    batch = data.prepared(pipe, load.first(source, 2 * mesh.processes + 1), True)
    _check_data(mesh, len(source.data), pytree.tree_leaves(dict(batch)))
    bytes_ = sum(t.nbytes for t in pytree.tree_leaves(state.tree))
    if mesh.shard > 1 and bytes_ * mesh.shard > LIMIT:
        return
    whole, shards = on.whole(state.tree), on.leaves(state.tree)
    names, leaves, spec = [k for k, _ in paths(whole)], pytree.tree_leaves(whole), pytree.tree_structure(whole)
    alone = Single(_placed(pipe, place.on(mesh.device, precision=pipe.place.precision)))
    local = program.of(_placed(pipe, pipe.place).stages)

    def stepped(own: Single, args: Sequence[Tensor], sharded: bool) -> Sequence[Tensor]:
        given = [mesh.part(t) if sharded and k in shards else t for k, t in zip(names, args, strict=True)]
        shard = mesh.rows(samples(batch, pipe.samples)).shard(batch) if sharded else Shard(batch)
        placed = Shard(own.pipe.place.batch(shard.values), shard.rows)  # the stages before have run
        after, metrics = step(own, State(pytree.tree_unflatten(given, spec)), placed)
        tree = on.whole(after.tree) if sharded else after.tree
        with torch.no_grad():
            for old, new in zip(args, pytree.tree_leaves(tree), strict=True):
                old.copy_(new)
        return list(metrics.values())

    low = pipe.place.precision != "fp32"
    try:
        check(
            lambda args: stepped(local, args, True), lambda *args: stepped(alone, args, False), leaves,
            range(len(leaves)), low, lambda fine: all(mesh.everyone(fine)),
        )  # fmt: skip
    except CaptureError:
        raise StageError(
            _culprit(program, alone, State(whole), batch),
            "is not on a mesh what it is on one process: it needs all samples of a batch at once, or draws for them "
            "together, and each process has a part; take them by mesh.gathered(x), or a sum by mesh.summed(x)",
        ) from None


def _placed(pipe: Description, where: Place) -> Description:
    """The same stages elsewhere, without accumulation."""
    stages = [evolve(s, accumulate=1) if isinstance(s, Gradients) else s for s in pipe.stages]
    return Description(*[where if isinstance(s, Place) else s for s in stages])


def _check_data(mesh: Mesh, count: int, leaves: Sequence[Any]) -> None:
    """Raise DataError unless all processes have the same samples."""
    seen = count, [t.double().sum().item() for t in leaves if isinstance(t, Tensor) and not t.is_complex()]
    each = mesh.everyone(repr(seen))
    if r := next((r for r, other in enumerate(each) if other != each[0]), 0):
        alike = "all must make the same data set: seed what is random in it"
        raise DataError(f"process {r} has other data than process 0; {alike}")


def _culprit(program: OnMesh, alone: Single, state: State, batch: Batch) -> str:
    """Name of the first stage whose per-sample values differ, or else of the stage that writes the loss."""
    on, mesh = program.sharding, program.sharding.mesh
    stages = list(alone.segments[0].stages)
    size = data.size(alone, Shard(batch))
    rows = mesh.rows(size)
    both: list[dict[str, Any]] = []
    for part in (None, rows):
        own = alone.pipe.place.batch(batch if part is None else part.shard(batch).values)
        values = {**kept(state.tree), "training": True, **{k: v for k, v in own.items() if isinstance(v, Tensor)}}
        weight = batch_weight({"n": torch.zeros(size if part is None else part.length)}, None, state.step)
        hyper = hyper_values(alone.pipe.graph, state.tree)
        with torch.no_grad(), on.here(part) if part is not None else torch.no_grad():
            both.append(run_stages(stages, values, hyper, state.memory, weight)[0])
    for s in stages:
        for name in s.writes:
            x, y = both[0].get(name), both[1].get(name)
            if isinstance(x, Tensor) and isinstance(y, Tensor) and x.ndim and len(x) == size and len(y) == rows.length:
                off = distance(x[rows.taken], y) if x.shape[1:] == y.shape[1:] else 1.0
                if max(mesh.everyone(off)) > 1e-3 * float(x.abs().double().max() + 1e-30):
                    return s.name
    gradients = alone.segments[0].gradients
    return next((s.name for s in reversed(stages) if gradients is not None and gradients.of in s.writes), "?")
