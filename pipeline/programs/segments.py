"""Segments: the stages of a train step, split after each backward, which differentiates the stages of its segment."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeAlias

import torch
from attrs import frozen
from torch import Tensor
from torch.utils import _pytree as pytree

from pipeline import mesh
from pipeline.backward import Gradients
from pipeline.backward.accumulate import Written, in_parts
from pipeline.backward.per_example import each_sample
from pipeline.element import GIVEN
from pipeline.errors import StageError
from pipeline.joint import by_model, joined
from pipeline.stage import Stage
from pipeline.state import Batch, samples
from pipeline.tree import Tree, parted, tree_map

Autocast: TypeAlias = Callable[[], AbstractContextManager[Any]]
Hyper: TypeAlias = Mapping[str, Mapping[str, Tensor]]
"""Hyperparameters of each stage."""


def run_stage(s: Stage, values: Mapping[str, Any], hyper: Hyper, memory: Mapping[str, Tree]) -> tuple[Any, Tree]:
    """Outputs of one stage, and its new memory or its sums."""
    return s.run(values, hyper.get(s.name, {}), memory.get(s.name))


def run_stages(
    stages: Iterable[Stage], values: Mapping[str, Any], hyper: Hyper, memory: Mapping[str, Tree],
    weight: Callable[[], Tensor] | None = None, run: Callable[..., tuple[Any, Tree]] = run_stage,
) -> Written:  # fmt: skip
    """Outputs, new memories and sums of stages, run in order. `weight` gives the weight of a loss that states none."""
    values = dict(values)
    written: dict[str, Any] = {}
    remembered: dict[str, Tree] = {}
    sums: dict[str, Tree] = {}
    for s in stages:
        if isinstance(s, Gradients) and weight is not None and f"{s.of}.weight" not in values:
            values[f"{s.of}.weight"] = weight()
        new, kept = run(s, values, hyper, memory)
        values.update(new)
        written.update(new)
        if s.remembers:
            (sums if s.finish is not None else remembered)[s.name] = kept
    return written, remembered, sums


def batch_weight(batch: Batch, by: str | None, like: Tensor) -> Callable[[], Tensor]:
    """Number of samples of a batch, 0-d float64, on the device of `like`."""
    return lambda: torch.full((), samples(batch, by), dtype=torch.float64, device=like.device)


@frozen(eq=False)
class Segment:
    """Consecutive stages, and the backward that ends them."""

    stages: tuple[Stage, ...]
    gradients: Gradients | None = None
    """None after the last backward."""
    kept: frozenset[str] = frozenset()
    """Names in State created by the stages of the whole pipeline."""
    wanted: frozenset[str] = frozenset()
    """Names that later stages read."""

    @property
    def all(self) -> tuple[Stage, ...]:
        return self.stages if self.gradients is None else (*self.stages, self.gradients)

    def run(
        self, values: Mapping[str, Any], hyper: Hyper, memory: Mapping[str, Tree], batch: Batch,
        by: str | None = None, autocast: Autocast = nullcontext,
    ) -> Written:  # fmt: skip
        """Outputs of the stages and the backward. A backward that accumulates splits the values of `batch`; `by` names
        the value that gives its number of samples."""
        g = self.gradients
        if g is None:
            return run_stages(self.stages, values, hyper, memory)
        if g.accumulate > 1 and (size := samples(batch, by)) > 1:
            part = partial(_differentiated, autocast=autocast)
            return in_parts(g, self.stages, part, values, hyper, memory, batch, size, self.wanted)
        if g.per_example:
            weight = batch_weight({"sample": values["step"]}, None, values["step"])  # a 0-d value counts as one sample
            one = partial(_differentiated, g, self.stages, hyper=hyper, memory=memory, weight=weight, autocast=autocast)
            return each_sample(g, self.stages, one, values, batch, samples(batch, by), self.kept)
        weight = batch_weight(batch, by, values["step"])
        return _differentiated(g, self.stages, values, hyper, memory, weight, autocast)


def segments(stages: Iterable[Stage]) -> tuple[Segment, ...]:
    """Split stages after each backward, and after updates of the parameters that the next backward differentiates."""
    stages, begin = tuple(stages), 0
    kept = frozenset(name for s in stages for name in s.keeps)
    split: list[Segment] = []
    grads: set[str] = set()
    for end, s in enumerate(stages):
        if isinstance(s, Gradients):
            begun = stages[begin:end]
            if (i := begin + max(_settled(begun, s), _updated(begun, s, grads, kept))) > begin:
                split.append(Segment(stages[begin:i]))
            begin, grads = end + 1, grads | {s.grads}
            wanted = frozenset(name for t in stages[begin:] for name in (*t.reads, *t.optional))
            split.append(Segment(stages[i:end], s, kept, wanted))
    return (*split, Segment(stages[begin:]))


def _settled(stages: Sequence[Stage], g: Gradients) -> int:
    """Index after the last update of parameters that the loss depends on.

    The differentiated stages begin there, so that no gradient goes through that update.
    """
    needed = {g.of}
    for i in range(len(stages), 0, -1):
        s = stages[i - 1]
        if needed & {*s.writes}:
            if needed & {*s.writes} & {*g.wrt}:
                return i
            needed = (needed - {*s.writes}) | {*s.reads, *s.optional}
    return 0


def _updated(stages: Sequence[Stage], g: Gradients, grads: Collection[str], kept: Collection[str]) -> int:
    """Index after the updates by earlier gradients, and other stages that change State or a memory (averages), if
    they precede the models, so that they run once, and not for each part of a batch."""
    models = [i for i, s in enumerate(stages) if {*s.reads} & {*g.wrt}]
    known, once = {*kept, *grads, *GIVEN}, 0  # what does not depend on the batch
    for i, s in enumerate(stages[: min(models, default=0)]):
        if {*s.reads, *s.optional} <= known:
            known |= {*s.writes}
            once = i + 1 if {*s.writes} & {*kept} or (s.remembers and s.finish is None) else once
        once = i + 1 if {*s.reads} & {*grads} else once
    return once


def _differentiated(
    g: Gradients, stages: Sequence[Stage], values: Mapping[str, Any], hyper: Mapping[str, Any],
    memory: Mapping[str, Tree], weight: Callable[[], Tensor], autocast: Autocast,
) -> Written:  # fmt: skip
    """Outputs of `stages`, and the gradients of their loss."""
    back: list[Callable[[Sequence[Tensor]], Written]] = []
    scale = values.get(f"{g.of}.scale")
    models = {model: values[model] for model in g.wrt}

    def objective(params: dict[str, Tensor]) -> tuple[Tensor, Tree]:
        with autocast():  # not around the backward, which computes in the dtypes of the forward
            given = {**values, **by_model(params, models)}
            written, remembered, sums = run_stages([*stages, g], given, hyper, memory, weight)
        if not isinstance(written[g.of], Tensor) or written[g.of].ndim > 0:
            [writer] = [s.name for s in stages if g.of in s.writes][-1:]
            raise StageError(writer, f"must return {g.of!r} as one number, a 0-d tensor, to be differentiated")
        # Only tensors may leave a transformed function beside the loss; constants go around it.
        tensors, rebuild = parted((written, remembered, sums))
        back[:] = [rebuild]
        value = written[g.of]
        if mesh.here():
            # On a mesh BatchNorm has gradients through the losses of other processes, weighted by their samples.
            count = sums[g.name]["weight"].detach()
            value = torch.where(count > 0, value, 0.0) * count.to(value.dtype)  # a mean with weight 0 may be NaN
        return (value if scale is None else value * scale), tensors

    read = pytree.tree_leaves([values, hyper, memory])
    alone = not any(isinstance(x, Tensor) and x.requires_grad for x in read)
    grads, tensors = g.differentiate(objective, joined(models), hyper.get(g.name, {}), alone)
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
        total = sums[g.name]["weight"]
        grads = tree_map(lambda x: (x / torch.where(total > 0, total, 1.0)).to(x.dtype), grads)
    return {**written, g.grads: grads}, remembered, sums


def first_memory(s: Stage, tree: Mapping[str, Tree]) -> Tree:
    """The first memory of a stage."""
    assert s.init is not None
    read = {p: tree[s.names.get(p, p)] for p in inspect.signature(s.init).parameters}
    return s.init(**read)
