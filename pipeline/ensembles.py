"""Ensembles: members of one pipeline that are trained side by side, and answer as one model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.pipe import Pipeline
from pipeline.programs.joint import OUTPUTS, Join, Joint, joint
from pipeline.programs.members import members
from pipeline.state import State
from pipeline.sweeps import Order, Sweep, sweep


@frozen(eq=False, slots=False, repr=False)
class Ensemble(Sweep):
    """Members that differ in their seeds, as one model: made by `pipeline.ensemble`.

    It is trained as a Sweep. An evaluation reports the metrics of the joined outputs ("loss"), the means of the
    members' metrics ("members.loss"), each member's ("members.loss/0"), and the accuracy of the majority vote
    ("votes.accuracy"). In training, each metric is the mean over members.
    """

    join: Join | None = field(default=None, kw_only=True)

    @cached_property
    def program(self) -> Joint:
        """The functions that train all members, and evaluate them as one."""
        own = members(self.pipe.program, self.settings, own_order=self.order == "own", first=self.first)
        return joint(own, self.join)

    def module(self, state: State, params: str = "params") -> nn.Module:
        """The members as one nn.Module, with joined outputs.

        Raises ConfigError for a model that returns several parts.
        """
        if any(m.outputs != OUTPUTS for m in self.pipe.models if m.params == params):
            raise ConfigError("members that return several parts make no module: pipe.module(runs.member(state, i))")
        each = [self.pipe.module(self.member(state, i), params) for i in range(self.members)]
        return Joined(each, self.program.join)

    def weights(self, state: State | Mapping[str, Any]) -> dict[str, Tensor]:
        """The weights of the first model of each member, as `module` names them."""
        stacked = self.pipe.weights(state)
        return {f"members.{i}.{name}": t[i] for i in range(self.members) for name, t in stacked.items()}


class Joined(nn.Module):
    """Modules as one, with joined outputs.

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

    - `seeds`: a number of seeds, from 0 on, or the seeds.
    - `order`: as in `sweep`.
    - `join`: a function from the members' outputs (M, B, ...) to one model's, (B, ...). By default chosen by the loss:
      mean probabilities for loss.cross_entropy() and binary_cross_entropy(), the mean for losses of values.

    `module(state)` is the whole as an nn.Module. Raises ConfigError if the loss declares no way to join.

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
    return Ensemble(pipe, runs.settings, order, runs.first, join=join)
