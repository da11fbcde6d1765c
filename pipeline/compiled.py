"""The compiled step: a pipeline's programs as graphs, compiled by Inductor, the compiler of torch.compile.

The step is first traced, with its gradients, into one flat graph of tensor operations over the leaves of State and the batch, and
that graph is compiled. A pipeline can't change, so nothing is guarded at a call; what could differ, the shapes and dtypes
of the batch, is checked here.

Donation: the new State is written into the old one's storage inside the graph; there is one copy of it, not two. And so
the same call can be made again and again on tensors that stay where they are: K steps are one call (see pipeline.native).
"""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, Protocol, TypeAlias

import torch
from attrs import frozen
from torch import Tensor
from torch.utils import _pytree as pytree

from pipeline import evaluate, package
from pipeline.compose import Pipeline
from pipeline.errors import CaptureError, ConfigError, StageError, StateError, WiringError
from pipeline.fingerprint import UnknownError, fingerprint
from pipeline.load import Load, Placed
from pipeline.native import Output
from pipeline.stage import describe, is_count
from pipeline.state import Batch, State

Signature: TypeAlias = tuple[Any, ...]
Fallback: TypeAlias = Literal["error", "eager"]
Steps: TypeAlias = int | Literal["epoch"]


class Bound(Protocol):
    """A program bound to the tensors that stay in place."""

    outputs: tuple[Output, ...]

    def run(self, batch: Sequence[Tensor] = ..., steps: int | None = ..., results: bool = ...) -> list[Tensor]: ...


class Program(Protocol):
    """What a graph was compiled to."""

    outputs: tuple[Output, ...]

    def bind(self, static: Sequence[Tensor], batch: int = ...) -> Bound: ...


@frozen
class Graph:
    """One compiled graph: which program, for which batch, of how many operations, and what it took."""

    program: str
    batch: str
    operations: int
    seconds: float
    loaded: bool = False
    """Whether it was compiled in an earlier process, and only loaded in this one."""

    def __str__(self) -> str:
        loaded = ", from the cache" if self.loaded else ""
        return f"{self.program} for {self.batch}: {self.operations} operations, {self.seconds:.1f} s{loaded}"


@frozen
class CompileReport:
    """What was compiled so far; `fallback` is the reason why steps run eagerly instead, if they do."""

    graphs: tuple[Graph, ...] = ()
    fallback: str | None = None
    unkept: str | None = None
    """Why this pipeline's programs can't be kept on disk, if so."""

    @property
    def seconds(self) -> float:
        return sum(g.seconds for g in self.graphs)

    def __str__(self) -> str:
        lines = [str(g) for g in self.graphs]
        lines += [f"runs uncompiled: {self.fallback}"] if self.fallback else []
        lines += [f"not kept on disk: {self.unkept}"] if self.unkept else []
        return "\n".join(lines)


@frozen(eq=False)
class Feed:
    """Where a program's batch comes from: tensors that stay in place, or that are given with each call."""

    signature: Signature
    batch: str
    """In words."""
    static: tuple[Tensor, ...]
    given: tuple[Tensor, ...]
    read: Callable[[Sequence[Tensor]], tuple[Batch, list[Tensor]]]
    """From these tensors, the batch, and what the last ones of them become."""


DATA_SETS = 8
"""How many data sets stay on the device, the pipeline's own among them."""

_BUILDER = ThreadPoolExecutor(1)
"""The C++ compiler of one graph works while the next is traced."""

_OWN_DATA = (
    "a data set of tensors in memory that fits on the device, and no stages before place: use load.batches() with tensors, "
    "or pass each batch"
)


class Compiled:
    """A pipeline's step as one graph: `state, metrics = compiled(state, batch)`.

    - `steps`: how many steps a call does, on the pipeline's own data: a number or "epoch". Then `compiled(state)` takes no
      batch, goes on where `state.step` says, and returns each metric stacked, (steps, ...).
    - `donate`: the State passed in is used up, and raises an error when it is used again.
    - `fallback`: what to do with a model that can't be captured, or without a C++ compiler: "error" raises CaptureError, "eager"
      runs the same functions uncompiled, with one warning.

    Without a batch, the data set is placed on the device once, and the order and the gather are part of the graph. A batch of
    other shapes makes one more graph, counted in `report`. Graphs for a CPU are kept on disk (see pipeline.package).
    """

    def __init__(self, pipe: Pipeline, *, steps: Steps = 1, donate: bool = True, fallback: Fallback = "error") -> None:
        if fallback not in ("error", "eager"):
            raise ConfigError(f"fallback={fallback!r} is unknown; use 'error' or 'eager'")
        if steps != "epoch" and not is_count(steps):
            raise ConfigError(f"steps={steps!r} is neither a positive whole number nor 'epoch'")
        self.pipe = pipe
        self.steps = steps
        self.donate = donate
        self.fallback = fallback
        self._graphs: list[Graph] = []
        self._reason: str | None = None
        self._unkept: str | None = None
        self._stages: str | None = None
        self.resident = pipe.load is not None and self._can_place(pipe.load)
        """Whether the pipeline's own data set can be on the device as a whole, so that the graph gathers its batches."""
        if steps != 1:
            self._own()
        self._programs: dict[Signature, Future[Program]] = {}
        self._bound: dict[Signature, Bound] = {}
        self._placed: dict[Signature, Placed] = {}
        self._current: State | None = None
        self._tree: Any = None
        self._leaves: tuple[Tensor, ...] = ()
        self._spec: Any = None
        self._signature: Signature = ()
        self._sums: tuple[Tensor, ...] = ()
        self._sums_spec: Any = None
        self._batch_names: tuple[str, ...] = ()
        self._done: int | None = None
        self._seed: int | None = None

    @property
    def report(self) -> CompileReport:
        """What was compiled so far."""
        return CompileReport(tuple(self._graphs), self._reason, self._unkept)

    def __call__(self, state: State, batch: Batch | None = None) -> tuple[State, dict[str, Tensor]]:
        if self.steps == 1:
            return self.step(state, batch)
        if batch is not None:
            raise ConfigError(f"a call of {self.steps} steps reads the pipeline's own data: leave out the batch")
        return self._go_on(state, self._own().batches or 0 if self.steps == "epoch" else self.steps)

    def step(self, state: State, batch: Batch | None = None) -> tuple[State, dict[str, Tensor]]:
        """The new State and the batch's metrics, 0-d tensors on the device, which the batch must be on.

        Without a batch: of the pipeline's own data, at `state.step`.
        """
        if batch is None:
            state, metrics = self._go_on(state, 1)
            return state, {name: m[0] for name, m in metrics.items()}
        if self._reason is not None:
            return self.pipe.step(state, batch)
        self._take(state)
        inputs, signature = self._given(batch)
        bound = self._bound.get(signature)
        if bound is None:
            names = self._batch_names or tuple(batch)
            bound = self._bind("train step", _given_feed(names, batch))
            if bound is None:
                return self.pipe.step(state, batch)
            self._batch_names = names
        made = bound.run(inputs)
        return self._give(1), {o.name: m for o, m in zip(bound.outputs, made, strict=True)}

    def advance(
        self, state: State, epoch: int, start: int, count: int, *, results: bool = False
    ) -> tuple[State, dict[str, Tensor]]:
        """`count` steps on the pipeline's own data, from batch `start` of an epoch on, which must have as many.

        Returns the new State and, where `results`, each metric stacked: (count, ...).
        """
        own = self._own()
        if self._reason is None:
            self._take(state)
            placed = self._place(own)
            stretches = [(self._bind_own(placed, size), steps) for size, steps in placed.stretches(start, count)]
        if self._reason is not None:
            return self._eagerly(state, epoch, start, count)
        if self._seed is None:
            self._seed = int(self._tree["seed"])
        placed.seek(self._seed, epoch, start)
        parts: list[dict[str, Tensor]] = []
        for bound, steps in stretches:
            assert bound is not None
            rows = bound.run(steps=steps, results=results)
            parts.append({o.name: row for o, row in zip(bound.outputs, rows, strict=results)})
        return self._give(count), _joined(parts)

    def evaluate(self, state: State, data: Any = None) -> dict[str, Any]:
        """`Pipeline.evaluate` with each batch as one compiled graph."""
        source = self.pipe.over(data)
        if self._reason is None:
            leaves = self._measured(state)
            for feed, steps in self._feeds(source, False):
                bound = self._bind("evaluation", feed, leaves)
                if bound is None:
                    break
                bound.run(feed.given, steps=steps)
        if self._reason is not None:
            return self.pipe.evaluate(state, data)
        return evaluate.read(self.pipe.finish(pytree.tree_unflatten(list(self._sums), self._sums_spec)))

    def restart_metrics(self, state: State) -> State:
        """`Pipeline.restart_metrics`, in place."""
        self._take(state)
        for s in self.pipe.metrics:
            for t in pytree.tree_leaves(self._tree["memory"][s.name]):
                t.zero_()
        return self._give(0)

    def prepare(self, state: State, validate: Any = None) -> CompileReport:
        """Compile now what a run will need, where its data tell their shapes: full and last batches, and validation."""
        self._take(state)
        pending = []
        if self.pipe.load is not None and self.pipe.load.known:
            pending += [self._program("train step", feed, self._leaves) for feed in self._kinds(self.pipe.load, True)]
        if validate is not None and self.pipe.over(validate).known:
            leaves = self._measured(state)
            pending += [
                self._program("evaluation", feed, leaves) for feed in self._kinds(self.pipe.over(validate), False)
            ]
        for program in pending:
            self._finished(program)
        return self.report

    # -- where batches come from

    def _own(self) -> Load:
        if self.pipe.load is None or not self.resident:
            raise WiringError(f"steps without batches need {_OWN_DATA}")
        return self.pipe.load

    def _can_place(self, source: Load) -> bool:
        if self.pipe.host or not source.in_memory:
            return False
        asked = source is self.pipe.load and source is not self.pipe.stages[0]  # it stands after place
        return asked or self.pipe.place.fits(source.data.tensors.values())

    def _place(self, source: Load) -> Placed:
        """A data set on the device, once."""
        places = [(t.data_ptr(), t.shape, t.stride(), t.dtype) for t in source.data.tensors.values()]
        data = (source.data.names, *places)  # a mapping of tensors is made a new Source each time
        key = (data, source.size, source.shuffle)
        if key not in self._placed:
            if len(self._placed) >= DATA_SETS:
                self._placed = {k: p for k, p in self._placed.items() if p.load is self.pipe.load}
                self._bound.clear()
            copies = [p.tensors for (d, *_), p in self._placed.items() if d == data]
            self._placed[key] = Placed.on(self.pipe.place.tree, source, *copies[:1])
        return self._placed[key]

    def _feeds(self, source: Load, training: bool) -> Iterator[tuple[Feed, int | None]]:
        """An epoch as feeds, and for how many steps each serves."""
        if self._can_place(source):
            placed = self._place(source)
            placed.seek(0, 0, 0)
            for size, steps in placed.stretches(0, source.batches or 0):
                yield _own_feed(placed, size), steps
            return
        for batch in self.pipe.place.ahead(self.pipe.prepared(b, training) for b in source.epoch(0, 0)):
            yield _given_feed(tuple(batch), batch), None

    def _kinds(self, source: Load, training: bool) -> list[Feed]:
        """One feed for each shape of batch that a known data set has."""
        if self._can_place(source):
            return [feed for feed, _ in self._feeds(source, training)]
        feeds = [_given_feed(tuple(b), b) for b in self.pipe.first_and_last(source, training)]
        return list({feed.signature: feed for feed in feeds}.values())

    def _given(self, batch: Batch) -> tuple[tuple[Tensor, ...], Signature]:
        """A batch as inputs, under the names that the step was first called with."""
        try:
            # Graphs are made for contiguous batches: strides are not looked at.
            inputs = tuple([batch[name].contiguous() for name in self._batch_names or batch])
        except KeyError as e:
            raise StateError(
                f"the batch has no {e.args[0]!r}; batches of one compiled step have the same names"
            ) from None
        return inputs, tuple([(t.shape, t.dtype, t.device) for t in inputs])

    # -- State in and out

    def _take(self, state: State) -> None:
        """Let the leaves of a State be what the programs read and write."""
        tree = state.tree  # raises where the State was donated, before anything is written
        if state is self._current:
            return
        leaves = self._leaves_of(state)
        if not self.donate:
            leaves = [t.clone() for t in leaves]
        elif _share_storage(leaves):
            raise StateError(
                "two tensors of the State share their storage, so it can't be donated; make the State with state.clone() "
                "first"
            )
        places = {t.data_ptr() for t in self._leaves}
        new = [(there, t) for there, t in zip(self._leaves, leaves, strict=False) if t is not there]
        if len(new) == len(self._leaves) or any(t.data_ptr() in places for _, t in new):
            self._leaves = tuple(leaves)
            self._tree = pytree.tree_unflatten(leaves, self._spec)
            self._bound.clear()
            self._done = self._seed = None
        else:  # a State made from the last one, as with another lr: what is new in it moves to where the programs look
            for there, t in new:
                there.copy_(t)
            if tree["step"] is not self._tree["step"]:
                self._done = None
            self._seed = None
        self._current = state

    def _leaves_of(self, state: State) -> list[Tensor]:
        """The tensors of a State, which must be like the first one seen."""
        leaves, spec = pytree.tree_flatten(state.tree)
        if any(not t.is_contiguous() and t.clone().stride() != t.stride() for t in leaves):
            raise StateError("a tensor of the State has gaps in its storage; make the State with state.clone() first")
        signature = tuple((t.shape, t.stride(), t.dtype, t.device) for t in leaves)
        if self._spec is None:
            self.pipe.check_state(state)
            self._spec, self._signature = spec, signature
        elif spec != self._spec or signature != self._signature:
            self.pipe.check_state(state)
            raise StateError(
                "the State has other shapes, dtypes or devices than the one this step was compiled for; compile anew"
            )
        return leaves

    def _give(self, steps: int) -> State:
        """The State after so many steps; the one taken is spent."""
        assert self._current is not None
        if self._done is not None:
            self._done += steps
        state = self._current.spend(self._tree) if self.donate else State(self._tree)
        self._current = state if self.donate else None
        if not self.donate:
            self._leaves = ()
        return state

    def _go_on(self, state: State, count: int) -> tuple[State, dict[str, Tensor]]:
        """So many steps from where the State is in its own data."""
        batches = self._own().batches or 0
        parts: list[dict[str, Tensor]] = []
        while count:
            if self._reason is None:
                self._take(state)
            if self._reason is not None or self._done is None or not self.donate:
                self._done = int(state.step)
            epoch, start = divmod(self._done, batches)
            steps = min(count, batches - start)
            state, metrics = self.advance(state, epoch, start, steps, results=True)
            parts.append(metrics)
            count -= steps
        return state, _joined(parts)

    def _eagerly(self, state: State, epoch: int, start: int, count: int) -> tuple[State, dict[str, Tensor]]:
        own, rows = self._own(), []
        batches = own.epoch(int(state["seed"]), epoch, start)
        for _ in range(count):
            state, metrics = self.pipe.step(state, next(batches))
            rows.append(metrics)
        return state, {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def _measured(self, state: State) -> tuple[Tensor, ...]:
        """The leaves that an evaluation reads: State's, and sums, which begin at zero."""
        if not self._sums:
            sums, self._sums_spec = pytree.tree_flatten(self.pipe.zeros())
            self._sums = tuple(sums)
        for t in self._sums:
            t.zero_()
        return (*[t.contiguous() for t in self._leaves_of(state)], *self._sums)

    # -- programs

    def _bind(self, program: str, feed: Feed, leaves: tuple[Tensor, ...] | None = None) -> Bound | None:
        """A program bound to State's leaves, or None where it falls back."""
        # Data sets of one shape share a program, but are bound each for itself.
        signature = (*feed.signature, *map(id, feed.static), *([program] if leaves else []))
        own = self._leaves if leaves is None else leaves[: len(self._leaves)]
        current = leaves is None or (bool(own) and all(a is b for a, b in zip(own, self._leaves, strict=True)))
        bound = self._bound.get(signature) if current else None
        if bound is None:
            leaves = self._leaves if leaves is None else leaves
            made = self._finished(self._program(program, feed, leaves))
            if made is None:
                return None
            bound = made.bind((*leaves, *feed.static), len(feed.given))
            if current:
                self._bound[signature] = bound
        return bound

    def _bind_own(self, placed: Placed, size: int) -> Bound | None:
        key = ("own", size)
        if key not in self._bound:
            bound = self._bind("train step", _own_feed(placed, size))
            if bound is None:
                return None
            self._bound[key] = bound
        return self._bound[key]

    def _program(self, program: str, feed: Feed, leaves: tuple[Tensor, ...]) -> Future[Program]:
        """A program, perhaps still being compiled."""
        signature = (program, *feed.signature)
        if signature not in self._programs:
            self._programs[signature] = self._compile(program, feed, leaves)
        return self._programs[signature]

    def _finished(self, program: Future[Program]) -> Program | None:
        try:
            return program.result()
        except (CaptureError, StageError) as e:  # where a stage itself is at fault, the eager step will say so
            if self.fallback == "error":
                raise
            if self._reason is None:
                self._reason = str(e)
                warnings.warn(f"steps run uncompiled: {e}", stacklevel=5)
            return None

    def _compile(self, program: str, feed: Feed, leaves: tuple[Tensor, ...]) -> Future[Program]:
        start = time.perf_counter()
        done: Future[Program] = Future()
        identity = self._identity(program, feed, leaves)
        found = package.find(identity) if identity is not None else None
        if found is not None:
            try:
                done.set_result(found.load())
            except OSError:  # a folder that nothing may be run from: compiled for this process alone
                identity = None
            else:
                self._record(program, feed, found.operations, start, loaded=True)
                return done
        args = (*leaves, *feed.static, *feed.given)
        try:
            from pipeline import lower  # takes a second, which a step from the cache does without
            from pipeline.trace import trace, watched

            names: list[str] = []
            graph = trace(self._function(watched(self.pipe), program, feed, len(leaves), names), args)
            operations = sum(node.op == "call_function" for node in graph.graph.nodes)
            outputs = lower.outputs(graph, names)
            if args[0].device.type != "cpu":
                done.set_result(lower.Launched(lower.kernels(graph, args), outputs))
                self._record(program, feed, operations, start)
                return done
            texts = lower.source(graph, args)
        except (CaptureError, StageError) as e:
            done.set_exception(e)
            return done
        facts = {"program": program, "batch": feed.batch, "operations": operations, "outputs": outputs}

        def build() -> Program:
            made = package.make(identity, lambda folder: lower.build(texts, folder), **facts)
            try:
                ready = made.load()
            except OSError:  # a cache folder that nothing may be run from
                ready = package.make(None, lambda folder: lower.build(texts, folder), **facts).load()
            self._record(program, feed, operations, start)
            return ready

        return _BUILDER.submit(build)

    def _record(self, program: str, feed: Feed, operations: int, start: float, loaded: bool = False) -> None:
        self._graphs.append(Graph(program, feed.batch, operations, time.perf_counter() - start, loaded))

    def _function(self, pipe: Pipeline, program: str, feed: Feed, n: int, names: list[str]) -> Callable[..., Any]:
        """A program as a function of a flat list of tensors, which writes its results into them and returns metrics."""
        spec, sums_spec, after = self._spec, self._sums_spec, n + len(feed.static)
        count = n - len(self._sums) if program == "evaluation" else n

        def function(*flat: Tensor) -> tuple[Tensor, ...]:
            state = pytree.tree_unflatten(flat[:count], spec)
            batch, moved = feed.read(flat[n:])
            if program == "evaluation":
                sums = pytree.tree_unflatten(flat[count:n], sums_spec)
                kept, new = flat[count:n], pytree.tree_leaves(pipe.measure(state, sums, batch))
                metrics: dict[str, Tensor] = {}
            else:
                tree, metrics = pipe.train(state, batch)
                new, new_spec = pytree.tree_flatten(tree)
                if new_spec != spec:
                    raise StateError("a step must return a State of the structure that it was given")
                kept = flat[:n]
            names[:] = metrics
            given = {t.untyped_storage()._cdata for t in flat[:n]}
            results = [_read_first(t, given, state["step"]) for t in metrics.values()]
            _write((*kept, *flat[after - len(moved) : after]), (*new, *moved), given, state["step"])
            return tuple(t.contiguous().clone() for t in results)

        return function

    def _identity(self, program: str, feed: Feed, leaves: tuple[Tensor, ...]) -> dict[str, Any] | None:
        """All that a compiled program depends on; None where it can't be told, or is not kept on disk."""
        if leaves[0].device.type != "cpu" or self._unkept is not None:
            return None
        try:
            if self._stages is None:
                self._stages = fingerprint(self.pipe.stages)
        except UnknownError as e:
            self._unkept = str(e)
            return None
        state = repr(
            (
                self._spec,
                self._sums_spec if program == "evaluation" else None,
                [(t.shape, t.stride(), t.dtype) for t in leaves],
            )
        )
        return {
            **package.machine(),
            "threads": torch.get_num_threads(),
            "settings": _settings(),
            "stages": self._stages,
            "state": hashlib.sha256(state.encode()).hexdigest()[:32],
            "program": program,
            "batch": repr(feed.signature),
        }


def _settings() -> str:
    """What torch was told about computing in general: a trace follows it, and so does Inductor."""
    words = ("TORCHINDUCTOR_", "TORCH_COMPILE", "CXX")
    # Inductor sets the folder of its own cache when it is imported; code does not depend on it.
    variables = {k: v for k, v in os.environ.items() if k.startswith(words) and k != "TORCHINDUCTOR_CACHE_DIR"}
    told = (
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
        torch.backends.mkldnn.enabled,
        sorted(variables.items()),
    )
    return repr(told)


def _given_feed(names: tuple[str, ...], batch: Batch) -> Feed:
    given = tuple(batch[name].contiguous() for name in names)
    signature = tuple([(t.shape, t.dtype, t.device) for t in given])
    return Feed(signature, describe(batch), (), given, lambda flat: (dict(zip(names, flat, strict=True)), []))


def _own_feed(placed: Placed, size: int) -> Feed:
    shapes = ", ".join(f"{name} {(size, *t.shape[1:])}" for name, t in placed.tensors.items())
    return Feed(placed.signature(size), f"{shapes} of its own {placed.n:,} samples", placed.static, (),
                lambda flat: placed.gather(size, flat))  # fmt: skip


def _write(old: Sequence[Tensor], new: Sequence[Tensor], given: set[int], step: Tensor) -> None:
    """Donation: each new leaf into the storage of the old one."""
    safe = [v if v is o else _read_first(v, given, step) for o, v in zip(old, new, strict=True)]
    for o, v in zip(old, safe, strict=True):
        if v is not o:
            # As one element: torch 2.13 drops a copy into a 0-d float64 input, silently.
            o.reshape(-1).copy_(v.reshape(-1)) if o.ndim == 0 else o.copy_(v)


def _read_first(value: Tensor, given: set[int], step: Tensor) -> Tensor:
    """A leaf that is another old leaf, as where a target network takes the weights over, read before that is written.

    A clone would not do: Inductor takes it for nothing, and reads the leaf when it is already the new one.
    """
    if value.untyped_storage()._cdata not in given:
        return value
    return torch.where(step >= 0, value, value.new_zeros(()))


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return parts[0] if len(parts) == 1 else {name: torch.cat([p[name] for p in parts]) for name in parts[0]}


def _share_storage(leaves: Sequence[Tensor]) -> bool:
    places = [t.data_ptr() for t in leaves if t.numel()]
    return len(set(places)) < len(places)
