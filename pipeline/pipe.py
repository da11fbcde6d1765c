"""Pipeline: stages in order, and the functions of a State that they make."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pipeline.compile import Compiled
from pipeline.description import Description
from pipeline.errors import ConfigError, StageError, did_you_mean
from pipeline.programs import data
from pipeline.programs import evaluate as run
from pipeline.programs.hyper import hyper_values
from pipeline.programs.mesh import build, whole
from pipeline.programs.program import Program
from pipeline.programs.single import Single
from pipeline.random import transformed
from pipeline.state import Batch, State
from pipeline.tree import Tree


class Trainable:
    """A Pipeline, a Sweep or an Ensemble: the functions of its State."""

    @property
    def program(self) -> Program:
        """The functions that train and evaluate, as `fit` and `compile` take them."""
        raise NotImplementedError

    def init(self, seed: int = 0, *, steps: int | None = None, batch: Batch | None = None) -> State:
        """The first State, on the device.

        `steps` is the run's length, for schedules that ask for it; the data tells an epoch's. `batch` is an example
        for lazy modules, if the pipeline has no data of its own.
        """
        return self.program.init(seed, steps=steps, batch=batch)

    def step(self, state: State, batch: Batch | None = None) -> tuple[State, dict[str, Tensor]]:
        """One uncompiled train step: the new State and the batch's metrics, 0-d tensors on the device.

        Without a batch: on the batch of the pipeline's own data at `state.step`. A batch passes the stages before place
        too. Pure: neither argument changes. `pipe.compile()` gives the same function as one graph.
        """
        return run.step(self.program, state, batch)

    def evaluate(self, state: State, data: Any = None) -> dict[str, Any]:
        """Every metric over all of `data` (a Source, tensors, or an iterable of batches), exact, as Python numbers.

        In eval mode, without gradients; changes nothing. Without `data`, over the pipeline's own data set.
        """
        return run.evaluate(self.program, state, data)

    def compile(self, **options: Any) -> Compiled:
        """The same step as one compiled graph: see pipeline.compile.Compiled."""
        return Compiled(self.program, **options)

    def averaged(self, state: State) -> dict[str, State]:
        """For each average of weights in the pipeline ("ema", "swa"), the State to evaluate and to save.

        It has the average in the place of the weights, and shares its tensors with `state`. If an average has no
        BatchNorm statistics, they are computed over the pipeline's own data, by the forwards of one epoch.
        """
        return run.averaged(self.program, state)

    def refreshed(self, state: State, data: Any = None) -> State:
        """The same State with BatchNorm's running statistics recomputed over `data`, or the pipeline's own data.

        As torch.optim.swa_utils.update_bn: in train mode, and each batch has equal weight. Without `data`, the batches
        are those of an epoch, in its order and with its weights. A State of models without BatchNorm comes back as it
        is.
        """
        return run.refreshed(self.program, state, data)


class Pipeline(Description, Trainable):
    """An immutable sequence of stages. Raises WiringError if two do not fit.

    >>> import torch
    >>> from pipeline import Pipeline, forward, loss, models, update, backward
    >>> model = forward.model(lambda: models.mlp(4, 2))
    >>> pipe = Pipeline(model, loss.cross_entropy(), backward.gradients(), update.sgd(0.1))
    >>> state, metrics = pipe.step(pipe.init(seed=0), {"inputs": torch.zeros(8, 4), "targets": torch.arange(8) % 2})
    >>> sorted(metrics), int(state.step)
    (['loss'], 1)
    """

    @cached_property
    def program(self) -> Single:
        """The functions that train and evaluate, as `fit` and `compile` take them."""
        return build(self)

    # -- other views of a State

    def whole(self, state: State) -> State:
        """The State with whole tensors, gathered from the shards of a mesh; all processes have to call it."""
        return whole(self.program, state)

    def module(self, state: State, params: str = "params") -> nn.Module:
        """The model as a plain nn.Module with the weights of a State, in eval mode; it shares nothing with the State.

        `params` names the model, if there are several. Of an average: `pipe.module(pipe.averaged(state)["ema"])`.

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
        """The weights of the first model in a State, or in its tree, for its `load_state_dict`."""
        return self.models[0].state_dict(state)

    def hyper(self, tree: Mapping[str, Tree]) -> dict[str, dict[str, Tensor]]:
        """Hyperparameters of each stage at the step of a State's tree, schedules applied: 0-d float64."""
        return hyper_values(self.graph, tree)

    def results(self, state: State) -> dict[str, Any]:
        """The metrics of the steps since the epoch began, as Python numbers; waits for the device."""
        return run.results(self.program, state)

    def observed(self, state: State, metrics: Mapping[str, Any]) -> State:
        """The State after its schedules have seen an epoch's metrics, such as `reduce_on_plateau`; `fit` calls it.

        Pure: the State given stays as it is. Raises ConfigError if a schedule reads an unknown metric.
        """
        return run.observed(self.program, state, metrics)

    # -- training as a function

    def measured(self, state: State, batch: Batch) -> dict[str, Tensor]:
        """The metrics of one batch in eval mode, as tensors on the device; a loss keeps its gradient.

        The results of `evaluate` for one batch, without host metrics.
        """
        shard = data.placed(self.program, state.tree, batch, training=False)
        return self.program.finish(self.program.batch_sums(state.tree, shard, self.evaluation)[0])

    def unroll(self, state: State, batches: Iterable[Batch]) -> tuple[State, dict[str, Tensor]]:
        """A step on each of some batches, as one function: the last State, and each metric stacked, (steps, ...).

        It can be differentiated and mapped, by torch.func or the tape, with respect to hyperparameters and first
        weights: `pipe.unroll(state.with_hyper(lr=lr).replace(params=params), batches)`. Raises ConfigError without
        batches, and StageError if one of its backwards uses the tape, which has no second gradient.

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
        """Raise StageError if steps that go by the tape would be differentiated or mapped."""
        for s in (s for s in self.backwards if s.taken == "tape"):
            if transformed() or any(t.requires_grad for t in pytree.tree_leaves(state.tree)):
                raise StageError(s.name, "goes by the tape, through which an unrolled run has no gradient and no map")
