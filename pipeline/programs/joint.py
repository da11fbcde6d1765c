"""Joint: the program of an ensemble: members with outputs joined into one model's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from attrs import frozen
from torch import Tensor

from pipeline import random
from pipeline.description import Description
from pipeline.errors import ConfigError, StageError
from pipeline.loss import Loss
from pipeline.mesh import Shard
from pipeline.programs.members import Members, without_step
from pipeline.programs.program import Sums
from pipeline.programs.single import COUNT, summed
from pipeline.stage import Stage
from pipeline.state import Batch
from pipeline.tree import Tree, tree_map

OUTPUTS = "outputs"
"""The value joined over the members of an ensemble."""
JOINED, VOTED = "joined", "voted"
"""Names in the sums of the evaluation of joined outputs, and of votes."""
VOTING = "evaluate.accuracy"
"""The only metric of votes, which are no probabilities."""

Join: TypeAlias = Callable[[Tensor], Tensor]
"""The outputs of M members joined into one model's: (M, B, ...) -> (B, ...)."""


@frozen(eq=False)
class Joint(Members):
    """Members as one model, with metrics of the joined outputs, and means of the members' metrics."""

    join: Join
    vote: Join | None
    rest: tuple[Stage, ...]
    """Stages of the evaluation that read the joined outputs."""

    @property
    def runs(self) -> int | None:
        return None

    def views(self) -> dict[str, tuple[Join, tuple[Stage, ...]]]:
        """Ways to join outputs, and the stages that measure each."""
        voting = tuple(s for s in self.rest if s.name == VOTING)
        votes = {VOTED: (self.vote, voting)} if self.vote is not None and voting else {}
        return {JOINED: (self.join, self.rest), **votes}

    def zeros(self) -> Sums:
        one = self.single.zeros()
        views = {k: {s.name: one[s.name] for s in stages if s.finish} for k, (_, stages) in self.views().items()}
        return {**super().zeros(), **tree_map(torch.clone, views)}

    def measure(self, tree: dict[str, Tree], sums: Sums, shard: Shard) -> Sums:
        def one(own: dict[str, Tree], sums: Sums, batch: Batch) -> tuple[Sums, Tensor]:
            new, written = self.single.measured({**own, "step": tree["step"]}, sums, Shard(batch))
            return new, written[OUTPUTS]

        views = self.views()
        each = {k: s for k, s in sums.items() if k not in views}
        new, outputs = self.mapped(one, (0, 0, None))(without_step(tree), each, shard.values)
        first = {**tree_map(lambda x: x[0], without_step(tree)), "step": tree["step"]}
        first["seed"] = random.key(first["seed"], sums[COUNT][0])
        for name, (join, stages) in views.items():
            seen = Shard({**shard.values, OUTPUTS: join(outputs)})
            new[name] = summed(sums[name], self.single.batch_sums(first, seen, stages)[0])
        return dict(new)

    def finish(self, sums: Mapping[str, Tree]) -> dict[str, Any]:
        each = super().finish({name: s for name, s in sums.items() if name not in (JOINED, VOTED)})
        means = {name: v.to(torch.float64).mean(0) for name, v in each.items()}
        if JOINED not in sums:
            return means
        done = dict(self.single.finish(sums[JOINED]))
        if VOTED in sums:
            done |= {f"votes.{name}": v for name, v in self.single.finish(sums[VOTED]).items()}
        for name, value in means.items():
            done[f"members.{name}"] = value
            if value.ndim == 0:
                done |= {f"members.{name}/{i}": each[name][i] for i in range(self.members)}
        return done


def joint(program: Members, join: Join | None) -> Joint:
    """The program of an ensemble, from its members' program. Raises ConfigError if their outputs can't be joined."""
    rest = _joined_stages(program.pipe)
    losses = [s for s in rest if isinstance(s, Loss)]
    if join is None and not losses:
        raise ConfigError(
            "ensemble() does not know what the outputs mean that this loss is of: pass join=, a function of all "
            "outputs (M, B, ...) such as loss.mean_probabilities, mean_chances or mean_outputs"
        )
    own = program.single, program.settings, program.own_order, program.first
    return Joint(*own, join or losses[0].join, losses[0].vote if losses else None, rest)


def _joined_stages(pipe: Description) -> tuple[Stage, ...]:
    """Stages of the evaluation that depend on the outputs."""
    last = max((i for i, s in enumerate(pipe.evaluation) if OUTPUTS in s.writes), default=None)
    if last is None:
        why = f"joins the {OUTPUTS!r} of its members, which no stage writes"
        raise ConfigError(f"an ensemble {why}: forward.model(outputs=...) gives names to what a model returns")
    if pipe.host_metrics:
        why = "is taken on the host, and so not of joined outputs"
        raise ConfigError(f"{pipe.host_metrics[0].name!r} {why}: leave it out, and take it of what module() answers")
    rest = pipe.evaluation[last + 1 :]
    kept = {name for s in pipe.stages for name in s.keeps}
    for s in rest:
        if own := sorted(kept & {*s.reads, *s.optional}):
            raise StageError(s.name, f"reads {own[0]!r}, of which each member of an ensemble has its own")
    return rest
