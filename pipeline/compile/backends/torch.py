"""Any backend that torch.compile knows, on any device: the one call of it, and a program that goes through what it
returned."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from pipeline.compile.backends.program import Output
from pipeline.errors import CaptureError
from pipeline.stage import first_line


def make(graph: GraphModule, backend: str | Callable[..., Any], dynamic: bool = False) -> Callable[..., Any]:
    """A graph as compiled by a backend: a function of its inputs, which compiles when it is called first.

    A pipeline can't change and shapes are checked by whoever calls, so nothing is guarded, but for symbolic sizes.
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
    """What lies under the exceptions that torch's compilers wrap others in, in a line."""
    while (inner := getattr(error, "inner_exception", None)) is not None:
        error = inner
    return str(error) if isinstance(error, CaptureError) else first_line(error)


class Function:
    """A program that is a Python function of its tensors, which it writes into. `within` is what it computes in."""

    def __init__(
        self, backend: str, call: Callable[..., Any], outputs: Sequence[Output], operations: int | None = None,
        within: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:  # fmt: skip
        self.backend, self.call, self.outputs, self.within = backend, call, tuple(outputs), within
        self.together = 0 if operations is None else max(LAUNCHES // max(operations, 1), 1)
        """Steps that are recorded as one graph; 0 where none are, because each would have other shapes."""
        self.note: str | None = None

    def bind(self, static: Sequence[Tensor], given: int = 0, constants: Sequence[Tensor] = ()) -> FunctionRun:
        return FunctionRun(self, static, constants)


LAUNCHES = 4096
"""About so many operations are launched at once, on a device that can."""


class FunctionRun:
    """A function with the tensors that stay in place. On an accelerator its launches are recorded, and replayed: one
    step, and many in one graph.

    Its first call launches one by one, so that what is lazy in libraries and compilers is done before a recording.
    """

    def __init__(self, program: Function, static: Sequence[Tensor], constants: Sequence[Tensor]) -> None:
        self.outputs = program.outputs
        self._program, self._static, self._constants = program, tuple(static), tuple(constants)
        self._device = static[0].device
        self._called = False
        self._records = self._device.type != "cpu" and program.together > 0 and program.note is None
        self._batch: list[Tensor] = []
        self._recorded: dict[int, Recording] = {}

    def run(self, given: Sequence[Tensor] = (), steps: int | None = None, results: bool = True) -> list[Tensor]:
        """As LibraryRun.run, without waiting for the device."""
        count, k = 1 if steps is None else steps, 0
        if steps is None and not (self._records and self._called):
            self._called = True
            return list(self._call(given))
        rows = [torch.empty((count, *o.shape), dtype=o.dtype, device=self._device) for o in self.outputs if results]
        while k < count:
            recording = self._recording(given, count - k) if self._records and self._called else None
            if recording is None:
                made, done = [value.unsqueeze(0) for value in self._call(given)], 1
                self._called = True
            else:
                made, done = recording.replay(), recording.steps
            for there, here in zip(rows, made, strict=False):
                there[k : k + done].copy_(here)
            k += done
        return [there[0] for there in rows] if steps is None else rows

    def _call(self, given: Sequence[Tensor]) -> Sequence[Tensor]:
        with torch.no_grad(), self._program.within():
            made: Sequence[Tensor] = self._program.call(*self._static, *given, *self._constants)
        return made

    def _recording(self, given: Sequence[Tensor], left: int) -> Recording | None:
        """A graph of as many steps as fit into those that are left; None where that can't be, as the report says."""
        steps = self._program.together if left >= self._program.together else 1
        if not self._recorded:
            self._batch = [t.clone() for t in given]
        for there, here in zip(self._batch, given, strict=True):
            there.copy_(here)
        if steps not in self._recorded:
            try:
                self._recorded[steps] = Recording(lambda: self._call(self._batch), self.outputs, steps, self._device)
            except RuntimeError as e:
                reason = str(e).strip().splitlines()[0]
                self._program.note = f"graph of launches: {reason}; each step launches its kernels one by one"
                self._records, self._batch = False, []
        return self._recorded.get(steps)


class Recording:
    """The launches of some steps as one graph. Raises RuntimeError where a step does what can't be recorded; nothing is
    run by recording it."""

    def __init__(
        self, call: Callable[[], Sequence[Tensor]], outputs: Sequence[Output], steps: int, device: torch.device
    ) -> None:
        self.steps = steps
        self.rows = [torch.empty((steps, *o.shape), dtype=o.dtype, device=device) for o in outputs]
        with graph_on(device) as self.graph:
            for k in range(steps):
                for there, value in zip(self.rows, call(), strict=True):
                    there[k].copy_(value)

    def replay(self) -> list[Tensor]:
        """Launch the steps; what each returns is in the rows, until the next time."""
        self.graph.replay()
        return self.rows


@functools.cache
def _pool() -> Any:
    """The memory that all recordings compute in, one after the other: what they return lies elsewhere."""
    return torch.cuda.graph_pool_handle()


@contextmanager
def graph_on(device: torch.device) -> Iterator[Any]:
    """Within it, what is launched on a device is recorded, and not run. Raises RuntimeError where torch can't here."""
    if device.type == "cuda":
        graph: Any = torch.cuda.CUDAGraph()
        try:
            # Other threads may go on: they write checkpoints, and read batches.
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
