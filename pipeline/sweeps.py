"""Sweeps: many runs of one pipeline, trained side by side as one."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Literal, TypeAlias

import torch
from attrs import evolve, frozen

from pipeline import html
from pipeline.element import is_count
from pipeline.errors import ConfigError
from pipeline.pipe import Pipeline, Trainable
from pipeline.programs.hyper import hyper_names
from pipeline.programs.members import Members, Setting, members
from pipeline.state import State, find
from pipeline.tree import tree_map

Order: TypeAlias = Literal["shared", "own"]

SHOWN = 40
"""Most members shown in a notebook."""


@frozen(eq=False, slots=False)
class Sweep(Trainable):
    """Members of one pipeline, which differ in their seeds and in numbers: made by `pipeline.sweep`.

    `init`, `step`, `evaluate`, `compile` and `fit` are as a pipeline's, on a State with leading dimension M, and each
    metric has one number per member, (M,). `seed` of `init` is added to the seeds of all. `settings` lists each
    member's settings, and `member(state, i)` is one member's State, in the pipeline's own form.
    """

    pipe: Pipeline
    """The pipeline of each member."""
    settings: tuple[Setting, ...]
    order: Order
    first: int
    """Seed of the order shared by the members."""

    def __attrs_post_init__(self) -> None:
        self.program  # noqa: B018  # raises if the pipeline can't be mapped

    @cached_property
    def program(self) -> Members:
        """The functions that train and evaluate all members."""
        return members(self.pipe.program, self.settings, own_order=self.order == "own", first=self.first)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.members} of {self.pipe!r})"

    def _repr_html_(self) -> str:
        """The settings of its first members, and the pipeline."""
        names = list(dict.fromkeys(name for setting in self.settings for name in setting))
        rows = [[i, *(setting.get(name, "") for name in names)] for i, setting in enumerate(self.settings[:SHOWN])]
        more = f"<p>{self.members - SHOWN:,} more</p>" if self.members > SHOWN else ""
        return html.table(["member", *names], rows) + more + self.pipe._repr_html_()

    # -- members

    @property
    def members(self) -> int:
        return len(self.settings)

    def member(self, state: State, i: int) -> State:
        """The State of one member, which shares nothing with the stacked one.

        If update.finite() stopped it, `step` is the step of the stop.
        """
        return self.program.member(state, i)

    def stacked(self, states: Iterable[State]) -> State:
        """The States of members, in their order and after as many steps, as one."""
        return self.program.stacked(states)

    def take(self, members: Sequence[int]) -> Sweep:
        """The sweep of some of the members alone; `narrowed` gives their State."""
        return evolve(self, settings=tuple(self.settings[i] for i in members))

    def narrowed(self, state: State, members: Sequence[int]) -> State:
        """The State of some of the members, stacked."""
        tree = state.tree
        at = torch.tensor(list(members), device=tree["step"].device)
        return State(
            {k: v.clone() if k == "step" else tree_map(lambda x: x.index_select(0, at), v) for k, v in tree.items()}
        )


def sweep(
    pipe: Pipeline,
    *,
    seeds: int | Sequence[int] = 1,
    hyper: Mapping[str, Sequence[float]] | Sequence[Setting] = ({},),
    order: Order = "own",
) -> Sweep:
    """Many runs of a pipeline as one: each setting with each seed.

    - `seeds`: a number of seeds, from 0 on, or the seeds, of the first weights, dropout and, with order="own", the
      order.
    - `hyper`: numbers by their names in State, or short ones, as in `State.with_hyper`: {"lr": [0.1, 0.01]} for all
      combinations, or a list of mappings, [{"lr": 0.1, "momentum": 0.9}, ...]. If a hyperparameter has a schedule, the
      number is its base.
    - `order`: "own": each member has its own seed's batches and equals a run alone; "shared": all have the batches of
      the first seed, which is faster, because the first layer is one product.

    All members share one copy of the data set. Raises ConfigError for an unknown name and if there is nothing to sweep.

    >>> from pipeline import Pipeline, backward, fit, forward, load, loss, models, update
    >>> data = {"inputs": torch.randn(8, 4), "targets": torch.arange(8) % 2}
    >>> model = forward.model(lambda: models.mlp(4, 2))
    >>> pipe = Pipeline(load.batches(data, size=4), model, loss.cross_entropy(), backward.gradients(), update.sgd(0.1))
    >>> runs = sweep(pipe, seeds=2, hyper={"lr": [0.1, 0.01, 0.001]})
    >>> [report] = fit(runs, epochs=1, compile=False)
    >>> len(report.train["loss"]), runs.settings[5], int(runs.member(report.state, 5).step)
    (6, {'seed': 1, 'update.sgd.lr': 0.001}, 2)
    """
    if not isinstance(pipe, Pipeline):
        raise ConfigError("the members of a sweep are runs of a Pipeline, not of another sweep")
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
    return Sweep(pipe, tuple(settings), order, seeds[0])
