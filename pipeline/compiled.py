"""The compiled step: a pipeline's programs as graphs of torch.compile. The only file that knows of it.

The step is first traced, with its gradients, into one flat graph of tensor operations over the leaves of State and the batch, and
that graph is compiled. Each graph is thus a code object of its own. A pipeline can't change, so Dynamo's guards, which
cost more than a small step, are skipped; what they would have watched, the shapes and dtypes, is checked here.

Donation: the new State is written into the old one's storage inside the graph; there is one copy of it, not two.
"""

from __future__ import annotations

import operator
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, cast

import torch
from attrs import frozen
from torch import Tensor
from torch._functorch import config as functorch_config
from torch._inductor.compile_fx import compile_fx, compile_fx_inner
from torch._inductor.output_code import CompiledFxGraph
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from pipeline.compose import Pipeline
from pipeline.errors import CaptureError, ConfigError, StageError, StateError
from pipeline.stage import Tree, describe, first_line
from pipeline.state import Batch, State
from pipeline.trace import trace, watched

Signature: TypeAlias = tuple[Any, ...]
Fallback: TypeAlias = Literal["error", "eager"]
Program: TypeAlias = Callable[..., Any]


@frozen
class Graph:
    """One compiled graph: which program, for which batch, of how many operations, and what it took."""

    program: str
    batch: str
    operations: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.program} for {self.batch}: {self.operations} operations, {self.seconds:.1f} s"


@frozen
class CompileReport:
    """What was compiled so far; `fallback` is the reason why steps run eagerly instead, if they do."""

    graphs: tuple[Graph, ...] = ()
    fallback: str | None = None

    @property
    def seconds(self) -> float:
        return sum(g.seconds for g in self.graphs)

    def __str__(self) -> str:
        lines = [str(g) for g in self.graphs]
        return "\n".join([*lines, f"runs uncompiled: {self.fallback}"] if self.fallback else lines)


class Compiled:
    """A pipeline's step as one graph: `state, metrics = compiled(state, batch)`.

    - `donate`: the State passed in is used up, and raises an error when it is used again.
    - `fallback`: what to do with a model that can't be captured, or without a C++ compiler: "error" raises CaptureError, "eager"
      runs the same functions uncompiled, with one warning.

    A batch of other shapes makes one more graph, counted in `report`.
    """

    def __init__(self, pipe: Pipeline, *, donate: bool = True, fallback: Fallback = "error") -> None:
        if fallback not in ("error", "eager"):
            raise ConfigError(f"fallback={fallback!r} is unknown; use 'error' or 'eager'")
        self.pipe = pipe
        self._traced = watched(pipe)
        self.donate = donate
        self.fallback = fallback
        self.report = CompileReport()
        self._programs: dict[Signature, Program] = {}
        self._measures: dict[Signature, Program] = {}
        self._current: State | None = None
        self._leaves: tuple[Tensor, ...] = ()
        self._spec: Any = None
        self._signature: Signature = ()
        self._batch_names: tuple[str, ...] = ()
        self._metrics: tuple[str, ...] = ()

    def __call__(self, state: State, batch: Batch) -> tuple[State, dict[str, Tensor]]:
        return self.step(state, batch)

    def step(self, state: State, batch: Batch) -> tuple[State, dict[str, Tensor]]:
        """The new State and the batch's metrics, 0-d tensors on the device, which the batch must be on."""
        if self.report.fallback is not None:
            return self.pipe.step(state, batch)
        state.tree  # noqa: B018  # raises where the State was donated, before anything is written
        if state is not self._current:
            self._adopt(state)
        inputs, signature = self._inputs(batch)
        program = self._programs.get(signature) or self._build(batch)
        if program is None:
            return self.pipe.step(state, batch)
        results = program(*self._leaves, *inputs)
        metrics = dict(zip(self._metrics, results, strict=False))
        if self.donate:
            self._current = state.spend()
            return self._current, metrics
        return State(pytree.tree_unflatten(results[len(self._metrics) :], self._spec)), metrics

    def evaluate(self, state: State, data: Any = None) -> dict[str, Any]:
        """`Pipeline.evaluate` with each batch as one compiled graph."""
        return self.pipe.measure_all(state, data, self._measure)

    def prepare(self, state: State, validate: Any = None) -> CompileReport:
        """Compile now what a run will need, where its data tell their shapes: full and last batches, and validation."""
        self._adopt(state)
        if self.pipe.load is not None:
            for batch in self.pipe.first_and_last(self.pipe.load, True):
                if self.report.fallback is None and self._inputs(batch)[1] not in self._programs:
                    self._build(batch)
        if validate is not None:
            for batch in self.pipe.first_and_last(self.pipe.over(validate), False):
                self._measure(state.tree, self.pipe.zeros(), batch)
        return self.report

    def _inputs(self, batch: Batch) -> tuple[tuple[Tensor, ...], Signature]:
        try:
            # Graphs are made for contiguous batches: strides are not looked at.
            inputs = tuple([batch[name].contiguous() for name in self._batch_names or batch])
        except KeyError as e:
            raise StateError(
                f"the batch has no {e.args[0]!r}; batches of one compiled step have the same names"
            ) from None
        return inputs, tuple([(t.shape, t.dtype, t.device) for t in inputs])

    # -- State in

    def _adopt(self, state: State) -> None:
        """Take the leaves of a State that this object did not make itself."""
        leaves, spec = pytree.tree_flatten(state.tree)
        signature = tuple((t.shape, t.stride(), t.dtype, t.device) for t in leaves)
        if self.donate and _share_storage(leaves):
            raise StateError(
                "two tensors of the State share their storage, so it can't be donated; make the State with state.clone() "
                "first"
            )
        if any(not t.is_contiguous() and t.clone().stride() != t.stride() for t in leaves):
            raise StateError("a tensor of the State has gaps in its storage; make the State with state.clone() first")
        if self._spec is None:
            self.pipe.check_state(state)
            self._spec, self._signature = spec, signature
        elif spec != self._spec or signature != self._signature:
            self.pipe.check_state(state)
            raise StateError(
                "the State has other shapes, dtypes or devices than the one this step was compiled for; compile anew"
            )
        self._current = state
        self._leaves = tuple(leaves)

    # -- graphs

    def _build(self, batch: Batch) -> Program | None:
        """The train step for batches like this one, or None where it falls back."""
        names = self._batch_names or tuple(batch)
        n = len(self._leaves)

        def step(*flat: Tensor) -> tuple[Tensor, ...]:
            state = pytree.tree_unflatten(flat[:n], self._spec)
            tree, metrics = self._traced.train(state, dict(zip(names, flat[n:], strict=True)))
            new, spec = pytree.tree_flatten(tree)
            if spec != self._spec:
                raise StateError("a step must return a State of the structure that it was given")
            self._metrics = tuple(metrics)
            if not self.donate:
                # A graph's results are its own: none is an argument, and none is there twice.
                return tuple(t.clone() for t in (*metrics.values(), *new))
            given = {t.untyped_storage()._cdata for t in flat[:n]}
            results = [_read_first(t, given, state["step"]) for t in metrics.values()]
            _write(flat[:n], new, state["step"])
            return tuple(t.clone() for t in results)

        inputs, signature = self._inputs(batch)
        program = self._compile("train step", step, (*self._leaves, *inputs), describe(batch))
        if program is not None:
            self._programs[signature] = program
            self._batch_names = names
        return program

    def _measure(self, tree: dict[str, Tree], sums: dict[str, Tree], batch: Batch) -> dict[str, Tree]:
        if self.report.fallback is not None:
            return self.pipe.measure(tree, sums, batch)
        flat, spec = pytree.tree_flatten((tree, sums, {name: t.contiguous() for name, t in batch.items()}))
        signature = (spec, *((t.shape, t.stride(), t.dtype, t.device) for t in flat))
        program = self._measures.get(signature)
        if program is None:

            def measure(*flat: Tensor) -> tuple[Tensor, ...]:
                return tuple(
                    t.clone() for t in pytree.tree_leaves(self._traced.measure(*pytree.tree_unflatten(flat, spec)))
                )

            program = self._compile("evaluation", measure, tuple(flat), describe(batch))
            if program is None:
                return self.pipe.measure(tree, sums, batch)
            self._measures[signature] = program
        total: dict[str, Tree] = pytree.tree_unflatten(program(*flat), pytree.tree_structure(sums))
        return total

    def _compile(self, name: str, function: Program, args: tuple[Tensor, ...], batch: str) -> Program | None:
        """The function compiled, or None where it falls back."""
        start = time.perf_counter()
        try:
            graph = trace(function, args)
            program = compile_graph(graph, args)
        except (CaptureError, StageError) as e:  # where a stage itself is at fault, the eager step will say so
            if self.fallback == "error":
                raise
            self.report = CompileReport(self.report.graphs, str(e))
            warnings.warn(f"the {name} runs uncompiled: {e}", stacklevel=4)
            return None
        seconds = time.perf_counter() - start
        operations = sum(node.op == "call_function" for node in graph.graph.nodes)
        self.report = CompileReport((*self.report.graphs, Graph(name, batch, operations, seconds)))
        return program


def _write(old: Sequence[Tensor], new: Sequence[Tensor], step: Tensor) -> None:
    """Donation: each new leaf into the storage of the old one."""
    given = {t.untyped_storage()._cdata for t in old}
    for o, v in zip(
        old, [_read_first(v, given, step) if v is not o else v for o, v in zip(old, new, strict=True)], strict=True
    ):
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


def compile_graph(graph: GraphModule, args: tuple[Tensor, ...]) -> Program:
    """torch.compile on a flat graph; what Inductor made of it is then called as it is.

    That leaves out Dynamo's frame with its guards, the cache that hangs on the code object, in which two graphs could
    meet, and AOTAutograd's wrappers, which have nothing to do for a graph that returns fresh tensors only.
    """
    made: list[Program] = []
    positions: list[int] = []
    options = _OPTIONS[args[0].device.type] | {"size_asserts": False, "alignment_asserts": False}
    parameters = [str(node.target) for node in graph.graph.find_nodes(op="placeholder")]

    def inner(*arguments: Any, **keywords: Any) -> Any:
        code = compile_fx_inner(*arguments, **keywords)
        made.append(cast(Program, cast(CompiledFxGraph, code).current_callable))
        return code

    def backend(captured: GraphModule, example_inputs: list[Any]) -> Program:
        # Dynamo drops unused arguments and may reorder them; each placeholder knows which argument it was.
        used = [n.meta["grapharg"].source.local_name for n in captured.graph.find_nodes(op="placeholder")]
        positions[:] = [parameters.index(name) for name in used]
        return cast(Program, compile_fx(captured, example_inputs, inner_compile=inner, config_patches=options))

    compiled: Program = torch.compile(graph.forward, fullgraph=True, dynamic=False, backend=backend)
    try:
        # A hit in AOTAutograd's cache would not pass by `inner`; Inductor's own cache does.
        with torch.no_grad(), functorch_config.patch(enable_autograd_cache=False):
            # Inductor compiles at the first call, which must not touch the State.
            compiled(*(t.clone() for t in args))
    except Exception as e:
        reason = getattr(e, "inner_exception", None) or e.__cause__ or e
        raise CaptureError(f"the step can't be compiled here: {first_line(reason)}") from e
    [call] = made
    pick = operator.itemgetter(*positions, positions[0])
    return lambda *args: call([*pick(args)][:-1])


_OPTIONS: dict[str, dict[str, Any]] = {
    "cpu": {
        "cpp_wrapper": True,  # the calls of the kernels in C++ too: one library a graph
        "cpp_cache_precompile_headers": False,  # takes longer than it saves for one library
        "cpp.vec_isa_ok": True,  # saves seconds of building probes; a compiler too old for the processor fails as any
        "memory_planning": True,  # one allocation for the intermediate results
    },
    "cuda": {},
}
"""Inductor's options, by the kind of device; shapes are checked here."""


def _share_storage(leaves: Sequence[Tensor]) -> bool:
    places = [t.data_ptr() for t in leaves if t.numel()]
    return len(set(places)) < len(places)
