"""Torch: any backend of torch.compile, on any device. The only file that calls torch.compile."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from attrs import define
from torch import Tensor
from torch.fx import GraphModule

from pipeline.compile.backends.backend import Backend, Context, Output
from pipeline.compile.tracing import Traced
from pipeline.errors import CaptureError, first_line

LAUNCHES = 4096
"""Approximate number of kernels in one recorded graph."""


def make(graph: GraphModule, backend: str | Callable[..., Any], dynamic: bool = False) -> Callable[..., Any]:
    """A graph compiled by a backend, at its first call.

    A pipeline can't change and the caller checks shapes, so nothing is guarded, except symbolic sizes.
    """
    options: dict[str, Any] = {} if dynamic else {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
    compiled: Callable[..., Any] = torch.compile(
        graph.forward, fullgraph=True, dynamic=None if dynamic else False, backend=backend, options=options or None
    )
    return compiled


def known() -> list[str]:
    """The names of torch's backends."""
    return torch._dynamo.list_backends(exclude_tags=())


def reason(error: BaseException) -> str:
    """The innermost of the exceptions that torch's compilers nest, in a line."""
    while (inner := getattr(error, "inner_exception", None)) is not None:
        error = inner
    return str(error) if isinstance(error, CaptureError) else first_line(error)


class Torch(Backend):
    """A backend of torch.compile: a name, or a callable such as torch.compile takes."""

    def __init__(self, backend: str | Callable[..., Any], *, cached: bool = False) -> None:
        self.name = backend if isinstance(backend, str) else getattr(backend, "__name__", type(backend).__name__)
        self._backend, self.cached = backend, cached

    def begin(
        self, traced: Traced, args: Sequence[Tensor], outputs: tuple[Output, ...], context: Context
    ) -> Callable[[], Function]:
        dynamic = traced.sizes is not None
        together = 0 if dynamic else max(LAUNCHES // max(traced.operations, 1), 1)

        def program() -> Function:
            return Function(self.name, make(traced.graph, self._backend, dynamic), outputs, together, context)

        return program


@define(eq=False)
class Function:
    """A Python function of tensors as a program, which writes into them."""

    backend: str
    call: Callable[..., Any]
    outputs: tuple[Output, ...]
    together: int
    """Steps to record as one graph of launches; 0 if shapes vary."""
    context: Context
    note: str | None = None

    def bind(self, static: Sequence[Tensor], given: int = 0, constants: Sequence[Tensor] = ()) -> FunctionRun:
        return FunctionRun(self, static, constants)


class FunctionRun:
    """A function bound to tensors. On an accelerator its kernel launches are recorded and replayed, as graphs of one
    step and of many.

    The first call records nothing: compilers and libraries initialize lazily.
    """

    def __init__(self, program: Function, static: Sequence[Tensor], constants: Sequence[Tensor]) -> None:
        self.outputs = program.outputs
        self._program, self._static, self._constants = program, tuple(static), tuple(constants)
        self._device = static[0].device
        self._called = False
        self._records = self._device.type != "cpu" and program.together > 0 and program.note is None
        self._batch: list[Tensor] = []
        self._recorded: dict[int, tuple[Any, list[Tensor]]] = {}
        """Number of steps -> a graph of launches, and the rows of outputs that a replay writes."""

    def run(self, given: Sequence[Tensor] = (), steps: int | None = None, results: bool = True) -> list[Tensor]:
        """As LibraryRun.run, but without waiting for the device."""
        count, k = 1 if steps is None else steps, 0
        if steps is None and not (self._records and self._called):
            self._called = True
            return list(self._call(given))
        rows = [torch.empty((count, *o.shape), dtype=o.dtype, device=self._device) for o in self.outputs if results]
        while k < count:
            done = self._record(given, count - k) if self._records and self._called else 0
            if done:
                graph, values = self._recorded[done]
                graph.replay()
            else:
                values, done = [value.unsqueeze(0) for value in self._call(given)], 1
                self._called = True
            for row, value in zip(rows, values, strict=False):
                row[k : k + done].copy_(value)
            k += done
        return [row[0] for row in rows] if steps is None else rows

    def _call(self, given: Sequence[Tensor]) -> Sequence[Tensor]:
        with torch.no_grad(), self._program.context():
            made: Sequence[Tensor] = self._program.call(*self._static, *given, *self._constants)
        return made

    def _record(self, given: Sequence[Tensor], left: int) -> int:
        """Record `together` steps, or one if fewer are left; returns their number, 0 if a step can't be recorded."""
        steps = self._program.together if left >= self._program.together else 1
        if not self._recorded:
            self._batch = [t.clone() for t in given]
        for kept, new in zip(self._batch, given, strict=True):
            kept.copy_(new)
        if steps not in self._recorded:
            try:
                rows = [torch.empty((steps, *o.shape), dtype=o.dtype, device=self._device) for o in self.outputs]
                with graph_on(self._device) as graph:
                    for k in range(steps):
                        for row, value in zip(rows, self._call(self._batch), strict=True):
                            row[k].copy_(value)
            except RuntimeError as e:
                why = str(e).strip().splitlines()[0]
                self._program.note = f"graph of launches: {why}; each step launches its kernels one by one"
                self._records, self._batch = False, []
                return 0
            self._recorded[steps] = graph, rows
        return steps


@functools.cache
def _pool() -> Any:
    """The id of the memory pool that all recordings share: they run one after the other, and copy their results."""
    return torch.cuda.graph_pool_handle()


@contextmanager
def graph_on(device: torch.device) -> Iterator[Any]:
    """Record the kernel launches on a device, instead of running them. Raises RuntimeError if torch can't."""
    if device.type == "cuda":
        graph: Any = torch.cuda.CUDAGraph()
        try:
            # Other threads go on: they write checkpoints and read batches.
            with torch.cuda.graph(graph, pool=_pool(), capture_error_mode="thread_local"):
                yield graph
        except BaseException:
            torch.cuda.synchronize(device)
            raise
        return
    if not hasattr(torch.accelerator, "Graph"):
        raise RuntimeError(f"torch {torch.__version__} records none on {device.type}")
    graph = torch.accelerator.Graph()
    graph.capture_begin()
    try:
        yield graph
    finally:
        graph.capture_end()
