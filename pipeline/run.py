"""Running stages: in order, and through a backward, which makes a function of the stages before it and differentiates
that."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeAlias

import torch
from attrs import frozen
from torch import Tensor
from torch.utils import _pytree as pytree

from pipeline import random
from pipeline.backward import Gradients
from pipeline.backward.per_example import each_sample
from pipeline.errors import StageError
from pipeline.stage import Stage
from pipeline.state import Batch, samples
from pipeline.tree import Tree, tree_map

Written: TypeAlias = tuple[dict[str, Any], dict[str, Tree], dict[str, Tree]]
"""What stages wrote, the new memory of those that remember, and the sums of those that are metrics."""


Autocast: TypeAlias = Callable[[], AbstractContextManager[Any]]


def through(
    stages: Iterable[Stage], values: Mapping[str, Any], hyper: Mapping[str, Any], memory: Mapping[str, Tree],
    weigh: Callable[[], Tensor] | None = None,
) -> Written:  # fmt: skip
    """What stages write, one after the other. `weigh` gives the weight of a loss that states none."""
    values = dict(values)
    written: dict[str, Any] = {}
    remembered: dict[str, Tree] = {}
    sums: dict[str, Tree] = {}
    for s in stages:
        if isinstance(s, Gradients) and weigh is not None and f"{s.of}.weight" not in values:
            values[f"{s.of}.weight"] = weigh()
        new, kept = s.run(values, hyper.get(s.name, {}), memory.get(s.name))
        values.update(new)
        written.update(new)
        if s.remembers:
            (sums if s.finish is not None else remembered)[s.name] = kept
    return written, remembered, sums


def counted(batch: Batch, by: str | None, like: Tensor) -> Callable[[], Tensor]:
    """The number of samples, on the device of a tensor."""
    return lambda: torch.full((), samples(batch, by), dtype=torch.float64, device=like.device)


@frozen(eq=False)
class Segment:
    """Stages that run one after the other, and the backward that ends them: a step is a few of these, in order."""

    stages: tuple[Stage, ...]
    gradients: Gradients | None = None
    """Takes the gradients of what the stages compute; none after the last backward."""
    kept: frozenset[str] = frozenset()
    """The names of State that the stages of the whole pipeline bring in."""

    def run(
        self, values: Mapping[str, Any], hyper: Mapping[str, Any], memory: Mapping[str, Tree],
        batch: Batch, by: str | None = None, autocast: Autocast = nullcontext,
    ) -> Written:  # fmt: skip
        """What the stages and the backward write. `batch` has the values of which a backward that accumulates takes
        parts, and `by` the name of the one that says how many samples they are."""
        g = self.gradients
        if g is None:
            return through(self.stages, values, hyper, memory)
        if g.accumulate > 1 and (count := min(g.accumulate, samples(batch, by))) > 1:
            return self._accumulated(g, values, hyper, memory, batch, by, count, autocast)
        if g.per_example:
            weigh = counted({"sample": values["step"]}, None, values["step"])  # a number alone: it is one sample
            one = partial(_differentiated, g, self.stages, hyper=hyper, memory=memory, weigh=weigh, autocast=autocast)
            return each_sample(g, self.stages, one, values, batch, samples(batch, by), self.kept)
        weigh = counted(batch, by, values["step"])
        return _differentiated(g, self.stages, values, hyper, memory, weigh, autocast)

    def _accumulated(
        self, g: Gradients, values: Mapping[str, Any], hyper: Mapping[str, Any], memory: Mapping[str, Tree],
        batch: Batch, by: str | None, count: int, autocast: Autocast,
    ) -> Written:  # fmt: skip
        """The same in `count` parts, one after the other: each goes on with what the one before remembered and kept."""
        size = samples(batch, by)
        leaves, spec = pytree.tree_flatten(dict(batch))
        split = [x.tensor_split(count) if _per_sample(x, size) else [x] * count for x in leaves]
        parts = [pytree.tree_unflatten(list(some), spec) for some in zip(*split, strict=True)]
        values, memory = dict(values), dict(memory)
        total: Tree = None
        all_sums: dict[str, Tree] = {}
        history: list[dict[str, Any]] = []
        for i in range(count):
            values |= parts[i]
            if i:
                values["seed"] = random.key(values["seed"], i)  # other dropout for each part
            weigh = counted(parts[i], by, values["step"])
            written, remembered, sums = _differentiated(g, self.stages, values, hyper, memory, weigh, autocast)
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
    """Stages in order, parted after each backward, and after what changes the parameters that the next is of."""
    stages = tuple(stages)
    kept = frozenset(name for s in stages for name in s.keeps)
    made: list[Segment] = []
    begun: list[Stage] = []
    for s in stages:
        if isinstance(s, Gradients):
            if (i := _settled(begun, s)) > 0:
                made.append(Segment(tuple(begun[:i])))
            made.append(Segment(tuple(begun[i:]), s, kept))
            begun = []
        else:
            begun.append(s)
    return (*made, Segment(tuple(begun)))


def _settled(stages: Sequence[Stage], g: Gradients) -> int:
    """Where the parameters are those that the loss is computed with: after the last update of them before that.

    What is differentiated begins there: the gradient is not one through the update, to what they were before it.
    """
    needed = {g.of}
    for i in range(len(stages), 0, -1):
        s = stages[i - 1]
        if needed & {*s.writes}:
            if g.wrt in needed and g.wrt in s.writes:
                return i
            needed = (needed - {*s.writes}) | {*s.reads, *s.optional}
    return 0


def _differentiated(
    g: Gradients, stages: Sequence[Stage], values: Mapping[str, Any], hyper: Mapping[str, Any],
    memory: Mapping[str, Tree], weigh: Callable[[], Tensor], autocast: Autocast,
) -> Written:  # fmt: skip
    """What `stages` write, with the gradients of what they compute."""
    rest: list[Any] = []

    def objective(params: Tree) -> tuple[Tensor, Tree]:
        with autocast():  # not around the backward, which computes in the forward's dtypes
            written, remembered, sums = through([*stages, g], {**values, g.wrt: params}, hyper, memory, weigh)
        if not isinstance(written[g.of], Tensor) or written[g.of].ndim > 0:
            [writer] = [s.name for s in stages if g.of in s.writes][-1:]
            raise StageError(writer, f"must return {g.of!r} as one number, a 0-d tensor, to be differentiated")
        leaves, spec = pytree.tree_flatten((written, remembered, sums))
        # Only tensors may leave a transformed function beside the loss; the rest is constant, and goes around it.
        rest[:] = [spec, [None if isinstance(x, Tensor) else x for x in leaves]]
        return written[g.of], {i: x for i, x in enumerate(leaves) if isinstance(x, Tensor)}

    grads, tensors = g.differentiate(objective, values[g.wrt], hyper.get(g.name, {}))
    spec, leaves = rest
    written, remembered, sums = pytree.tree_unflatten([tensors.get(i, x) for i, x in enumerate(leaves)], spec)
    return {**written, g.grads: grads}, remembered, sums


def _joined(history: list[dict[str, Any]], size: int) -> dict[str, Any]:
    """What the parts wrote, as the whole batch would have: per-sample values one after the other, others as they were
    last."""

    def join(*parts: Any) -> Any:
        whole = isinstance(parts[0], Tensor) and parts[0].ndim > 0 and sum(p.shape[0] for p in parts) == size
        return torch.cat(parts) if whole else parts[-1]

    parts = {name: [written[name] for written in history] for name in history[-1]}
    return {
        name: sum(values) if name.endswith(".weight") else tree_map(join, *values) for name, values in parts.items()
    }


def _per_sample(x: Any, size: int) -> bool:
    return isinstance(x, Tensor) and x.ndim > 0 and x.shape[0] == size


def first_memory(s: Stage, tree: Mapping[str, Tree]) -> Tree:
    """A stage's first memory."""
    assert s.init is not None
    read = {p: tree[s.names.get(p, p)] for p in inspect.signature(s.init).parameters}
    return s.init(**read)
