"""Compiled: a pipeline's step and its evaluation as compiled graphs: what a user holds.

A pipeline can't change, so nothing is guarded at a call; what could differ, the shapes and dtypes of the batch, is
looked up here. State is donated: its tensors stay where the programs read and write them, so K steps are one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pipeline import evaluate
from pipeline.compile.backends.library import return_memory
from pipeline.compile.backends.program import Run
from pipeline.compile.batches import Feed, Feeds, Signature, given_feed, given_inputs, resident_feed
from pipeline.compile.donation import Held
from pipeline.compile.flatten import EVALUATION, TRAIN, Kind, listed
from pipeline.compile.id_checks import Checked
from pipeline.compile.programs import Backend, Fallback, Programs
from pipeline.compile.report import CompileReport
from pipeline.description import Description
from pipeline.errors import CaptureError, ConfigError, StageError
from pipeline.mesh import Shard
from pipeline.programs import data
from pipeline.programs import evaluate as run
from pipeline.programs.mesh import total
from pipeline.programs.program import Program
from pipeline.programs.single import build_modules
from pipeline.resident import Resident
from pipeline.stage import is_count
from pipeline.state import Batch, State

Steps: TypeAlias = int | Literal["epoch"]
Metrics: TypeAlias = dict[str, Tensor]
Subject: TypeAlias = tuple[Kind, tuple[Tensor, ...]]
"""Which program, and the tensors that it works on besides those of a feed."""

_LARGE = 2**26
"""Bytes of a State from which on it is worth the time to give memory back to the system."""


class Compiled:
    """A pipeline's step as one graph: `state, metrics = compiled(state, batch)`.

    - `steps`: how many steps a call does, on the pipeline's own data: a number or "epoch". Then `compiled(state)` takes
      no batch, goes on where `state.step` says, and returns each metric stacked, (steps, ...).
    - `donate`: the State passed in is used up, and raises an error when it is used again.
    - `backend`: what torch.compile compiles by: "native", our engine for a CPU, "inductor", or any name or callable
      that torch takes. "auto" is native on a CPU, and inductor elsewhere and for what native can't do.
    - `fallback`: what to do where no backend can: "error" raises CaptureError, "eager" runs the same functions
      uncompiled, with one warning.

    Without a batch, the data set is placed on the device once, and the gather is part of the graph. A batch of other
    shapes makes one more graph, counted in `report`, and from the third on one of symbolic sizes. A new program is run
    once on copies, beside the plain functions, before it is used. The native backend's are kept on disk (see
    pipeline.compile.cache).
    """

    def __init__(
        self,
        program: Program,
        *,
        steps: Steps = 1,
        donate: bool = True,
        backend: Backend = "auto",
        fallback: Fallback = "error",
    ) -> None:
        if steps != "epoch" and not is_count(steps):
            raise ConfigError(f"steps={steps!r} is neither a positive whole number nor 'epoch'")
        self.program, self.steps, pipe = program, steps, program.pipe
        self._places = pipe.place.mesh is not None or pipe.place.device.type != "cpu"
        build_modules(pipe)
        self._programs = Programs(program, backend, fallback)
        self._feeds = Feeds(program)
        if steps != 1:
            self._feeds.own()
        self._held = Held(program, donate)
        self._runs: dict[Signature, Run] = {}
        self._names: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Of which pipeline, and what was compiled: `Compiled(3 graphs by native, of Pipeline(...))`."""
        graphs = self.report.graphs
        by = f" by {' and '.join(sorted({g.backend for g in graphs}))}" if graphs else ""
        made = "runs uncompiled" if self.report.fallback else f"{len(graphs)} graph{'s' * (len(graphs) != 1)}{by}"
        return f"Compiled({made}, of {self.pipe!r})"

    @property
    def pipe(self) -> Description:
        return self.program.pipe

    @property
    def resident(self) -> bool:
        """Whether the pipeline's own data set is on the device as a whole, so that the graph gathers its batches."""
        return self._feeds.resident

    @property
    def doing(self) -> str:
        """What is being compiled, for who waits."""
        return self._programs.doing

    @property
    def seconds(self) -> float:
        """How long compiling took so far."""
        return self._programs.seconds

    @property
    def report(self) -> CompileReport:
        """What was compiled so far."""
        return self._programs.report

    def __call__(self, state: State, batch: Batch | None = None) -> tuple[State, Metrics]:
        if self.steps == 1:
            return self.step(state, batch)
        if batch is not None:
            raise ConfigError(f"a call of {self.steps} steps reads the pipeline's own data: leave out the batch")
        return self._go_on(state, self._feeds.batches if self.steps == "epoch" else self.steps)

    def step(self, state: State, batch: Batch | Shard | None = None) -> tuple[State, Metrics]:
        """The new State and the batch's metrics, 0-d tensors on the device; the batch is placed there if it is not.

        Without a batch: of the pipeline's own data, at `state.step`.
        """
        if batch is None:
            state, metrics = self._go_on(state, 1)
            return state, {name: m[0] for name, m in metrics.items()}
        if self._programs.reason is not None:
            return run.step(self.program, state, batch)
        self._take(state)
        if isinstance(batch, Shard):
            shard = batch
        elif self._places or not all(isinstance(value, Tensor) for value in batch.values()):
            shard = data.placed(self.pipe, batch)
        else:
            shard = Shard(batch)
        try:
            given, signature = given_inputs(self._names or tuple(shard.values), shard)
        except CaptureError as e:
            self._programs.fall_back(e)
            return run.step(self.program, state, shard)
        bound = self._runs.get(signature)
        if bound is None:
            names = self._names or tuple(shard.values)
            bound = self._bound(self._trained(), given_feed(names, shard), signature)
            if bound is None:
                return run.step(self.program, state, shard)
            self._names = names
        try:  # in the place of `kept`, whose context costs a microsecond
            made = bound.run(listed(given))
        except StageError:
            self._held.failed()
            raise
        return self._held.give(1), {o.name: m for o, m in zip(bound.outputs, made, strict=True)}

    def advance(
        self, state: State, epoch: int, start: int, count: int, *, results: bool = False
    ) -> tuple[State, Metrics]:
        """`count` steps on the pipeline's own data, from batch `start` of an epoch on, which must have as many.

        Returns the new State and, where `results`, each metric stacked: (count, ...).
        """
        if self._programs.reason is None:
            home = self._feeds.home
            self._take(state)
            bound = {size: self._own(home, size) for size in home.sizes(start, count)}
        if self._programs.reason is not None:
            return self._eagerly(state, epoch, start, count)
        parts: list[Metrics] = []
        permute = getattr(next(iter(bound.values())), "permute", None)
        with self._held.kept(any(isinstance(own, Checked) for own in bound.values()) and count > 1):
            for size, steps in home.walk(self._held.key(), epoch, start, count, permute):
                own = bound[size]
                assert own is not None
                rows = own.run(steps=steps, results=results)
                parts.append({o.name: row for o, row in zip(own.outputs, rows, strict=results)})
        return self._held.give(count), _joined(parts)

    def step_each(self, state: State, batches: Sequence[Batch]) -> State:
        """A step on each of some placed batches of one shape, in one call: they are stacked on the device before it."""
        if len(batches) > 1 and self._programs.reason is None:
            self._take(state)
            stack, key = self._feeds.stack(batches)
            bound = self._bound(self._trained(), resident_feed(stack, stack.load.size), key)
            if bound is not None:
                with self._held.kept(isinstance(bound, Checked)):
                    for _, steps in stack.walk(0, 0, 0, len(batches)):
                        bound.run(steps=steps, results=False)
                return self._held.give(len(batches))
        for batch in batches:
            state, _ = self.step(state, batch)
        return state

    def evaluate(self, state: State, of: Any = None) -> dict[str, Any]:
        """`Pipeline.evaluate` with each batch as one compiled graph, but where a metric is taken on the host."""
        if self.pipe.host_metrics:
            return run.evaluate(self.program, state, of)
        source = data.source(self.pipe, of)
        if self._programs.reason is None:
            subject = self._measured(state)
            for feed, steps in self._feeds.epoch(source, False):
                # Data sets of one shape share a program, but are bound each for itself.
                bound = self._bound(subject, feed, (EVALUATION, *feed.signature, *map(id, feed.static)))
                if bound is None:
                    break
                bound.run(listed(feed.given), steps=steps)
        if self._programs.reason is not None:
            return run.evaluate(self.program, state, of)
        spec, sums = self._zeros
        return evaluate.read(self.program.finish(total(self.program, pytree.tree_unflatten(list(sums), spec))))

    def restart_metrics(self, state: State) -> State:
        """`Pipeline.restart_metrics`, in place."""
        self._take(state)
        for t in run.of_an_epoch(self.program, self._held.tree):
            t.zero_()
        return self._held.give(0)

    def prepare(self, state: State, *validate: Any) -> CompileReport:
        """Compile now what a run will need, where its data tell their shapes: full and last batches, and validation."""
        self._take(state)
        wanted: list[tuple[Subject, Feed]] = []
        if self.pipe.load is not None and self.pipe.load.known:
            wanted += [(self._trained(), feed) for feed in self._feeds.kinds(self.pipe.load, True)]
        for source in [data.source(self.pipe, of) for of in validate if of is not None and not self.pipe.host_metrics]:
            if source.known:
                subject = self._measured(state)
                wanted += [(subject, feed) for feed in self._feeds.kinds(source, False)]
        # Each is begun before any is waited for: their C++ is compiled together.
        begun = [self._programs.request(*subject, feed) for subject, feed in wanted]
        all(begun) and all(self._programs.finish(*subject, feed) for subject, feed in wanted)
        if self.pipe.place.mesh is not None or sum(t.nbytes for t in self._held.leaves) > _LARGE:
            return_memory()  # the checks' copies, and what the compiler left
        return self.report

    def _take(self, state: State) -> None:
        if self._held.take(state):
            self._runs.clear()

    def _trained(self) -> Subject:
        return Kind(TRAIN, self._held.spec, len(self._held.leaves)), self._held.leaves

    @cached_property
    def _zeros(self) -> tuple[Any, list[Tensor]]:
        """Where an evaluation adds its sums up."""
        sums, spec = pytree.tree_flatten(self.program.zeros())
        return spec, sums

    def _measured(self, state: State) -> Subject:
        """An evaluation of a State, with sums that begin at zero."""
        spec, sums = self._zeros
        for t in sums:
            t.zero_()
        leaves = tuple([t.contiguous() for t in self._held.of(state)])
        return Kind(EVALUATION, self._held.spec, len(leaves), spec, len(sums)), (*leaves, *sums)

    def _bound(self, subject: Subject, feed: Feed, signature: Signature) -> Run | None:
        """A program bound to its tensors; None where steps run uncompiled."""
        kind, kept = subject
        # An evaluation may be of another State than the one that steps work on.
        held = all(a is b for a, b in zip(kept, self._held.leaves, strict=False)) and bool(self._held.leaves)
        bound = self._runs.get(signature) if held else None
        if bound is None:
            bound = self._programs.bind(kind, kept, feed)
            if bound is not None and held:
                self._runs[signature] = bound
        if bound is not None and feed.static:
            self._programs.look(kind, kept, feed)
        return bound

    def _own(self, home: Resident, size: int) -> Run | None:
        bound = self._runs.get((size,))
        return bound or self._bound(self._trained(), resident_feed(home, size, self.pipe.place.mesh), (size,))

    def _go_on(self, state: State, count: int) -> tuple[State, Metrics]:
        """So many steps from where the State is in its own data."""
        batches = self._feeds.batches
        parts: list[Metrics] = []
        while count:
            if self._programs.reason is None:
                self._take(state)
            epoch, start = self._held.position(state, batches)
            steps = min(count, batches - start)
            state, metrics = self.advance(state, epoch, start, steps, results=True)
            parts.append(metrics)
            count -= steps
        return state, _joined(parts)

    def _eagerly(self, state: State, epoch: int, start: int, count: int) -> tuple[State, Metrics]:
        own, rows = self._feeds.own(), []
        shards = data.ahead(self.pipe, data.epoch(self.program, own, self.program.seed(state.tree), epoch, start))
        for _ in range(count):
            state, metrics = run.step(self.program, state, next(shards))
            rows.append(metrics)
        return state, {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _joined(parts: list[Metrics]) -> Metrics:
    return parts[0] if len(parts) == 1 else {name: torch.cat([p[name] for p in parts]) for name in parts[0]}
