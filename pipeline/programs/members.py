"""Members: the program of many runs side by side: one run's program under torch.vmap.

The State stacks the States of M members: every tensor but the step has M first. It compiles as one graph, and each
member's result equals a run alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import torch
from attrs import evolve, frozen
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pipeline.description import Description
from pipeline.element import Element
from pipeline.errors import ConfigError, StageError, StateError
from pipeline.mesh import Shard
from pipeline.programs.program import Program, Seed, Sums
from pipeline.programs.single import Single, build_modules
from pipeline.state import Batch, State
from pipeline.tree import Tree, tree_map

Setting = Mapping[str, float]
"""Values of one member: "seed", and hyperparameters by their names in State, "update.sgd.lr"."""


@frozen(eq=False)
class Members:
    """The program of members that differ in their settings. Made by `members`."""

    single: Single
    settings: tuple[Setting, ...]
    own_order: bool
    """Whether each member has an order of samples of its own."""
    first: int
    """Seed of the order shared by the members."""

    @property
    def pipe(self) -> Description:
        return self.single.pipe

    @property
    def members(self) -> int:
        return len(self.settings)

    @property
    def runs(self) -> int | None:
        return self.members

    @property
    def orders(self) -> int | None:
        return self.members if self.own_order else None

    def of(self, stages: Sequence[Element]) -> Self:
        return evolve(self, single=self.single.of(stages))

    def same(self, other: Program) -> bool:
        if type(other) is not type(self) or other.pipe is not self.pipe or other.members != self.members:
            return False
        return (other.own_order, other.first) == (self.own_order, self.first)

    def seed(self, tree: Mapping[str, Tree]) -> Seed:
        seeds = tuple(tree["seed"].tolist())
        return seeds if self.own_order else int(self.first + seeds[0] - self.settings[0]["seed"])

    def member(self, state: State, i: int) -> State:
        """The State of one member, which shares no tensor with the stacked one. If update.finite() stopped it, `step`
        is the step of the stop."""
        tree = {k: v.clone() if k == "step" else tree_map(lambda x: x[i].clone(), v) for k, v in state.tree.items()}
        for s in self.pipe.finite:
            if s.stops:
                stopped = tree["memory"][s.name]["stopped"]
                tree["step"] = torch.where(stopped > 0, stopped - 1, tree["step"])
        return State(tree)

    def stacked(self, states: Iterable[State]) -> State:
        trees = [s.tree for s in states]
        if len(trees) != self.members:
            raise StateError(f"{len(trees)} States were given for {self.members} members")
        step = trees[0]["step"]
        if any(not torch.equal(t["step"], step) for t in trees):
            raise StateError("the States of members must have done as many steps")
        stack = tree_map(lambda *xs: torch.stack(xs), *map(without_step, trees))
        return State({k: step.clone() if k == "step" else stack[k] for k in trees[0]})

    def init(self, seed: int = 0, *, steps: int | None = None, batch: Batch | None = None) -> State:
        seeds = [int(s["seed"]) + seed for s in self.settings]
        states = {own: self.single.init(own, steps=steps, batch=batch) for own in dict.fromkeys(seeds)}
        weights = [
            pytree.tree_leaves([own.tree[g] for m in self.pipe.backwards for g in m.wrt]) for own in states.values()
        ]
        first, *others = weights
        given = any(isinstance(m.module.build, nn.Module) for m in self.pipe.models)
        if given and others and all(torch.equal(x, y) for own in others for x, y in zip(first, own, strict=True)):
            why = "members of different seeds begin with equal weights, as a module is given"
            instead = "if that is not meant, give what makes one: forward.model(lambda: ...)"
            warnings.warn(f"{why}; {instead}", stacklevel=4)
        rest = [{k: v for k, v in s.items() if k != "seed"} for s in self.settings]
        return self.stacked(states[own].with_hyper(hyper) for own, hyper in zip(seeds, rest, strict=True))

    def train(self, tree: dict[str, Tree], shard: Shard) -> tuple[dict[str, Tree], dict[str, Tensor]]:
        step, changed = tree["step"], list[int]()
        flat, spec = pytree.tree_flatten(without_step(tree))

        def one(flat: list[Tensor], batch: Batch) -> tuple[list[Tensor], dict[str, Tensor]]:
            own = pytree.tree_unflatten(flat, spec)
            new, metrics = self.single.train({k: step if k == "step" else own[k] for k in tree}, Shard(batch))
            leaves = pytree.tree_leaves(without_step(new))
            # A tensor that no step changes stays the same object, so that nothing is written for it.
            changed[:] = [i for i, (x, y) in enumerate(zip(leaves, flat, strict=True)) if x is not y]
            return [leaves[i] for i in changed], metrics

        new, metrics = self.mapped(one, (0, 0 if self.own_order else None))(flat, shard.values)
        for i, value in zip(changed, new, strict=True):
            flat[i] = value
        after = pytree.tree_unflatten(flat, spec)
        return {k: step + 1 if k == "step" else after[k] for k in tree}, metrics

    def zeros(self) -> Sums:
        sums: Sums = tree_map(lambda x: x.expand(self.members, *x.shape).clone(), self.single.zeros())
        return sums

    def measure(self, tree: dict[str, Tree], sums: Sums, shard: Shard) -> Sums:
        def one(own: dict[str, Tree], sums: Sums, batch: Batch) -> Sums:
            return self.single.measure({**own, "step": tree["step"]}, sums, Shard(batch))

        new: Sums = self.mapped(one, (0, 0, None))(without_step(tree), sums, shard.values)
        return new

    def finish(self, sums: Mapping[str, Tree]) -> dict[str, Any]:
        done: dict[str, Any] = torch.vmap(self.single.finish)(dict(sums))
        return done

    def mapped(self, one: Callable[..., Any], dims: tuple[int | None, ...]) -> Callable[..., Any]:
        """A function of one member's tree and a batch, over all members."""
        build_modules(self.pipe)
        for s in self.pipe.backwards:
            if s.taken == "tape":
                raise StageError(
                    s.name, "goes by the tape, which is for one run at a time: train the members one by one"
                )
        mapped: Callable[..., Any] = torch.vmap(one, in_dims=dims)
        return mapped


def without_step(tree: Mapping[str, Tree]) -> dict[str, Tree]:
    """The per-member values of a State's tree."""
    return {k: v for k, v in tree.items() if k != "step"}


def gathers(pipe: Description) -> bool:
    """Whether a step can gather batches for each member in its own order."""
    return pipe.load is not None and pipe.load.in_memory and not pipe.host


def members(program: Single, settings: Sequence[Setting], *, own_order: bool, first: int) -> Members:
    """The program of many runs, from one run's program. Raises ConfigError if the program can't be mapped."""
    if program.pipe.place.mesh is not None:
        raise ConfigError("a sweep is for one process; place the pipeline by place.on()")
    if own_order and not gathers(program.pipe):
        raise ConfigError(
            "order='own' gathers each member's batches inside the step, from a data set of tensors in memory "
            "without stages before place; use order='shared'"
        )
    return Members(program, tuple(settings), own_order, first)
