"""Flatten: a pipeline's two programs as functions of a flat list of tensors, into which they write their results.

The list is: State's leaves, for an evaluation its sums, the tensors of a batch that stay, and those given with each
call. Writing into the arguments donates State: there is one copy of it, and the same call can be repeated.

No tensor in it is 0-d: torch guards on the value of a 0-d float64 input, and drops writes into it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor
from torch.utils import _pytree as pytree

from pipeline.compile.batches import BatchInputs, Signature
from pipeline.compose import Composition
from pipeline.errors import StateError

TRAIN, EVALUATION = "train step", "evaluation"


@frozen(eq=False)
class Layout:
    """A program, and the order of its first tensors: the leaves of a State, then sums."""

    program: str
    spec: Any
    leaves: int
    sums_spec: Any = None
    sums: int = 0

    @property
    def kept(self) -> int:
        """The number of tensors before those of a batch."""
        return self.leaves + self.sums

    def written(self, inputs: BatchInputs) -> list[int]:
        """The places of the tensors that the program writes into."""
        end = self.kept + len(inputs.static)
        return [*range(self.leaves if self.sums_spec is not None else 0, self.kept), *range(end - inputs.moved, end)]


@frozen(eq=False)
class Subject:
    """A layout with its tensors."""

    layout: Layout
    tensors: tuple[Tensor, ...]

    def signature(self, inputs: BatchInputs) -> Signature:
        """What its programs are known by."""
        return (self.layout.program, *inputs.signature)


def flat_tensors(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Tensors as a program takes them: 0-d ones as views of one element."""
    return tuple([t.view(1) if t.ndim == 0 else t for t in tensors])


def flat_program(
    pipe: Composition, layout: Layout, inputs: BatchInputs, args: Sequence[Tensor], names: list[str] | None = None
) -> Callable[..., tuple[Tensor, ...]]:
    """A program as a function of `flat_tensors(args)`. A train step returns its metrics, and lists their `names`."""
    n, places, numbers = layout.kept, layout.written(inputs), {i for i, t in enumerate(args) if t.ndim == 0}

    def program(*given: Tensor) -> tuple[Tensor, ...]:
        flat = [t.view(()) if i in numbers else t for i, t in enumerate(given)]
        state = pytree.tree_unflatten(flat[: layout.leaves], layout.spec)
        batch, moved = inputs.read(flat[n : n + len(inputs.static) + len(inputs.given)])
        metrics: dict[str, Tensor] = {}
        if layout.program == EVALUATION:
            sums = pytree.tree_unflatten(flat[layout.leaves : n], layout.sums_spec)
            new = [*pytree.tree_leaves(pipe.measure(state, sums, batch)), *moved]
        else:
            tree, metrics = pipe.train(state, batch)
            leaves, spec = pytree.tree_flatten(tree)
            new = [*leaves, *moved]
            if spec != layout.spec:
                raise StateError("a step must return a State of the structure that it was given")
        if names is not None:
            names[:] = metrics
        storages = {t.untyped_storage()._cdata for t in flat[:n]}
        results = [_read_early(t, storages, state["step"]) for t in metrics.values()]
        values = [
            v if v is flat[i] else _read_early(v, storages, state["step"]) for i, v in zip(places, new, strict=True)
        ]
        for i, value in zip(places, values, strict=True):
            if value is not flat[i]:
                given[i].copy_(value.view(1) if i in numbers else value)
        return tuple(t.contiguous().clone() for t in results)

    return program


def _read_early(value: Tensor, storages: set[int], step: Tensor) -> Tensor:
    """Read a value that is another old leaf, as of a target network that copies weights, before that is written.

    A clone would not do: Inductor removes it, and reads the new leaf.
    """
    if value.untyped_storage()._cdata not in storages:
        return value
    return torch.where(step >= 0, value, value.new_zeros(()))
