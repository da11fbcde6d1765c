"""Functions: a pipeline's two programs as functions of a flat list of tensors, which they write their results into.

The list is State's leaves, for evaluation the sums, what stays of the feed, and what is given. Writing into what was
given is what donation is, inside a graph: there is one copy of State, and the same call can be made again and again.

No tensor in it is 0-d: torch guards on the value of a 0-d float64 input, and drops what is written into it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor
from torch.utils import _pytree as pytree

from pipeline.compile.batches import Feed
from pipeline.errors import StateError
from pipeline.programs.program import Program

TRAIN, EVALUATION = "train step", "evaluation"


@frozen(eq=False)
class Kind:
    """Which program, and how its tensors are a State's and sums."""

    program: str
    spec: Any
    leaves: int
    sums_spec: Any = None
    sums: int = 0

    @property
    def kept(self) -> int:
        """How many tensors come before those of a feed."""
        return self.leaves + self.sums

    def written(self, feed: Feed) -> list[int]:
        """The places in the list that the program writes into."""
        end = self.kept + len(feed.static)
        return [*range(self.leaves if self.sums_spec is not None else 0, self.kept), *range(end - feed.moved, end)]


def listed(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Tensors as a program takes them: 0-d ones as the same storage with one element."""
    return tuple([t.view(1) if t.ndim == 0 else t for t in tensors])


def function(
    own: Program, kind: Kind, feed: Feed, args: Sequence[Tensor], names: list[str]
) -> Callable[..., tuple[Tensor, ...]]:
    """A program as a function of tensors such as `listed(args)` that returns the metrics of a step, and puts their
    names into `names`."""
    n, places, numbers = kind.kept, kind.written(feed), {i for i, t in enumerate(args) if t.ndim == 0}

    def program(*given: Tensor) -> tuple[Tensor, ...]:
        flat = [t.view(()) if i in numbers else t for i, t in enumerate(given)]
        state = pytree.tree_unflatten(flat[: kind.leaves], kind.spec)
        shard, moved = feed.read(flat[n : n + len(feed.static) + len(feed.given)])
        metrics: dict[str, Tensor] = {}
        if kind.program == EVALUATION:
            sums = pytree.tree_unflatten(flat[kind.leaves : n], kind.sums_spec)
            new = [*pytree.tree_leaves(own.measure(state, sums, shard)), *moved]
        else:
            tree, metrics = own.train(state, shard)
            leaves, spec = pytree.tree_flatten(tree)
            new = [*leaves, *moved]
            if spec != kind.spec:
                raise StateError("a step must return a State of the structure that it was given")
        names[:] = metrics
        stored = {t.untyped_storage()._cdata for t in flat[:n]}
        results = [_read_first(t, stored, state["step"]) for t in metrics.values()]
        kept = [v if v is flat[i] else _read_first(v, stored, state["step"]) for i, v in zip(places, new, strict=True)]
        for i, value in zip(places, kept, strict=True):
            if value is not flat[i]:
                given[i].copy_(value.view(1) if i in numbers else value)
        return tuple(t.contiguous().clone() for t in results)

    return program


def _read_first(value: Tensor, stored: set[int], step: Tensor) -> Tensor:
    """A leaf that is another old leaf, as where a target network takes the weights over, read before that is written.

    A clone would not do: Inductor takes it for nothing, and reads the leaf when it is already the new one.
    """
    if value.untyped_storage()._cdata not in stored:
        return value
    return torch.where(step >= 0, value, value.new_zeros(()))
