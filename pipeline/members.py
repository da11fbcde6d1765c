"""Members: many runs of one pipeline as one run with one more dimension.

A Sweep is a pipeline whose State holds those of M members, stacked: every tensor but the step has M first. Its step is
the pipeline's own under torch.vmap, so it compiles as one graph, and a member's result is that of a run alone.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Self, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pipeline.compose import Composition
from pipeline.errors import ConfigError, StageError, StateError
from pipeline.hyper import hyper_names
from pipeline.load import Load
from pipeline.pipe import Pipeline
from pipeline.stage import Part, is_count
from pipeline.state import Batch, State, find, samples
from pipeline.tree import Tree, tree_map

Order: TypeAlias = Literal["shared", "own"]
Setting: TypeAlias = Mapping[str, float]
"""What is a member's own: its "seed", and numbers by the names that State has for them, "update.sgd.lr"."""


class Sweep(Pipeline):
    """Members of one pipeline, which differ in their seeds and in numbers: made by `pipeline.sweep`.

    It is a Pipeline: `init`, `step`, `evaluate`, `compile` and `fit` are what they are there, on a State whose tensors
    have M first, and with one number for each member in the place of each metric, (M,). `settings` tells the members
    apart, and `member(state, i)` is the State of one, as the pipeline itself has it.
    """

    pipe: Pipeline
    """That of each member."""
    settings: tuple[Setting, ...]
    order: Order
    first: int
    """The seed of the order that members share."""

    def __init__(self, pipe: Pipeline, settings: Sequence[Setting], order: Order, first: int) -> None:
        super().__init__(*pipe.stages)
        self.__dict__.update(pipe=pipe, settings=tuple(settings), order=order, first=first)
        if self.place.mesh is not None:
            raise ConfigError("a sweep is for one process; place the pipeline by place.on()")
        if isinstance(pipe, Sweep):
            raise ConfigError("the members of a sweep are runs of a Pipeline, not of another sweep")
        if order == "own" and not gathers(pipe):
            raise ConfigError(
                "order='own' gathers each member's batches inside the step, from a data set of tensors in memory "
                "without stages before place; use order='shared'"
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.members} of {self.pipe!r})"

    def of(self, stages: Sequence[Part]) -> Self:
        return type(self)(self.pipe.of(stages), self.settings, self.order, self.first)

    # -- members

    @property
    def members(self) -> int:
        return len(self.settings)

    @property
    def runs(self) -> int | None:
        return self.members

    def member(self, state: State, i: int) -> State:
        """The State of one member, which shares nothing with the stacked one.

        Where update.finite() stopped it, `step` is that of the stop.
        """
        tree = {k: v.clone() if k == "step" else tree_map(lambda x: x[i].clone(), v) for k, v in state.tree.items()}
        for s in self.stops:
            stopped = tree["memory"][s]["stopped"]
            tree["step"] = torch.where(stopped > 0, stopped - 1, tree["step"])
        return State(tree)

    def take(self, members: Sequence[int]) -> Sweep:
        """The sweep of some of the members alone; `narrowed` gives their State."""
        return type(self)(self.pipe, [self.settings[i] for i in members], self.order, self.first)

    def narrowed(self, state: State, members: Sequence[int]) -> State:
        """The State of some of the members, stacked."""
        tree = state.tree
        at = torch.tensor(list(members), device=tree["step"].device)
        taken = {k: v.clone() if k == "step" else tree_map(lambda x: x.index_select(0, at), v) for k, v in tree.items()}
        return State(taken)

    def stacked(self, states: Iterable[State]) -> State:
        """The States of members, in their order and after as many steps, as one."""
        trees = [s.tree for s in states]
        if len(trees) != self.members:
            raise StateError(f"{len(trees)} States are not those of {self.members} members")
        step = trees[0]["step"]
        if any(not torch.equal(t["step"], step) for t in trees):
            raise StateError("the States of members must have done as many steps")
        rest = [{k: v for k, v in t.items() if k != "step"} for t in trees]
        whole = tree_map(lambda *xs: torch.stack(xs), *rest)
        return State({k: step.clone() if k == "step" else whole[k] for k in trees[0]})

    def alike(self, other: Composition) -> bool:
        same = type(other) is type(self) and other.pipe is self.pipe and other.members == self.members
        return same and (other.order, other.first) == (self.order, self.first)  # type: ignore[attr-defined]  # as above

    # -- what a pipeline is

    def init(self, seed: int = 0, *, steps: int | None = None, batch: Batch | None = None) -> State:
        """The first State: each member's as the pipeline makes it by the member's own seed, with its own numbers.

        `seed` is added to the seeds of all.
        """
        seeds = [int(s["seed"]) + seed for s in self.settings]
        made = {own: self.pipe.init(own, steps=steps, batch=batch) for own in dict.fromkeys(seeds)}
        rest = [{k: v for k, v in s.items() if k != "seed"} for s in self.settings]
        return self.stacked(made[own].with_hyper(hyper) for own, hyper in zip(seeds, rest, strict=True))

    def train(self, tree: dict[str, Tree], batch: Batch) -> tuple[dict[str, Tree], dict[str, Tensor]]:
        self.begin()
        step, changed = tree["step"], list[int]()
        old = without_step(tree)
        flat, spec = pytree.tree_flatten(old)

        def one(flat: list[Tensor], batch: Batch) -> tuple[list[Tensor], dict[str, Tensor]]:
            own = pytree.tree_unflatten(flat, spec)
            new, metrics = self.pipe.train({k: step if k == "step" else own[k] for k in tree}, batch)
            leaves = pytree.tree_leaves(without_step(new))
            # What no step changes stays the tensor that it is, so that nothing is written for it.
            changed[:] = [i for i, (x, y) in enumerate(zip(leaves, flat, strict=True)) if x is not y]
            return [leaves[i] for i in changed], metrics

        new, metrics = self._mapped(one, 0 if self.order == "own" else None)(flat, batch)
        for i, value in zip(changed, new, strict=True):
            flat[i] = value
        after = pytree.tree_unflatten(flat, spec)
        return {k: step + 1 if k == "step" else after[k] for k in tree}, metrics

    def sums(self, tree: dict[str, Tree], batch: Batch) -> tuple[dict[str, Tree], dict[str, Any]]:
        self.begin()

        def one(own: dict[str, Tree], batch: Batch) -> dict[str, Tree]:
            return self.pipe.sums({**own, "step": tree["step"]}, batch)[0]

        return self._mapped(one, None)(without_step(tree), batch), {}

    def _mapped(self, one: Callable[..., Any], batch: int | None) -> Callable[..., Any]:
        """A function of members' trees and a batch, over all members."""
        for s in self.pipe.backwards:
            if s.taken == "tape":
                raise StageError(
                    s.name, "goes by the tape, which is for one run at a time: train the members one by one"
                )
        mapped: Callable[..., Any] = torch.vmap(one, in_dims=(0, batch))
        return mapped

    def evaluate(self, state: State, data: Any = None) -> dict[str, Any]:
        if not self.on_host:
            return super().evaluate(state, data)
        each = [self.pipe.evaluate(self.member(state, i), data) for i in range(self.members)]
        return {name: [found[name] for found in each] for name in each[0]}

    def zeros(self) -> dict[str, Tree]:
        sums: dict[str, Tree] = tree_map(lambda x: x.expand(self.members, *x.shape).clone(), self.pipe.zeros())
        return sums

    def finish(self, sums: Mapping[str, Tree]) -> dict[str, Any]:
        done: dict[str, Any] = torch.vmap(self.pipe.finish)(dict(sums))
        return done

    def observed(self, state: State, metrics: Mapping[str, Any]) -> State:
        if not self.watches:
            return state
        seen = [self.pipe.observed(self.member(state, i), self._metrics_of(i, metrics)) for i in range(self.members)]
        memory = tree_map(lambda *xs: torch.stack(xs), *[s.tree["memory"] for s in seen])
        return state.replace(memory=memory)

    def _metrics_of(self, i: int, metrics: Mapping[str, Any]) -> Mapping[str, Any]:
        return {k: v[i] for k, v in metrics.items() if isinstance(v, list)}

    def averaged(self, state: State) -> dict[str, State]:
        each = [self.pipe.averaged(self.member(state, i)) for i in range(self.members)] if self.averages else []
        return {name: self.stacked(found[name] for found in each) for name in (each[0] if each else ())}

    def refreshed(self, state: State, data: Any = None) -> State:
        return self.stacked(self.pipe.refreshed(self.member(state, i), data) for i in range(self.members))

    def check(self, state: State, data: Any = None) -> None:
        self.pipe.check(self.member(state, 0), data)

    def check_watched(self, state: State, sets: Collection[str]) -> None:
        self.pipe.check_watched(self.member(state, 0), sets)

    @property
    def orders(self) -> int | None:
        return self.members if self.order == "own" else None

    def shuffled_by(self, tree: Mapping[str, Tree]) -> Any:
        seeds = tuple(tree["seed"].tolist())
        return seeds if self.order == "own" else self.first + seeds[0] - int(self.settings[0]["seed"])

    def counted(self, batch: Batch) -> int:
        if self.order == "shared":
            return super().counted(batch)
        return samples(tree_map(lambda x: x[0], dict(batch)), self.samples)

    def epoch(self, source: Load, seed: Any, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch; each member's own, (M, B, ...), of the pipeline's own data in order="own"."""
        if self.order == "shared" or source is not self.load:
            yield from super().epoch(source, seed, epoch, start)
            return
        for each in zip(*(source.epoch(own, epoch, start) for own in seed), strict=True):
            yield tree_map(lambda *xs: torch.stack(xs), *each)

    def module(self, state: State, params: str = "params") -> Any:
        raise ConfigError("a sweep has a model for each member: pipe.module(sweep.member(state, i))")


def gathers(pipe: Pipeline) -> bool:
    """Whether a step can gather batches for each member in its own order."""
    return pipe.load is not None and pipe.load.in_memory and not pipe.host


def without_step(tree: Mapping[str, Tree]) -> dict[str, Tree]:
    """What of a State's tree each member has its own of."""
    return {k: v for k, v in tree.items() if k != "step"}


def sweep(
    pipe: Pipeline,
    *,
    seeds: int | Sequence[int] = 1,
    hyper: Mapping[str, Sequence[float]] | Sequence[Setting] = ({},),
    order: Order = "own",
) -> Sweep:
    """Many runs of a pipeline as one: each of the settings with each of the seeds.

    - `seeds`: how many, from 0, or which: of the first weights, dropout and, in order="own", the order.
    - `hyper`: numbers by their names in State, or short ones, as in `State.with_hyper`: {"lr": [0.1, 0.01]} are all
      combinations, a list of mappings, [{"lr": 0.1, "momentum": 0.9}, ...], is each of them. A schedule goes on from
      what is given here.
    - `order`: "own", each member's batches come by its own seed, so that a member is the run alone; "shared", all see
      the same batches, in the order of the first seed, which is faster: the first layer's products are one.

    The data set is there once. Raises ConfigError for an unknown name and where there is nothing to sweep.

    >>> from pipeline import Pipeline, backward, fit, forward, load, loss, models, update
    >>> data = {"inputs": torch.randn(8, 4), "targets": torch.arange(8) % 2}
    >>> model = forward.model(lambda: models.mlp(4, 2))
    >>> pipe = Pipeline(load.batches(data, size=4), model, loss.cross_entropy(), backward.gradients(), update.sgd(0.1))
    >>> runs = sweep(pipe, seeds=2, hyper={"lr": [0.1, 0.01, 0.001]})
    >>> [report] = fit(runs, epochs=1, compile=False)
    >>> len(report.train["loss"]), runs.settings[5], int(runs.member(report.state, 5).step)
    (6, {'seed': 1, 'update.sgd.lr': 0.001}, 2)
    """
    if order not in ("shared", "own"):
        raise ConfigError(f"order={order!r} is unknown; use 'shared' or 'own'")
    if is_count(seeds):
        seeds = range(operator.index(seeds))  # type: ignore[arg-type]  # it is a number
    if not isinstance(seeds, Sequence) or not seeds or any(type(s) is not int for s in seeds):
        raise ConfigError(f"seeds={seeds!r} are neither a number of seeds nor some")
    if isinstance(hyper, Mapping):
        columns = [values if isinstance(values, Iterable) else [values] for values in hyper.values()]
        hyper = [dict(zip(hyper, row, strict=True)) for row in itertools.product(*columns)]
    known = dict.fromkeys(hyper_names(pipe.graph))
    rows = [{find(name, known): float(v) for name, v in row.items()} for row in hyper]
    if not rows:
        raise ConfigError("a sweep needs at least one value of each hyperparameter")
    if any(row.keys() != rows[0].keys() for row in rows):
        raise ConfigError("each setting of a sweep has a number for the same hyperparameters")
    settings = [{"seed": s, **row} for row in rows for s in seeds]
    return Sweep(pipe, settings, order, seeds[0])
