"""Pipeline: what a user builds: stages in order, their step compiled, and functions of a State made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pipeline import alone, batchnorm
from pipeline.backward import Gradients
from pipeline.compile import Compiled
from pipeline.compose import Composition
from pipeline.errors import ConfigError, StageError, did_you_mean
from pipeline.state import Batch, State


class Pipeline(Composition):
    __doc__ = Composition.__doc__

    def compile(self, **options: Any) -> Compiled:
        """The same step as one compiled graph: see pipeline.compile.Compiled."""
        return Compiled(self, **options)

    def check_mesh(self, state: State) -> None:
        """Raise StageError where a step on a mesh is not the one that a process does alone: see pipeline.alone."""
        alone.check_mesh(self, state)

    # -- a State seen otherwise

    def averaged(self, state: State) -> dict[str, State]:
        """For each average of weights in the pipeline ("ema", "swa"), the State to evaluate and to save.

        It has the average in the place of the weights, and shares its tensors with `state`. Where no BatchNorm
        statistics belong to an average, they are made anew over the pipeline's own data, which takes an epoch's
        forwards.
        """
        found: dict[str, State] = {}
        for name, s in self.averages.items():
            seen = state.replace(**s.averaged(state.tree, self.hyper(state.tree)[s.name]))
            found[name] = self.refreshed(seen) if s.anew and self.load is not None else seen
        return found

    def refreshed(self, state: State, data: Any = None) -> State:
        """The same State with BatchNorm's running statistics made anew over `data`, or the pipeline's own.

        As torch.optim.swa_utils.update_bn: in train mode, and each batch has equal weight. A State of models without
        BatchNorm comes back as it is.
        """
        batches = self.place.ahead(self.prepared(b, True) for b in self.epoch(self.over(data), 0, 0))
        with torch.enable_grad(), self.place.autocast():  # a derivative may be part of a model's outputs
            kept = self._kept(self.whole(state).tree)
            stages = [s for s in self.graph if s.runs(True)]
            new = batchnorm.renewed(stages, kept, self.hyper(state.tree), state.memory, batches, self.place.mesh)
        return state.replace(**new) if new else state

    def module(self, state: State, params: str = "params") -> nn.Module:
        """The model as a plain nn.Module with the weights of a State, in eval mode; it shares nothing with the State.

        `params` names the model, where there are several. Of an average: `pipe.module(pipe.averaged(state)["ema"])`.

        >>> from pipeline import Pipeline, forward, models
        >>> pipe = Pipeline(forward.model(lambda: models.mlp(4, 2)))
        >>> pipe.module(pipe.init(0))(torch.zeros(1, 4)).shape
        torch.Size([1, 2])
        """
        known = {m.params: m for m in self.models}
        if params not in known:
            raise ConfigError(f"this pipeline has no model {params!r}{did_you_mean(params, known)}")
        m = known[params]
        state = self.whole(state)
        return m.module.whole({k: t.clone() for k, t in {**state[m.params], **state[m.buffers]}.items()})

    def weights(self, state: State | Mapping[str, Any]) -> dict[str, Tensor]:
        """The weights of the first model in a State, or in its tree, as its `load_state_dict` takes them."""
        return self.models[0].state_dict(state)

    # -- training as a function

    def measured(self, state: State, batch: Batch) -> dict[str, Tensor]:
        """The metrics of one batch in eval mode, as tensors on the device; a loss keeps its gradient.

        What `evaluate` gives for one batch, but for metrics that are taken on the host.
        """
        metrics: dict[str, Tensor] = self.finish(self.sums(state.tree, self.place.batch(batch))[0])
        return metrics

    def unroll(self, state: State, batches: Iterable[Batch]) -> tuple[State, dict[str, Tensor]]:
        """A step on each of some batches, as one function: the last State, and each metric stacked, (steps, ...).

        It can be differentiated and mapped, by torch.func or the tape, with respect to hyperparameters and first
        weights: `pipe.unroll(state.with_hyper(lr=lr).replace(params=params), batches)`. Raises ConfigError without
        batches, and StageError where a backward of it goes by the tape, through which there is no second gradient.

        >>> from pipeline import Pipeline, backward, forward, loss, models, update
        >>> pipe = Pipeline(forward.model(lambda: models.mlp(2, 1)), loss.mse(), backward.gradients(), update.sgd(0.1))
        >>> state, batch = pipe.init(0), {"inputs": torch.ones(4, 2), "targets": torch.zeros(4)}
        >>> def after(lr):
        ...     trained, _ = pipe.unroll(state.with_hyper(lr=lr), [batch] * 3)
        ...     return pipe.measured(trained, batch)["loss"]
        >>> torch.func.grad(after)(torch.tensor(0.1)).shape
        torch.Size([])
        """
        rows: list[dict[str, Tensor]] = []
        for batch in batches:
            self._check_route(state)
            state, metrics = self.step(state, batch)
            rows.append(metrics)
        self._check_route(state)  # the first step may have changed it
        if not rows:
            raise ConfigError("unroll() needs at least one batch")
        return state, {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def _check_route(self, state: State) -> None:
        """Raise StageError where steps that go by the tape would be differentiated or mapped."""
        for s in self.graph:
            if isinstance(s, Gradients) and s.taken == "tape":
                inside = torch._C._functorch.peek_interpreter_stack() is not None
                if inside or any(t.requires_grad for t in pytree.tree_leaves(state.tree)):
                    why = "goes by the tape, through which an unrolled run has no gradient and no map"
                    raise StageError(s.name, why)
