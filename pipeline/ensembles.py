"""Ensembles: members of one pipeline that are trained side by side, and answer as one model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from pipeline.compose import Composition
from pipeline.errors import ConfigError, StageError
from pipeline.loss import Loss
from pipeline.members import Order, Setting, Sweep, sweep, without_step
from pipeline.pipe import Pipeline
from pipeline.stage import Part, Stage
from pipeline.state import Batch, State
from pipeline.tree import Tree, tree_map

OUTPUTS = "outputs"
"""The value that members have each their own of, and an ensemble one."""
JOINED, VOTED = "joined", "voted"
VOTING = "evaluate.accuracy"
"""Votes are no probabilities, so that nothing else can be told of them."""

Join = Callable[[Tensor], Tensor]
"""The outputs of M members as those of one model: (M, B, ...) -> (B, ...)."""


class Ensemble(Sweep):
    """Members that differ in their seeds, as one model: made by `pipeline.ensemble`.

    It is trained as a Sweep. Its metrics are those of one run: in an evaluation, those of the joined outputs, with
    "members.loss" and the like, the mean of what the members have each for itself ("members.loss/0" is one's), and
    "votes.accuracy", of the class that most members tell. In training, each metric is the mean of the members'.
    """

    join: Join
    vote: Join | None
    rest: tuple[Stage, ...]
    """The stages of the evaluation that are of the joined outputs."""

    def __init__(
        self, pipe: Pipeline, settings: Sequence[Setting], order: Order, first: int, join: Join | None = None
    ) -> None:
        super().__init__(pipe, settings, order, first)
        last = max((i for i, s in enumerate(pipe.evaluation) if OUTPUTS in s.writes), default=None)
        if last is None:
            why = f"joins the {OUTPUTS!r} of its members, which no stage writes"
            raise ConfigError(f"an ensemble {why}: forward.model(outputs=...) gives names to what a model returns")
        if pipe.on_host:
            why = "is taken on the host, and so not of joined outputs"
            raise ConfigError(f"{pipe.on_host[0].name!r} {why}: leave it out, and take it of what module() answers")
        rest = pipe.evaluation[last + 1 :]
        kept = {name for s in pipe.stages for name in s.keeps}
        for s in rest:
            if own := sorted(kept & {*s.reads, *s.optional}):
                raise StageError(s.name, f"reads {own[0]!r}, of which each member of an ensemble has its own")
        losses = [s for s in rest if isinstance(s, Loss)]
        if join is None and not losses:
            raise ConfigError(
                "ensemble() does not know what the outputs mean that this loss is of: pass join=, a function of all "
                "outputs (M, B, ...) such as loss.mean_probabilities, mean_chances or mean_outputs"
            )
        self.__dict__.update(join=join or losses[0].join, vote=losses[0].vote if losses else None, rest=rest)

    def of(self, stages: Sequence[Part]) -> Self:
        return type(self)(self.pipe.of(stages), self.settings, self.order, self.first, self.join)

    @property
    def runs(self) -> None:
        return None

    def stopped(self, state: State) -> tuple[Composition, State, int] | None:
        stopped = [state.memory[name]["stopped"].tolist() for name in self.stops]
        found = next((i for i in range(self.members) if any(steps[i] for steps in stopped)), None)
        return None if found is None else (self.pipe, self.member(state, found), found)

    def _metrics_of(self, i: int, metrics: Mapping[str, Any]) -> Mapping[str, Any]:
        return metrics

    def sums(self, tree: dict[str, Tree], batch: Batch) -> tuple[dict[str, Tree], dict[str, Any]]:
        self.begin()

        def one(own: dict[str, Tree], batch: Batch) -> tuple[dict[str, Tree], Tensor]:
            added, written = self.pipe.sums({**own, "step": tree["step"]}, batch)
            return added, written[OUTPUTS]

        added, outputs = self._mapped(one, None)(without_step(tree), batch)
        first = {**tree_map(lambda x: x[0], without_step(tree)), "step": tree["step"]}
        for name, (join, stages) in self._views().items():
            seen = {**batch, OUTPUTS: join(outputs)}
            added = {**added, name: self.pipe.sums_by(stages, first, seen)[0]}
        return added, {OUTPUTS: self.join(outputs)}

    def _views(self) -> dict[str, tuple[Join, tuple[Stage, ...]]]:
        """How outputs are seen as those of one model, and what is measured of them."""
        voting = tuple(s for s in self.rest if s.name == VOTING)
        votes = {VOTED: (self.vote, voting)} if self.vote is not None and voting else {}
        return {JOINED: (self.join, self.rest), **votes}

    def zeros(self) -> dict[str, Tree]:
        whole = self.pipe.zeros()
        views = {k: {s.name: whole[s.name] for s in stages if s.finish} for k, (_, stages) in self._views().items()}
        return {**super().zeros(), **tree_map(torch.clone, views)}

    def finish(self, sums: Mapping[str, Tree]) -> dict[str, Any]:
        each = super().finish({name: s for name, s in sums.items() if name not in (JOINED, VOTED)})
        means = {name: v.to(torch.float64).mean(0) for name, v in each.items()}
        if JOINED not in sums:
            return means
        done = dict(self.pipe.finish(sums[JOINED]))
        if VOTED in sums:
            done |= {f"votes.{name}": v for name, v in self.pipe.finish(sums[VOTED]).items()}
        for name, value in means.items():
            done[f"members.{name}"] = value
            if value.ndim == 0:
                done |= {f"members.{name}/{i}": each[name][i] for i in range(self.members)}
        return done

    def check_watched(self, state: State, sets: Collection[str]) -> None:
        Pipeline.check_watched(self, state, sets)

    def module(self, state: State, params: str = "params") -> nn.Module:
        """The members as one nn.Module, whose outputs are the joined ones.

        Raises ConfigError for a model that returns several parts.
        """
        if any(m.outputs != OUTPUTS for m in self.models if m.params == params):
            raise ConfigError("members that return several parts make no module: pipe.module(runs.member(state, i))")
        each = [self.pipe.module(self.member(state, i), params) for i in range(self.members)]
        return Joined(each, self.join)

    def weights(self, state: State | Mapping[str, Any]) -> dict[str, Tensor]:
        found = super().weights(state)
        return {f"members.{i}.{name}": t[i] for i in range(self.members) for name, t in found.items()}


class Joined(nn.Module):
    """Modules as one: what they return, joined.

    >>> Joined([nn.Identity(), nn.Flatten(0)], lambda outputs: outputs.sum(0))(torch.ones(3))
    tensor([2., 2., 2.])
    """

    def __init__(self, members: Iterable[nn.Module], join: Join) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.join = join

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.join(torch.stack([member(*args, **kwargs) for member in self.members]))


def ensemble(pipe: Pipeline, *, seeds: int | Sequence[int], order: Order = "own", join: Join | None = None) -> Ensemble:
    """Runs of a pipeline with several seeds that answer as one model: a deep ensemble.

    - `seeds`: how many, from 0, or which.
    - `order`: as in `sweep`.
    - `join`: how outputs (M, B, ...) become those of one model, (B, ...). By default what the loss says: the mean of
      the probabilities of loss.cross_entropy() and binary_cross_entropy(), of values their mean.

    `module(state)` is the whole as an nn.Module. Raises ConfigError where the loss does not tell how to join.

    Source: Lakshminarayanan, Pritzel and Blundell, Simple and scalable predictive uncertainty estimation using deep
    ensembles (2017).

    >>> from pipeline import Pipeline, backward, evaluate, fit, forward, load, loss, models, update
    >>> data = {"inputs": torch.randn(8, 4), "targets": torch.arange(8) % 2}
    >>> model, metric = forward.model(lambda: models.mlp(4, 2)), evaluate.accuracy()
    >>> train = load.batches(data, size=4), model, loss.cross_entropy(), metric, backward.gradients(), update.sgd(0.1)
    >>> together = ensemble(Pipeline(*train), seeds=3)
    >>> [report] = fit(together, epochs=1, validate=data, compile=False)
    >>> sorted(name for name in report.validate if "/" not in name)
    ['accuracy', 'loss', 'members.accuracy', 'members.loss', 'votes.accuracy']
    >>> together.module(report.state)(data["inputs"]).shape
    torch.Size([8, 2])
    """
    runs = sweep(pipe, seeds=seeds, order=order)
    return Ensemble(pipe, runs.settings, order, runs.first, join)
