"""Sharding: a pipeline's step on a mesh. Which names of State are in shards, how a stage sees them, and what is summed
over the processes after a backward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor
from torch.utils import _pytree as pytree

from pipeline import mesh
from pipeline.backward import Gradients
from pipeline.backward.accumulate import Written
from pipeline.errors import WiringError
from pipeline.forward import Model
from pipeline.joint import joined
from pipeline.mesh import Mesh, Rows
from pipeline.stage import Part, Stage
from pipeline.tree import Tree, paths


@frozen(eq=False)
class Sharding:
    """What a mesh makes of a pipeline's stages."""

    mesh: Mesh
    stages: tuple[Stage, ...]
    """Those after place."""
    models: Mapping[str, Model]
    """By the name of the weights that are in shards: those that are trained, and averages of them."""
    of: Mapping[str, tuple[str, ...]]
    """Gradients in shards -> the weights that they are of."""
    local: frozenset[str]
    """The metrics after the last backward that are of a process's own samples."""
    _seen: dict[str, tuple[Any, Tree]] = field(factory=dict, init=False)
    """Whole tensors that were put together, with what they were made of."""

    # -- State

    def shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """The shapes of whole weights."""
        modules = {k: self.models[k].module.skeleton().module for k in self.of.get(name, (name,))}
        return joined(
            {m: {k: tuple(p.shape) for k, p in of.named_parameters() if p.requires_grad} for m, of in modules.items()}
        )

    def part(self, tree: Mapping[str, Tree]) -> dict[str, Tree]:
        """A tree of whole tensors with this process's rows of those that are in shards."""
        if self.mesh.shard == 1:
            return dict(tree)
        return {k: {n: self.mesh.part(t) for n, t in v.items()} if k in self.models else v for k, v in tree.items()}

    def leaves(self, tree: Mapping[str, Tree]) -> dict[str, tuple[int, ...]]:
        """The leaves of a State's tree that are in shards, by their paths, and the shapes of the whole ones."""
        found: dict[str, tuple[int, ...]] = {}
        if self.mesh.shard == 1:
            return found
        for name in self.models:
            found |= {f"{name}/{k}": shape for k, shape in self.shapes(name).items() if shape}
        for s in self.stages:
            weights = [v for v in (*s.values_read, *s.writes) if v in self.models]
            if not s.remembers or not s.sharded or not weights or s.finish is not None:
                continue
            graded = [v for v in s.values_read if v in self.of]
            shapes = self.shapes([*graded, *weights][0])
            for path, leaf in paths(tree["memory"].get(s.name)):
                shape = shapes.get(path.rpartition("/")[2])
                if not shape or not isinstance(leaf, Tensor):
                    continue
                own = (-(-shape[0] // self.mesh.shard), *shape[1:])
                if tuple(leaf.shape[: len(own)]) == own:  # a complex number is two
                    found[f"memory/{s.name}/{path}"] = (shape[0], *leaf.shape[1:])
        return found

    def whole(self, tree: dict[str, Tree]) -> dict[str, Tree]:
        """A State's tree of whole tensors, from the rows that all processes have."""
        shapes = self.leaves(tree)
        at = paths(tree)
        made = self.mesh.whole({k: t for k, t in at if k in shapes}, shapes)
        whole: dict[str, Tree] = pytree.tree_unflatten([made.get(k, t) for k, t in at], pytree.tree_structure(tree))
        return whole

    # -- stages

    def here(self, rows: Rows | None = None) -> AbstractContextManager[None]:
        """Where stages run: on a part of a batch, or after a backward."""
        return mesh.at(self.mesh, rows)

    def given(self, s: Stage | None, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """The values as a stage takes them: whole, unless it takes shards."""
        if self.mesh.shard == 1 or (s is not None and s.sharded):
            return values
        read = {*values} if s is None else {*s.reads, *s.optional}
        # In the order of values, which is that of all processes; a set's is not.
        given = {k: self._whole(k, v) if k in read and self._parted(k) else v for k, v in values.items()}
        if "before" in read and "before" in values:
            before = values["before"]
            given["before"] = {k: self._whole(k, v) if self._parted(k) else v for k, v in before.items()}
        return given

    def kept(self, s: Stage, written: dict[str, Any]) -> dict[str, Any]:
        """What a stage wrote, as State has it."""
        if self.mesh.shard == 1 or s.sharded:
            return written
        return {k: {n: self.mesh.part(t) for n, t in v.items()} if self._parted(k) else v for k, v in written.items()}

    def forget(self) -> None:
        """Let go of what was put together in a step."""
        self._seen.clear()

    def _parted(self, name: str) -> bool:
        return name in self.models or name in self.of

    def _whole(self, name: str, parts: Tree) -> Tree:
        for kept in self._seen.values():
            if kept[0] is parts:
                return kept[1]
        made = self.mesh.whole(parts, self.shapes(name))
        self._seen[name] = parts, made
        return made

    # -- sums over the processes

    def reduced(self, g: Gradients, rows: Rows, done: Written) -> Written:
        """What a backward and the stages before it wrote for a part of the batch, as for the whole of it."""
        written, remembered, sums = done
        numbers, spec = pytree.tree_flatten(sums)
        weight = sums[g.name]["weight"]
        if not rows.count:  # it ran on another's sample
            weight, numbers = weight * 0, [x * 0 for x in numbers]
        own = {k: (x * weight).to(x.dtype) for k, x in written[g.grads].items()}
        grads, numbers = self.mesh.reduced(own, numbers)
        sums = pytree.tree_unflatten(numbers, spec)
        whole = sums[g.name]["weight"]
        divisor = torch.where(whole > 0, whole, 1.0)
        mean = (sums[g.name]["sum"] / divisor).to(written[g.of].dtype)
        now = {**written, g.grads: {k: (x / divisor).to(x.dtype) for k, x in grads.items()}, g.of: mean}
        if f"{g.of}.weight" in written:
            now[f"{g.of}.weight"] = whole
        return now, remembered, sums

    def totals(self, rows: Rows, sums: dict[str, Tree]) -> dict[str, Tree]:
        """The sums of metrics that come after the last backward."""
        own = {k: v for k, v in sums.items() if k in self.local}
        return {**sums, **self.total(own, rows)} if own else sums

    def total(self, sums: dict[str, Tree], rows: Rows | None = None) -> dict[str, Tree]:
        """Sums over the samples of all processes."""
        numbers, spec = pytree.tree_flatten(sums)
        if rows is not None and not rows.count:
            numbers = [x * 0 for x in numbers]
        made: dict[str, Tree] = pytree.tree_unflatten(self.mesh.totals(numbers), spec)
        return made


def sharding(mesh: Mesh | None, parts: Sequence[Part], graph: Sequence[Stage]) -> Sharding | None:
    """How a pipeline's stages run on a mesh, if they do. Raises WiringError where they can't."""
    if mesh is None:
        return None
    models = {s.params: s for s in parts if isinstance(s, Model) and s.create is not None}
    trained = [g for g in graph if isinstance(g, Gradients)]
    for s in graph:
        why = None
        if isinstance(s, Gradients) and s.per_example:
            why = "takes a gradient for each sample, which place.mesh() does not do yet; use place.on()"
        elif isinstance(s, Gradients) and s.sums:
            why = "differentiates a sum over samples, which processes would each make; make it a mean"
        elif isinstance(s, Model) and any(s.module.carry.values()):
            why = "carries buffers, which place.mesh() does not do; use place.on()"
        if why is not None:
            raise WiringError(f"stage {s.name!r} {why}")
    held = {name: models[name] for g in trained for name in g.wrt if name in models}
    for s in graph:
        if s.view is not None and s.create is not None and s.average_of in held and s.sharded:
            held[s.writes[0]] = held[s.average_of]
    of = {g.grads: g.wrt for g in trained if {*g.wrt} <= {*held}}
    return Sharding(mesh, tuple(graph), held, of, _local(parts, graph, trained))


def _local(parts: Sequence[Part], graph: Sequence[Stage], trained: Sequence[Gradients]) -> frozenset[str]:
    """The metrics after the last backward that read what is of samples, or was made of that."""
    if not trained:
        return frozenset(s.name for s in graph if s.finish is not None)
    last = graph.index(trained[-1])
    same = {"step", "seed", "training", "hyper", "before", *(k for s in parts for k in s.keeps)}
    same |= {x for g in trained for x in (g.of, f"{g.of}.weight", g.grads)}
    found = set()
    for s in graph[last + 1 :]:
        own = {*s.reads, *s.optional} - same
        if s.finish is not None and own:
            found.add(s.name)
        if not own:
            same |= {*s.writes}
    return frozenset(found)
