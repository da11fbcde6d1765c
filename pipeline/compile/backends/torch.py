"""Any backend that torch.compile knows, on any device: the one call of it, and a program that goes through what it
returned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    """A program that is a Python function of its tensors, which it writes into."""

    def __init__(self, backend: str, call: Callable[..., Any], outputs: Sequence[Output]) -> None:
        self.backend, self.call, self.outputs = backend, call, tuple(outputs)
        self.note: str | None = None

    def bind(self, static: Sequence[Tensor], given: int = 0, constants: Sequence[Tensor] = ()) -> FunctionRun:
        return FunctionRun(self, static, constants)


class FunctionRun:
    """A function with the tensors that stay in place. On a GPU its launches are recorded once, and replayed."""

    def __init__(self, program: Function, static: Sequence[Tensor], constants: Sequence[Tensor]) -> None:
        self.outputs = program.outputs
        self._program, self._static, self._constants = program, tuple(static), tuple(constants)
        self._batch: list[Tensor] = []
        self._graph: torch.cuda.CUDAGraph | None = None
        self._made: Sequence[Tensor] = ()
        self._launch = static[0].device.type == "cuda"

    def run(self, given: Sequence[Tensor] = (), steps: int | None = None, results: bool = True) -> list[Tensor]:
        """As LibraryRun.run, without waiting for the device."""
        if self._launch and self._graph is None:
            self._record(given)
        elif steps is None and self._graph is None:
            return list(self._call(given))
        count = 1 if steps is None else steps
        device = self._static[0].device
        history = [torch.empty((count, *o.shape), dtype=o.dtype, device=device) for o in self.outputs if results]
        for there, here in zip(self._batch, given, strict=False):
            there.copy_(here)
        for k in range(count):
            made = self._replay() if self._graph is not None else self._call(given)
            for rows, value in zip(history, made, strict=False):
                rows[k].copy_(value)
        return [rows[0] for rows in history] if steps is None else history

    def _call(self, given: Sequence[Tensor]) -> Sequence[Tensor]:
        with torch.no_grad():
            made: Sequence[Tensor] = self._program.call(*self._static, *given, *self._constants)
        return made

    def _replay(self) -> Sequence[Tensor]:
        assert self._graph is not None
        self._graph.replay()
        return self._made

    def _record(self, given: Sequence[Tensor]) -> None:
        """Record the launches of a step as a CUDA graph; where that fails, each step launches them, and the report says
        so.

        What is lazy (libraries' handles and their memory) is done on copies first, because recording can't, and runs
        nothing.
        """
        self._launch = False
        self._batch = [t.clone() for t in given]
        graph = torch.cuda.CUDAGraph()
        try:
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side), torch.no_grad():
                self._program.call(*[t.clone() for t in (*self._static, *self._batch, *self._constants)])
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(graph):
                self._made = self._call(self._batch)
        except RuntimeError as e:
            torch.cuda.synchronize()
            self._program.note = f"cuda graph: {str(e).strip().splitlines()[0]}; each step launches its kernels"
            self._batch = []
        else:
            self._graph = graph
