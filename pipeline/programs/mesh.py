"""On a mesh: the program of one of several processes. The sharded names of State, their form in each stage, and the
sums over processes after a backward."""

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
from pipeline.description import Description
from pipeline.element import Element
from pipeline.errors import WiringError
from pipeline.forward import Model
from pipeline.joint import joined
from pipeline.mesh import Mesh, Rows, Shard
from pipeline.programs.loss_check import Difference
from pipeline.programs.program import Program, Sums
from pipeline.programs.segments import Hyper, Segment, run_stage, run_stages
from pipeline.programs.single import Single
from pipeline.stage import Stage
from pipeline.state import State
from pipeline.tree import Tree, paths, tree_map


@frozen(eq=False)
class Sharding:
    """Shards of the State of a pipeline."""

    mesh: Mesh
    stages: tuple[Stage, ...]
    """Stages after place."""
    models: Mapping[str, Model]
    """Models by the names of sharded weights: trained ones, and averages of them."""
    of: Mapping[str, tuple[str, ...]]
    """Sharded gradients -> their weights."""
    local: frozenset[str]
    """Metrics that depend on per-sample values, after the last backward."""
    _seen: dict[str, tuple[Any, Tree]] = field(factory=dict, init=False)
    """Gathered tensors of the step at hand, with their shards."""

    # -- State

    def shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """Shapes of gathered weights."""
        modules = {k: self.models[k].module.skeleton().module for k in self.of.get(name, (name,))}
        return joined(
            {m: {k: tuple(p.shape) for k, p in of.named_parameters() if p.requires_grad} for m, of in modules.items()}
        )

    def part(self, tree: Mapping[str, Tree]) -> dict[str, Tree]:
        """Shard a tree of whole tensors."""
        if self.mesh.shard == 1:
            return dict(tree)
        return {k: {n: self.mesh.part(t) for n, t in v.items()} if k in self.models else v for k, v in tree.items()}

    def leaves(self, tree: Mapping[str, Tree]) -> dict[str, tuple[int, ...]]:
        """Sharded leaves of a State's tree, by their paths, with their whole shapes."""
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
                if tuple(leaf.shape[: len(own)]) == own:  # a complex number counts as two
                    found[f"memory/{s.name}/{path}"] = (shape[0], *leaf.shape[1:])
        return found

    def whole(self, tree: dict[str, Tree]) -> dict[str, Tree]:
        """Gather a State's tree from the shards of all processes."""
        shapes = self.leaves(tree)
        at = paths(tree)
        made = self.mesh.whole({k: t for k, t in at if k in shapes}, shapes)
        whole: dict[str, Tree] = pytree.tree_unflatten([made.get(k, t) for k, t in at], pytree.tree_structure(tree))
        return whole

    # -- stages

    def here(self, rows: Rows | None = None) -> AbstractContextManager[None]:
        """Context in which stages run: on a part of a batch or, without rows, on values that are equal everywhere."""
        return mesh.at(self.mesh, rows)

    def given(self, s: Stage | None, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Values as a stage takes them: gathered, unless it takes shards."""
        if self.mesh.shard == 1 or (s is not None and s.sharded):
            return values
        read = {*values} if s is None else {*s.reads, *s.optional}
        # In the order of values, which is equal in all processes, unlike the order of a set.
        given = {k: self._whole(k, v) if k in read and self._parted(k) else v for k, v in values.items()}
        if "before" in read and "before" in values:
            before = values["before"]
            given["before"] = {k: self._whole(k, v) if self._parted(k) else v for k, v in before.items()}
        return given

    def kept(self, s: Stage, written: dict[str, Any]) -> dict[str, Any]:
        """Outputs of a stage, sharded like State."""
        if self.mesh.shard == 1 or s.sharded:
            return written
        return {k: {n: self.mesh.part(t) for n, t in v.items()} if self._parted(k) else v for k, v in written.items()}

    def forget(self) -> None:
        """Free the gathered tensors of a step."""
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
        """Outputs of a segment for the whole batch, from its outputs on each process's part."""
        written, remembered, sums = done
        numbers, spec = pytree.tree_flatten(sums)
        weight = sums[g.name]["weight"]
        if not rows.count:  # an empty rank computed sample 0
            weight, numbers = weight * 0, [x * 0 for x in numbers]
        own = {k: torch.where(weight > 0, x * weight, 0.0).to(x.dtype) for k, x in written[g.grads].items()}
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
        """Sums over processes, of the local metrics among these."""
        own = {k: v for k, v in sums.items() if k in self.local}
        return {**sums, **self.total(own, rows)} if own else sums

    def total(self, sums: dict[str, Tree], rows: Rows | None = None) -> dict[str, Tree]:
        """Sums over all processes."""
        numbers, spec = pytree.tree_flatten(sums)
        if rows is not None and not rows.count:
            numbers = [x * 0 for x in numbers]
        made: dict[str, Tree] = pytree.tree_unflatten(self.mesh.totals(numbers), spec)
        return made


@frozen(eq=False, slots=False)
class OnMesh(Single):
    """The program of one of several processes: each has a part of every batch, and a shard of the weights."""

    sharding: Sharding = field(kw_only=True)

    def of(self, stages: Sequence[Element]) -> OnMesh:
        return on_mesh(Single(Description(*stages)), self.sharding.mesh)

    def _local(self, tree: dict[str, Tree]) -> dict[str, Tree]:
        return self.sharding.part(tree)

    def train(self, tree: dict[str, Tree], shard: Shard) -> tuple[dict[str, Tree], dict[str, Tensor]]:
        try:
            return super().train(tree, shard)
        finally:
            self.sharding.forget()

    def run(
        self, segment: Segment, values: Mapping[str, Any], hyper: Hyper, memory: Mapping[str, Tree], shard: Shard
    ) -> Written:
        on, rows = self.sharding, shard.rows
        assert rows is not None
        if segment.gradients is None:
            with self.pipe.place.computing(), on.here():
                written, remembered, sums = run_stages(segment.stages, values, hyper, memory, run=self._stage)
                return written, remembered, on.totals(rows, sums)
        with self.pipe.place.computing(), on.here(rows):
            given = on.given(None, values), hyper, memory, shard.values
            local = segment.run(*given, self.pipe.samples, self.pipe.place.autocast)
            return on.reduced(segment.gradients, rows, local)

    def _stage(
        self, s: Stage, values: Mapping[str, Any], hyper: Hyper, memory: Mapping[str, Tree]
    ) -> tuple[dict[str, Any], Tree]:
        """One stage on gathered values, unless it takes shards."""
        new, kept = run_stage(s, self.sharding.given(s, values), hyper, memory)
        return self.sharding.kept(s, new), kept

    def compare_parts(self, *_: Any, **__: Any) -> Difference | None:
        return None  # a process has only a part of a batch; selfcheck compares the whole step

    def _evaluate(
        self, stages: Sequence[Stage], values: dict[str, Any], tree: dict[str, Tree], shard: Shard
    ) -> tuple[Sums, dict[str, Any]]:
        given = {**self.sharding.given(None, values)}
        self.sharding.forget()
        added, written = super()._evaluate(stages, given, tree, shard)
        if shard.rows is not None and not shard.rows.count:  # an empty rank computes sample 0 with weight 0
            added = tree_map(lambda x: x * 0, added)
        return added, written


def on_mesh(program: Single, mesh: Mesh) -> OnMesh:
    """The program of a process on a mesh, from the program of a process alone."""
    pipe = program.pipe
    return OnMesh(pipe, sharding=sharding(mesh, pipe.stages, pipe.graph))


def sharding_of(program: Program) -> Sharding | None:
    """Shards of a program's State, on a mesh."""
    return program.sharding if isinstance(program, OnMesh) else None


def total(program: Program, sums: Sums) -> Sums:
    """Sums of an evaluation, over all processes."""
    return program.sharding.total(sums) if isinstance(program, OnMesh) else sums


def whole(program: Program, state: State) -> State:
    """A State with full tensors, gathered from the shards of a mesh; all processes have to call it."""
    return State(program.sharding.whole(state.tree), state.lease) if isinstance(program, OnMesh) else state


def build(pipe: Description) -> Single:
    """The program of a pipeline."""
    single = Single(pipe)
    return single if pipe.place.mesh is None else on_mesh(single, pipe.place.mesh)


def sharding(mesh: Mesh, parts: Sequence[Element], graph: Sequence[Stage]) -> Sharding:
    """Shards of a pipeline's State. Raises WiringError for stages that can't run on a mesh."""
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
        if s.average is not None and s.create is not None and s.average_of in held and s.sharded:
            held[s.writes[0]] = held[s.average_of]
    of = {g.grads: g.wrt for g in trained if {*g.wrt} <= {*held}}
    return Sharding(mesh, tuple(graph), held, of, _local(parts, graph, trained))


def _local(parts: Sequence[Element], graph: Sequence[Stage], trained: Sequence[Gradients]) -> frozenset[str]:
    """Metrics after the last backward that depend on per-sample values."""
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
