"""Uncompiled: steps without a graph, at the beginning of a run, or of a pipeline that can't be compiled."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pipeline import beside
from pipeline.beside import Beside
from pipeline.compile.batches import DataSets
from pipeline.element import is_count
from pipeline.errors import ConfigError
from pipeline.mesh import Shard
from pipeline.programs import data
from pipeline.programs import evaluate as run
from pipeline.programs.program import Program
from pipeline.state import Batch, State

Metrics = dict[str, Tensor]


class Uncompiled:
    """Steps without a graph, at any State whose `step` is below `steps`: where they end does not depend on the time
    that compiling takes, so a run stays a function of its settings."""

    def __init__(self, program: Program, sets: DataSets, steps: int) -> None:
        if steps != 0 and not is_count(steps):
            raise ConfigError(f"eager_steps={steps!r} is neither a positive whole number nor 0")
        self.program, self.steps, self._sets = program, steps, sets
        self.waited = 0.0
        """Seconds spent waiting for the process that compiles."""
        self.doing = ""
        self._prepare: Callable[[State], Any] | None = None
        self._beside: Beside | None = None

    def left(self, state: State) -> int:
        """Steps from a State on without a graph."""
        return max(self.steps - int(state.step), 0)

    def covers(self, state: State) -> bool:
        """Whether all steps of a State are of these, so that its evaluation has no graph either."""
        return self.steps > 0 and int(state.step) <= self.steps

    def put_off(self, prepare: Callable[[State], Any], state: State | None) -> None:
        """Prepare graphs after the last of these steps; given a State, another process compiles them until then."""
        self._prepare = prepare
        if state is not None and self._beside is None and beside.possible():
            threads = torch.get_num_threads()

            def work() -> None:
                torch.set_num_threads(threads)  # it is a thread's own
                prepare(state)

            self._beside = Beside(work)

    def early(self, state: State) -> int:
        """`left`; prepares the graphs once it is 0."""
        if not (left := self.left(state)) and self._prepare is not None:
            prepare, self._prepare = self._prepare, None
            if self._beside is not None:
                began, self.doing = time.perf_counter(), "the graphs in another process"
                self._beside.wait()
                self.waited, self.doing = time.perf_counter() - began, ""
            prepare(state)
        return left

    def step(self, state: State, batch: Batch | Shard) -> tuple[State, Metrics]:
        after, metrics = run.step(self.program, state, batch)
        return _formed(after, state, self.left(state) == 1) if self.steps else after, metrics

    def advance(self, state: State, epoch: int, start: int, count: int) -> tuple[State, Metrics]:
        """`count` steps on the program's own data, and each metric stacked."""
        own, rows = self._sets.own(), []
        order = data.epoch(self.program, own, self.program.seed(state.tree), epoch, start)
        shards = data.ahead(self.program.pipe, order)
        for _ in range(count):
            state, metrics = self.step(state, next(shards))
            rows.append(metrics)
        return state, {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def joined(metrics: list[Metrics]) -> Metrics:
    """The stacked metrics of some steps, and of those after them."""
    return metrics[0] if len(metrics) == 1 else {name: torch.cat([m[name] for m in metrics]) for name in metrics[0]}


def _formed(state: State, before: State, last: bool) -> State:
    """A State with the strides of the one before, and with storage of its own for each tensor, as a graph needs it;
    the last one shares none with earlier States, as the graph writes in place."""
    (leaves, spec), olds = pytree.tree_flatten(state.tree), pytree.tree_leaves(before.tree)
    seen = {old.data_ptr() for old in olds if last}
    kept: list[Any] = []
    for t, old in zip(leaves, olds, strict=True):
        if t.stride() != old.stride() or t.data_ptr() in seen:
            t = torch.empty_strided(t.shape, old.stride(), dtype=t.dtype, device=t.device).copy_(t)
        if t.numel():
            seen.add(t.data_ptr())
        kept.append(t)
    return State(pytree.tree_unflatten(kept, spec))
