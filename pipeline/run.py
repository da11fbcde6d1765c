"""Running stages: in order, and through a backward, which makes a function of the stages before it and differentiates
that."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeAlias

import torch
from attrs import frozen
from torch import Tensor

from pipeline import mesh
from pipeline.backward import Gradients
from pipeline.backward.accumulate import Written, in_parts
from pipeline.backward.per_example import each_sample
from pipeline.errors import StageError
from pipeline.joint import by_model, joined
from pipeline.mesh import Rows
from pipeline.sharding import Sharding
from pipeline.stage import Stage
from pipeline.state import Batch, samples
from pipeline.tree import Tree, parted, tree_map

Autocast: TypeAlias = Callable[[], AbstractContextManager[Any]]


def through(
    stages: Iterable[Stage], values: Mapping[str, Any], hyper: Mapping[str, Any], memory: Mapping[str, Tree],
    weigh: Callable[[], Tensor] | None = None, on: Sharding | None = None,
) -> Written:  # fmt: skip
    """What stages write, one after the other. `weigh` gives the weight of a loss that states none; `on` a mesh, they
    are given whole weights."""
    values = dict(values)
    written: dict[str, Any] = {}
    remembered: dict[str, Tree] = {}
    sums: dict[str, Tree] = {}
    for s in stages:
        if isinstance(s, Gradients) and weigh is not None and f"{s.of}.weight" not in values:
            values[f"{s.of}.weight"] = weigh()
        given = values if on is None else on.given(s, values)
        new, kept = s.run(given, hyper.get(s.name, {}), memory.get(s.name))
        new = new if on is None else on.kept(s, new)
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
    wanted: frozenset[str] = frozenset()
    """What stages behind it read."""

    @property
    def all(self) -> tuple[Stage, ...]:
        return self.stages if self.gradients is None else (*self.stages, self.gradients)

    def run(
        self, values: Mapping[str, Any], hyper: Mapping[str, Any], memory: Mapping[str, Tree],
        batch: Batch, by: str | None = None, autocast: Autocast = nullcontext, on: Sharding | None = None,
        rows: Rows | None = None,
    ) -> Written:  # fmt: skip
        """What the stages and the backward write. `batch` has the values of which a backward that accumulates takes
        parts, and `by` the name of the one that says how many samples they are. `on` a mesh, they are those of `rows`,
        and what is written is of the whole batch."""
        g = self.gradients
        if g is None:
            with on.here() if on is not None else nullcontext():
                return through(self.stages, values, hyper, memory, on=on)
        if on is not None and rows is not None:
            with on.here(rows):
                return on.reduced(g, rows, self.run(on.given(None, values), hyper, memory, batch, by, autocast))
        if g.accumulate > 1 and (size := samples(batch, by)) > 1:
            part = partial(_differentiated, autocast=autocast)
            return in_parts(g, self.stages, part, values, hyper, memory, batch, size, self.wanted)
        if g.per_example:
            weigh = counted({"sample": values["step"]}, None, values["step"])  # a number alone: it is one sample
            one = partial(_differentiated, g, self.stages, hyper=hyper, memory=memory, weigh=weigh, autocast=autocast)
            return each_sample(g, self.stages, one, values, batch, samples(batch, by), self.kept)
        weigh = counted(batch, by, values["step"])
        return _differentiated(g, self.stages, values, hyper, memory, weigh, autocast)


def segments(stages: Iterable[Stage]) -> tuple[Segment, ...]:
    """Stages in order, parted after each backward, and after what changes the parameters that the next is of."""
    stages, begin = tuple(stages), 0
    kept = frozenset(name for s in stages for name in s.keeps)
    made: list[Segment] = []
    grads: set[str] = set()
    for end, s in enumerate(stages):
        if isinstance(s, Gradients):
            begun = stages[begin:end]
            if (i := begin + max(_settled(begun, s), _updated(begun, s, grads))) > begin:
                made.append(Segment(stages[begin:i]))
            begin, grads = end + 1, grads | {s.grads}
            wanted = frozenset(name for t in stages[begin:] for name in (*t.reads, *t.optional))
            made.append(Segment(stages[i:end], s, kept, wanted))
    return (*made, Segment(stages[begin:]))


def _settled(stages: Sequence[Stage], g: Gradients) -> int:
    """Where the parameters are those that the loss is computed with: after the last update of them before that.

    What is differentiated begins there: the gradient is not one through the update, to what they were before it.
    """
    needed = {g.of}
    for i in range(len(stages), 0, -1):
        s = stages[i - 1]
        if needed & {*s.writes}:
            if needed & {*s.writes} & {*g.wrt}:
                return i
            needed = (needed - {*s.writes}) | {*s.reads, *s.optional}
    return 0


def _updated(stages: Sequence[Stage], g: Gradients, grads: Collection[str]) -> int:
    """Where the updates of the backward before end, if what is differentiated begins after them: they are done once,
    and not in each part of a batch."""
    models = [i for i, s in enumerate(stages) if {*s.reads} & {*g.wrt}]
    return max((i + 1 for i, s in enumerate(stages) if {*s.reads} & {*grads} and i < min(models, default=0)), default=0)


def _differentiated(
    g: Gradients, stages: Sequence[Stage], values: Mapping[str, Any], hyper: Mapping[str, Any],
    memory: Mapping[str, Tree], weigh: Callable[[], Tensor], autocast: Autocast,
) -> Written:  # fmt: skip
    """What `stages` write, with the gradients of what they compute."""
    back: list[Callable[[Sequence[Tensor]], Written]] = []
    scale = values.get(f"{g.of}.scale")
    models = {model: values[model] for model in g.wrt}

    def objective(params: dict[str, Tensor]) -> tuple[Tensor, Tree]:
        with autocast():  # not around the backward, which computes in the forward's dtypes
            given = {**values, **by_model(params, models)}
            written, remembered, sums = through([*stages, g], given, hyper, memory, weigh)
        if not isinstance(written[g.of], Tensor) or written[g.of].ndim > 0:
            [writer] = [s.name for s in stages if g.of in s.writes][-1:]
            raise StageError(writer, f"must return {g.of!r} as one number, a 0-d tensor, to be differentiated")
        # Only tensors may leave a transformed function beside the loss; the rest is constant, and goes around it.
        tensors, whole = parted((written, remembered, sums))
        back[:] = [whole]
        value = written[g.of]
        if mesh.here():
            # BatchNorm on a mesh has gradients through other processes' losses, which count by their weights.
            value = value * sums[g.name]["weight"].detach().to(value.dtype)
        return (value if scale is None else value * scale), tensors

    grads, tensors = g.differentiate(objective, joined(models), hyper.get(g.name, {}))
    if not grads:
        raise StageError(
            g.name,
            f"finds no parameter of {', '.join(g.wrt)} that {g.of!r} depends on: compute it from what models give, "
            "without detach(), no_grad() or argmax(), and let one have parameters with requires_grad",
        )
    written, remembered, sums = back[0](tensors)
    if scale is not None:
        grads = tree_map(lambda x: (x / scale).to(x.dtype), grads)
    if mesh.here():
        weight = sums[g.name]["weight"]
        grads = tree_map(lambda x: (x / torch.where(weight > 0, weight, 1.0)).to(x.dtype), grads)
    return {**written, g.grads: grads}, remembered, sums


def first_memory(s: Stage, tree: Mapping[str, Tree]) -> Tree:
    """A stage's first memory."""
    assert s.init is not None
    read = {p: tree[s.names.get(p, p)] for p in inspect.signature(s.init).parameters}
    return s.init(**read)
