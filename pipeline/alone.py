"""Alone: whether a step on a mesh is the one that a process would do alone, seen on the user's own step and data."""

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
from pipeline.compose import Composition
from pipeline.errors import CaptureError, DataError, StageError
from pipeline.mesh import Mesh
from pipeline.place import Place
from pipeline.run import counted, through
from pipeline.state import Batch, State
from pipeline.tree import paths

LIMIT = 2**30
"""Bytes of a State beyond which, in shards, it is not put together for a check."""


def check_mesh(pipe: Composition, state: State) -> None:
    """Raise StageError where a step on a mesh differs from the same one on one process by more than rounding, as where
    a stage reads all samples of a batch at once; and DataError where the processes have other data.

    A few samples of the data are enough to tell. A State that is in shards because it is large is taken on trust.
    """
    mesh = pipe.place.mesh
    if mesh is None or pipe.load is None or not any(isinstance(s, Gradients) for s in pipe.graph):
        return
    source = pipe.over()
    batch = pipe.prepared(load.first(source, 2 * mesh.processes + 1), True)
    _check_data(mesh, len(source.data), pytree.tree_leaves(dict(batch)))
    bytes_ = sum(t.nbytes for t in pytree.tree_leaves(state.tree))
    if mesh.shard > 1 and bytes_ * mesh.shard > LIMIT:
        return
    on = pipe.sharding
    assert on is not None
    whole = on.whole(state.tree)
    apart = on.leaves(state.tree)
    names, leaves, spec = [k for k, _ in paths(whole)], pytree.tree_leaves(whole), pytree.tree_structure(whole)
    mine, alone = _changed(pipe, pipe.place), _changed(pipe, place.on(mesh.device, precision=pipe.place.precision))

    def stepped(run: Composition, args: Sequence[Tensor], parted: bool) -> Sequence[Tensor]:
        given = [mesh.part(t) if parted and k in apart else t for k, t in zip(names, args, strict=True)]
        tree, metrics = run.step(State(pytree.tree_unflatten(given, spec)), batch)
        made = on.whole(tree.tree) if parted else tree.tree
        with torch.no_grad():
            for old, new in zip(args, pytree.tree_leaves(made), strict=True):
                old.copy_(new)
        return list(metrics.values())

    low = pipe.place.precision != "fp32"
    try:
        check(
            lambda args: stepped(mine, args, True), lambda *args: stepped(alone, args, False), leaves,
            range(len(leaves)), low, lambda fine: all(mesh.everyone(fine)),
        )  # fmt: skip
    except CaptureError:
        raise StageError(
            _culprit(pipe, alone, State(whole), batch),
            "is not on a mesh what it is on one process: it needs all samples of a batch at once, or draws for them "
            "together, and each process has a part; take them by mesh.gathered(x), or a sum by mesh.summed(x)",
        ) from None


def _changed(pipe: Composition, where: Place) -> Composition:
    """The same pipeline elsewhere, which takes a small batch at once."""
    alone = [evolve(s, accumulate=1) if isinstance(s, Gradients) else s for s in pipe.stages]
    return Composition(*[where if isinstance(s, Place) else s for s in alone])


def _check_data(mesh: Mesh, count: int, leaves: Sequence[Any]) -> None:
    """Raise DataError where the processes do not see the same samples."""
    seen = count, [t.double().sum().item() for t in leaves if isinstance(t, Tensor) and not t.is_complex()]
    each = mesh.everyone(repr(seen))
    if r := next((r for r, other in enumerate(each) if other != each[0]), 0):
        alike = "all must make the same data set: seed what is random in it"
        raise DataError(f"process {r} has other data than process 0; {alike}")


def _culprit(pipe: Composition, alone: Composition, state: State, batch: Batch) -> str:
    """The first stage whose values for the samples are others; the one that writes the loss where none is."""
    mesh, on = pipe.place.mesh, pipe.sharding
    assert mesh is not None
    assert on is not None
    stages = list(alone.segments[0].stages)
    size = alone.counted(batch)
    rows = mesh.rows(size)
    kept = {k: v for k, v in state.tree.items() if k not in ("memory", "hyper")}
    both: list[dict[str, Any]] = []
    for part in (None, rows):
        own = alone.place.batch(dict(batch) if part is None else part.of(batch))
        values = {**kept, "training": True, **{k: v for k, v in own.items() if isinstance(v, Tensor)}}
        weigh = counted({"n": torch.zeros(size if part is None else part.length)}, None, state.step)
        with torch.no_grad(), on.here(part) if part is not None else torch.no_grad():
            both.append(through(stages, values, alone.hyper(state.tree), state.memory, weigh)[0])
    for s in stages:
        for name in s.writes:
            x, y = both[0].get(name), both[1].get(name)
            if isinstance(x, Tensor) and isinstance(y, Tensor) and x.ndim and len(x) == size and len(y) == rows.length:
                off = distance(x[rows.taken], y) if x.shape[1:] == y.shape[1:] else 1.0
                if max(mesh.everyone(off)) > 1e-3 * float(x.abs().double().max() + 1e-30):
                    return s.name
    gradients = alone.segments[0].gradients
    return next((s.name for s in reversed(stages) if gradients is not None and gradients.of in s.writes), "?")
