"""Running stages: in order, and through a backward, which makes a function of the stages before it and differentiates
that."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import torch
from attrs import frozen
from torch import Tensor
from torch.utils import _pytree as pytree

from pipeline import random
from pipeline.backward import Gradients
from pipeline.errors import StageError, StateError
from pipeline.schedules import Schedule
from pipeline.stage import Stage, Tree
from pipeline.state import tree_map

Written: TypeAlias = tuple[dict[str, Any], dict[str, Tree], dict[str, Tree]]
"""What stages wrote, the new memory of those that remember, and the sums of those that are metrics."""


Autocast: TypeAlias = Callable[[], AbstractContextManager[Any]]


def through(
    stages: Iterable[Stage], values: Mapping[str, Any], hyper: Mapping[str, Any], memory: Mapping[str, Tree]
) -> Written:
    values = dict(values)
    written: dict[str, Any] = {}
    remembered: dict[str, Tree] = {}
    sums: dict[str, Tree] = {}
    for s in stages:
        if isinstance(s, Gradients):
            values.setdefault(f"{s.of}.weight", _batch_size(values))
        new, kept = s.run(values, hyper.get(s.name, {}), memory.get(s.name))
        values.update(new)
        written.update(new)
        if s.remembers:
            (sums if s.finish is not None else remembered)[s.name] = kept
    return written, remembered, sums


def _batch_size(values: Mapping[str, Any]) -> Tensor:
    """The weight of a loss that states none: the number of samples. What State keeps is dicts and 0-d, so the first
    tensor with a dimension is the batch's."""
    first = next(v for v in values.values() if isinstance(v, Tensor) and v.ndim > 0)
    return torch.full((), first.shape[0], dtype=torch.float64, device=first.device)


@frozen(eq=False)
class Segment:
    """Stages that run one after the other, and the backward that ends them: a step is a few of these, in order."""

    stages: tuple[Stage, ...]
    gradients: Gradients | None = None
    """Takes the gradients of what the stages compute; none after the last backward."""

    def run(
        self, values: Mapping[str, Any], hyper: Mapping[str, Any], memory: Mapping[str, Tree],
        batch: Sequence[str], autocast: Autocast = nullcontext,
    ) -> Written:  # fmt: skip
        """What the stages and the backward write. `batch` names the values of which a backward that accumulates takes
        parts."""
        if self.gradients is None:
            return through(self.stages, values, hyper, memory)
        count = self.gradients.accumulate
        if count > 1:  # else no size is read, which may be a symbol
            count = max(min(count, *[values[n].shape[0] for n in batch]), 1)
        if count == 1:
            return _differentiated(self.gradients, self.stages, values, hyper, memory, autocast)
        return self._accumulated(self.gradients, values, hyper, memory, batch, count, autocast)

    def _accumulated(
        self, g: Gradients, values: Mapping[str, Any], hyper: Mapping[str, Any], memory: Mapping[str, Tree],
        batch: Sequence[str], count: int, autocast: Autocast,
    ) -> Written:  # fmt: skip
        """The same in `count` parts, one after the other: each goes on with what the one before remembered and kept."""
        size = min(values[n].shape[0] for n in batch)
        parts = [values[n].tensor_split(count) for n in batch]
        values, memory = dict(values), dict(memory)
        total: Tree = None
        all_sums: dict[str, Tree] = {}
        history: list[dict[str, Any]] = []
        for i in range(count):
            values |= {n: part[i] for n, part in zip(batch, parts, strict=True)}
            if i:
                values["seed"] = random.key(values["seed"], i)  # other dropout for each part
            written, remembered, sums = _differentiated(g, self.stages, values, hyper, memory, autocast)
            weighted = tree_map(lambda x, w=sums[g.name]["weight"]: x * w, written.pop(g.grads))
            total = weighted if total is None else tree_map(torch.add, total, weighted)
            all_sums = sums if not all_sums else tree_map(torch.add, all_sums, sums)
            memory |= remembered
            values |= {k: v for k, v in written.items() if k in values and k not in batch}
            history.append(written)
        whole = all_sums[g.name]["weight"]
        # Where nothing counted, sums of zeros stay zeros.
        divisor = torch.where(whole > 0, whole, 1.0)
        grads = tree_map(lambda x: x / divisor, total)
        remembered = {s.name: memory[s.name] for s in self.stages if s.remembers and s.finish is None}
        return {**_joined(history, size), g.of: all_sums[g.name]["sum"] / divisor, g.grads: grads}, remembered, all_sums


def segments(stages: Iterable[Stage]) -> tuple[Segment, ...]:
    """Stages in order, parted after each backward."""
    made: list[Segment] = []
    begun: list[Stage] = []
    for s in stages:
        if isinstance(s, Gradients):
            made.append(Segment(tuple(begun), s))
            begun = []
        else:
            begun.append(s)
    return (*made, Segment(tuple(begun)))


def _differentiated(g: Gradients, stages: Sequence[Stage], values: Mapping[str, Any], hyper: Mapping[str, Any],
                    memory: Mapping[str, Tree], autocast: Autocast) -> Written:  # fmt: skip
    """What `stages` write, with the gradients of what they compute."""
    rest: list[Any] = []

    def objective(params: Tree) -> tuple[Tensor, Tree]:
        with autocast():  # not around the backward, which computes in the forward's dtypes
            written, remembered, sums = through([*stages, g], {**values, g.wrt: params}, hyper, memory)
        if not isinstance(written[g.of], Tensor) or written[g.of].ndim > 0:
            [writer] = [s.name for s in stages if g.of in s.writes][-1:]
            raise StageError(writer, f"must return {g.of!r} as one number, a 0-d tensor, to be differentiated")
        leaves, spec = pytree.tree_flatten((written, remembered, sums))
        # Only tensors may leave a transformed function beside the loss; the rest is constant, and goes around it.
        rest[:] = [spec, [None if isinstance(x, Tensor) else x for x in leaves]]
        return written[g.of], {i: x for i, x in enumerate(leaves) if isinstance(x, Tensor)}

    grads, tensors = g.differentiate(objective, values[g.wrt])
    spec, leaves = rest
    written, remembered, sums = pytree.tree_unflatten([tensors.get(i, x) for i, x in enumerate(leaves)], spec)
    return {**written, g.grads: grads}, remembered, sums


def _joined(history: list[dict[str, Any]], size: int) -> dict[str, Any]:
    """What the parts wrote, as the whole batch would have: per-sample values one after the other, others as they were
    last."""
    joined = dict(history[-1])
    for name, last in joined.items():
        parts = [written[name] for written in history]
        if isinstance(last, Tensor) and last.ndim > 0 and sum(p.shape[0] for p in parts) == size:
            joined[name] = torch.cat(parts)
        elif name.endswith(".weight"):
            joined[name] = sum(parts)
    return joined


def hyper_numbers(s: Stage, steps: int | None) -> Iterable[tuple[str, float]]:
    """What State holds for a stage's hyperparameters, a schedule's own numbers among them."""
    for name, value in s.hyper.items():
        full = f"{s.name}.{name}"
        if not isinstance(value, Schedule):
            yield full, float(value)
            continue
        yield full, float(value.base)
        for k, number in value.numbers.items():
            if math.isnan(number):
                if steps is None:
                    raise StateError(
                        f"the schedule of {full} needs the run's length: pass {k}= to it, or init(steps=...)"
                    )
                number = float(steps)
            yield f"{full}.{k}", number


def hyper_value(full: str, number: Any, tree: Mapping[str, Tree]) -> Tensor:
    """A hyperparameter at this step: 0-d float64."""
    hyper = tree["hyper"]
    value: Tensor = hyper[full]
    if isinstance(number, Schedule):
        value = value * number.factor(tree["step"], **{k: hyper[f"{full}.{k}"] for k in number.numbers})
    return value


def first_memory(s: Stage, tree: Mapping[str, Tree]) -> Tree:
    """A stage's first memory."""
    assert s.init is not None
    read = {p: tree[s.names.get(p, p)] for p in inspect.signature(s.init).parameters}
    return s.init(**read)
