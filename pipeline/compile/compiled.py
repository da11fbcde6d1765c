"""Compiled: a pipeline's step and its evaluation as compiled graphs.

A pipeline can't change, so no call is guarded; the shapes and dtypes of a batch are looked up here. State is donated:
programs read and write its tensors in place, so K steps are one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, TypeAlias

from torch import Tensor
from torch.utils import _pytree as pytree

from pipeline import evaluate, memory
from pipeline.compile.backends.backend import Run
from pipeline.compile.batches import BatchInputs, DataSets, Signature, passed_batch, passed_tensors, resident_batch
from pipeline.compile.donation import Held
from pipeline.compile.flatten import EVALUATION, Subject, flat_tensors
from pipeline.compile.id_checks import Checked
from pipeline.compile.programs import Backend, Fallback, Programs
from pipeline.compile.report import CompileReport
from pipeline.compile.uncompiled import Metrics, Uncompiled, joined
from pipeline.element import is_count
from pipeline.errors import CaptureError, ConfigError, StageError
from pipeline.mesh import Shard
from pipeline.programs import data
from pipeline.programs import evaluate as run
from pipeline.programs.mesh import total
from pipeline.programs.program import Program
from pipeline.programs.single import build_modules
from pipeline.resident import Resident
from pipeline.state import Batch, State

Steps: TypeAlias = int | Literal["epoch"]


class Compiled:
    """A pipeline's step as one graph: `state, metrics = compiled(state, batch)`.

    - `steps`: steps a call, on the pipeline's own data: a number or "epoch". Then `compiled(state)` takes no batch,
      continues at `state.step`, and returns each metric stacked, (steps, ...).
    - `donate`: the State passed in is used up, and raises an error when it is used again.
    - `backend`: how to compile: "native", our engine for a CPU; "inductor"; or a name or callable that torch.compile
      takes. "auto" is native on a CPU; inductor elsewhere, and for programs that native refuses.
    - `fallback`: if no backend can, "error" raises CaptureError; "eager" runs the functions uncompiled, with a warning.
    - `eager_steps`: steps at a `State.step` below it run uncompiled. Meanwhile another process compiles what `prepare`
      asks for, if programs are kept (on a CPU, in Linux).

    Without a batch, the data set is placed on the device once, and the graph gathers from it. A batch of another shape
    compiles one more graph, counted in `report`; the third shape compiles one of symbolic sizes. A new program runs
    once on copies, beside the plain functions, before it is used. pipeline.compile.cache keeps the native backend's.
    """

    def __init__(
        self,
        program: Program,
        *,
        steps: Steps = 1,
        donate: bool = True,
        backend: Backend = "auto",
        fallback: Fallback = "error",
        eager_steps: int = 0,
    ) -> None:
        if steps != "epoch" and not is_count(steps):
            raise ConfigError(f"steps={steps!r} is neither a positive whole number nor 'epoch'")
        self.program, self.pipe, self.steps = program, program.pipe, steps
        self._places = bool(self.pipe.host) or self.pipe.place.mesh is not None or self.pipe.place.device.type != "cpu"
        build_modules(self.pipe)
        self._programs = Programs(program, backend, fallback)
        self._data = DataSets(program)
        if steps != 1:
            self._data.own()
        self._held = Held(program, donate)
        self._uncompiled = Uncompiled(program, self._data, eager_steps)
        self._runs: dict[Signature, Run] = {}
        self._names: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """As `Compiled(3 graphs by native, of Pipeline(...))`."""
        graphs = self.report.graphs
        by = f" by {' and '.join(sorted({g.backend for g in graphs}))}" if graphs else ""
        how = "runs uncompiled" if self.report.fallback else f"{len(graphs)} graph{'s' * (len(graphs) != 1)}{by}"
        return f"Compiled({how}, of {self.pipe!r})"

    @property
    def resident(self) -> bool:
        """Whether the pipeline's own data set stays on the device, so that the graph gathers its batches."""
        return self._data.resident

    @property
    def doing(self) -> str:
        """The current compilation, in words."""
        return self._uncompiled.doing or self._programs.builder.doing

    @property
    def seconds(self) -> float:
        """Seconds spent compiling so far."""
        return self._programs.builder.seconds + self._uncompiled.waited

    @property
    def report(self) -> CompileReport:
        """The graphs compiled so far."""
        return self._programs.report

    def __call__(self, state: State, batch: Batch | None = None) -> tuple[State, Metrics]:
        if self.steps == 1:
            return self.step(state, batch)
        if batch is not None:
            raise ConfigError(f"a call of {self.steps} steps reads the pipeline's own data: leave out the batch")
        return self._own_steps(state, self._data.batches if self.steps == "epoch" else self.steps)

    def step(self, state: State, batch: Batch | Shard | None = None) -> tuple[State, Metrics]:
        """The new State and the batch's metrics, 0-d tensors on the device; the batch is placed there if need be.

        Without a batch: on the batch of the pipeline's own data at `state.step`.
        """
        if batch is None:
            state, metrics = self._own_steps(state, 1)
            return state, {name: m[0] for name, m in metrics.items()}
        if self._programs.reason is not None or (self._uncompiled.steps and self._early(state)):
            return self._uncompiled.step(state, batch)
        self._take(state)
        if isinstance(batch, Shard):
            shard = batch
        elif self._places or not all(isinstance(value, Tensor) for value in batch.values()):
            shard = data.placed(self.program, self._held.tree, batch)
        else:
            shard = Shard(batch)
        try:
            given, signature = passed_tensors(self._names or tuple(shard.values), shard)
        except CaptureError as e:
            self._programs.fall_back(e)
            return self._uncompiled.step(state, shard)
        bound = self._runs.get(signature)
        if bound is None:
            names = self._names or tuple(shard.values)
            bound = self._bound(self._training(), passed_batch(names, shard), signature)
            if bound is None:
                return self._uncompiled.step(state, shard)
            self._names = names
        try:  # a `with` would cost a microsecond
            values = bound.run(flat_tensors(given))
        except StageError:
            self._held.failed()
            raise
        return self._held.give(1), {o.name: m for o, m in zip(bound.outputs, values, strict=True)}

    def advance(
        self, state: State, epoch: int, start: int, count: int, *, results: bool = False
    ) -> tuple[State, Metrics]:
        """`count` steps on the pipeline's own data, from batch `start` of an epoch on, which must have that many more:
        the new State and, if `results`, each metric stacked, (count, ...)."""
        early = self._early(state)
        if 0 < early < count:
            state, first = self.advance(state, epoch, start, early)
            state, rest = self.advance(state, epoch, start + early, count - early, results=results)
            return state, joined([first, rest] if results else [rest])
        if self._programs.reason is None and not early:
            home = self._data.home
            self._take(state)
            runs = {size: self._own_run(home, size) for size in home.sizes(start, count)}
        if self._programs.reason is not None or early:
            return self._uncompiled.advance(state, epoch, start, count)
        metrics: list[Metrics] = []
        permute = getattr(next(iter(runs.values())), "permute", None)
        with self._held.restored(any(isinstance(bound, Checked) for bound in runs.values()) and count > 1):
            for size, steps in home.walk(self._held.shuffled_by(), epoch, start, count, permute):
                bound = runs[size]
                assert bound is not None
                rows = bound.run(steps=steps, results=results)
                metrics.append({o.name: row for o, row in zip(bound.outputs, rows, strict=results)})
        return self._held.give(count), joined(metrics)

    def step_each(self, state: State, batches: Sequence[Batch]) -> State:
        """A step on each of some placed batches of one shape: stacked on the device, and done in one call."""
        if len(batches) > 1 and self._programs.reason is None and not self._early(state):
            self._take(state)
            stack, key = self._data.stack(batches)
            bound = self._bound(self._training(), resident_batch(stack, stack.load.size), key)
            if bound is not None:
                with self._held.restored(isinstance(bound, Checked)):
                    for _, steps in stack.walk(0, 0, 0, len(batches)):
                        bound.run(steps=steps, results=False)
                return self._held.give(len(batches))
        for batch in batches:
            state, _ = self.step(state, Shard(batch))
        return state

    def evaluate(self, state: State, of: Any = None) -> dict[str, Any]:
        """`Pipeline.evaluate` with each batch as one compiled graph; uncompiled if a metric is computed on the host."""
        if self.pipe.host_metrics or self._uncompiled.covers(state):
            return run.evaluate(self.program, state, of)
        source = data.source(self.pipe, of)
        if self._programs.reason is None:
            subject = self._evaluation(state)
            for inputs, steps in self._data.epoch(source, False):
                # Data sets of one shape share a program, but each is bound by itself.
                signature = (EVALUATION, *inputs.signature, *map(id, inputs.static))
                bound = self._bound(subject, inputs, signature)
                if bound is None:
                    break
                bound.run(flat_tensors(inputs.given), steps=steps)
        if self._programs.reason is not None:
            return run.evaluate(self.program, state, of)
        spec, sums = self._zeros
        return evaluate.read(self.program.finish(total(self.program, pytree.tree_unflatten(list(sums), spec))))

    def restart_metrics(self, state: State) -> State:
        """`Pipeline.restart_metrics`, in place."""
        if self._early(state):
            return run.restart_metrics(self.program, state)
        self._take(state)
        for t in run.of_an_epoch(self.program, self._held.tree):
            t.zero_()
        return self._held.give(0)

    def prepare(self, state: State, *validate: Any, steps: int | None = None) -> CompileReport:
        """Compile the graphs of a run in advance, if the shapes of its data are known: full and last batches, and
        validation. With `eager_steps`, another process does it; but none if the run ends at such a step, `steps`."""
        if not self._uncompiled.left(state):
            return self._prepare(state, validate)
        if steps is None or steps > self._uncompiled.steps:
            beside = state if self._programs.builder.keeps else None
            self._uncompiled.put_off(lambda first: self._prepare(first, validate), beside)
        return self.report

    def _early(self, state: State) -> int:
        """Steps from a State on without a graph."""
        return 0 if not self._uncompiled.steps or self._held.holds(state) else self._uncompiled.early(state)

    def _prepare(self, state: State, validate: tuple[Any, ...]) -> CompileReport:
        self._take(state)
        wanted: list[tuple[Subject, BatchInputs]] = []
        if self.pipe.load is not None and self.pipe.load.known:
            wanted += [(self._training(), inputs) for inputs in self._data.shapes(self.pipe.load, True)]
        for source in [data.source(self.pipe, of) for of in validate if of is not None and not self.pipe.host_metrics]:
            if source.known:
                subject = self._evaluation(state)
                wanted += [(subject, inputs) for inputs in self._data.shapes(source, False)]
        # Start all, then wait: their C++ is compiled together.
        started = [self._programs.request(subject, inputs) for subject, inputs in wanted]
        all(started) and all(self._programs.finish(subject, inputs) for subject, inputs in wanted)
        if self.pipe.place.mesh is not None or sum(t.nbytes for t in self._held.leaves) > memory.LARGE:
            memory.give_back()  # copies for checks, and the compiler's
        return self.report

    def _take(self, state: State) -> None:
        if self._held.take(state):
            self._runs.clear()

    def _training(self) -> Subject:
        return Subject(self._held.spec, self._held.leaves)

    @cached_property
    def _zeros(self) -> tuple[Any, list[Tensor]]:
        """The sums of an evaluation."""
        sums, spec = pytree.tree_flatten(self.program.zeros())
        return spec, sums

    def _evaluation(self, state: State) -> Subject:
        """An evaluation of a State, whose sums begin at zero."""
        spec, sums = self._zeros
        for t in sums:
            t.zero_()
        leaves = tuple([t.contiguous() for t in self._held.tensors(state)])
        return Subject(self._held.spec, leaves, spec, tuple(sums))

    def _bound(self, subject: Subject, inputs: BatchInputs, signature: Signature) -> Run | None:
        """A program bound to its tensors; None if steps run uncompiled."""
        # The State to evaluate may differ from the held one.
        leaves = self._held.leaves
        held = bool(leaves) and all(a is b for a, b in zip(subject.leaves, leaves, strict=True))
        bound = self._runs.get(signature) if held else None
        if bound is None:
            bound = self._programs.bind(subject, inputs)
            if bound is not None and held:
                self._runs[signature] = bound
        if bound is not None and inputs.static:
            self._programs.check_ids(subject, inputs)
        return bound

    def _own_run(self, home: Resident, size: int) -> Run | None:
        bound = self._runs.get((size,))
        return bound or self._bound(self._training(), resident_batch(home, size, self.pipe.place.mesh), (size,))

    def _own_steps(self, state: State, count: int) -> tuple[State, Metrics]:
        """Steps on the pipeline's own data, from batch number `state.step` on."""
        batches = self._data.batches
        metrics: list[Metrics] = []
        while count:
            if self._programs.reason is None and not self._early(state):
                self._take(state)
            epoch, start = self._held.position(state, batches)
            steps = min(count, batches - start)
            state, added = self.advance(state, epoch, start, steps, results=True)
            metrics.append(added)
            count -= steps
        return state, joined(metrics)
