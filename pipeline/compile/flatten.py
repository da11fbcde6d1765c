"""Flatten: a pipeline's two programs as functions of a flat list of tensors, into which they write their results.

The list is: State's leaves, the sums of an evaluation, and the tensors of a batch: static ones, then tensors given with
each call. Writing into the arguments donates State: there is one copy of it, and the same call can be repeated.

No tensor in it is 0-d: torch guards on the value of a 0-d float64 input, and drops writes into it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor
from torch.utils import _pytree as pytree

from pipeline.alike import traced_once
from pipeline.compile.batches import BatchInputs, Signature
from pipeline.errors import StateError
from pipeline.programs.program import Program

TRAIN, EVALUATION = "train step", "evaluation"


@frozen(eq=False)
class Subject:
    """The State that a program works on, and the sums of an evaluation."""

    spec: Any
    leaves: tuple[Tensor, ...]
    sums_spec: Any = None
    sums: tuple[Tensor, ...] = ()

    @property
    def program(self) -> str:
        return TRAIN if self.sums_spec is None else EVALUATION

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (*self.leaves, *self.sums)

    def signature(self, inputs: BatchInputs) -> Signature:
        """The key of its program."""
        return (self.program, *inputs.signature)

    def written(self, inputs: BatchInputs) -> list[int]:
        """The places of the tensors that the program writes into."""
        first, kept = (0 if self.sums_spec is None else len(self.leaves)), len(self.tensors)
        end = kept + len(inputs.static)
        return [*range(first, kept), *range(end - inputs.moved, end)]


def flat_tensors(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Tensors as a program takes them: 0-d ones as views of one element."""
    return tuple([t.view(1) if t.ndim == 0 else t for t in tensors])


def flat_program(
    own: Program, subject: Subject, inputs: BatchInputs, args: Sequence[Tensor], names: list[str] | None = None
) -> Callable[..., tuple[Tensor, ...]]:
    """A program as a function of `flat_tensors(args)`. A train step returns its metrics, and lists their `names`."""
    first, n, end = len(subject.leaves), len(subject.tensors), len(args)
    spec, sums_spec, places = subject.spec, subject.sums_spec, subject.written(inputs)
    numbers = {i for i, t in enumerate(args) if t.ndim == 0}

    def program(*given: Tensor) -> tuple[Tensor, ...]:
        flat = [t.view(()) if i in numbers else t for i, t in enumerate(given)]
        state = pytree.tree_unflatten(flat[:first], spec)
        shard, moved = inputs.read(flat[n:end])
        metrics: dict[str, Tensor] = {}
        if sums_spec is not None:
            sums = pytree.tree_unflatten(flat[first:n], sums_spec)
            new = [*pytree.tree_leaves(own.measure(state, sums, shard)), *moved]
        else:
            tree, metrics = own.train(state, shard)
            leaves, new_spec = pytree.tree_flatten(tree)
            new = [*leaves, *moved]
            if new_spec != spec:
                raise StateError("a step must return a State of the structure that it was given")
        if names is not None:
            names[:] = metrics
        storages = {t.untyped_storage()._cdata for t in flat[:n]}
        results = [_read_early(t, storages, state["step"]) for t in metrics.values()]
        changed = [(i, value) for i, value in zip(places, new, strict=True) if value is not flat[i]]
        write = traced_once(_write)
        for i, value in [(i, _read_early(value, storages, state["step"])) for i, value in changed]:
            write(given[i], value)
        return tuple(t.contiguous().clone() for t in results)

    return program


def _write(old: Tensor, value: Tensor) -> None:
    old.copy_(value if value.shape == old.shape else value.view(1))


def _read_early(value: Tensor, storages: set[int], step: Tensor) -> Tensor:
    """Read a new value that is an old leaf of another name, such as a target network's copy of weights, before that
    leaf is overwritten.

    A clone would not do: Inductor removes it, and reads the new leaf.
    """
    if value.untyped_storage()._cdata not in storages:
        return value
    return torch.where(step >= 0, value, value.new_zeros(()))
