"""Lower: a traced graph to code, by Inductor, the compiler of torch.compile. The only file that imports it.

On a CPU Inductor writes C++, which becomes a library with a loop of its own (see pipeline.native); on a GPU it makes
kernels, whose launches are recorded once, as a CUDA graph, and replayed.
"""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._functorch import config as functorch_config
from torch._inductor import config
from torch._inductor.codecache import CppWrapperCodeCache
from torch._inductor.compile_fx import compile_fx, compile_fx_inner
from torch._inductor.cpp_builder import CppBuilder, CppTorchDeviceOptions
from torch._inductor.cpu_vec_isa import VecISA, pick_vec_isa
from torch.fx import GraphModule

from pipeline.errors import CaptureError
from pipeline.native import LOOP, SHORTCUTS, Output
from pipeline.stage import first_line

_CPU: dict[str, Any] = {
    "cpp_wrapper": True,  # the calls of the kernels in C++ too
    "cpp.vec_isa_ok": True,  # saves seconds of building probes; a compiler too old for the processor fails as any
    "cpp_wrapper_build_separate": True,  # the kernels as a text of their own, compiled beside that of the calls
}
_PLANNED = 32 << 20
"""Bytes of intermediate results up to which they share one allocation; of large ones, Inductor's plan needs more memory than malloc."""

_LONG = 100_000
"""Characters of C++ above which a second of tidying up after Inductor is little beside its work."""

_CHECKED = {"size_asserts": False, "alignment_asserts": False}
"""Shapes are checked by whoever calls."""

_HEADER = "#include <torch/csrc/inductor/cpp_wrapper/cpu.h>\n"

_KERNEL = re.compile(r'^extern "C" [^;{]*{$.*?^}$', re.MULTILINE | re.DOTALL)

_LOOP = re.compile(r"^(?= *#pragma omp (?:for|single|parallel))", re.MULTILINE)

_COSTLY = tuple(getattr(torch.ops.aten, name) for name in ("pow", "exp", "log", "cos"))


def outputs(graph: GraphModule, names: Sequence[str]) -> tuple[Output, ...]:
    """What a graph returns, under names."""
    [node] = graph.graph.find_nodes(op="output")
    values = [n.meta["val"] for n in node.args[0]]
    return tuple(Output(name, tuple(v.shape), v.dtype) for name, v in zip(names, values, strict=True))


def source(graph: GraphModule, args: Sequence[Tensor]) -> tuple[str, str]:
    """The graph as C++: its calls with the loop behind them, and its kernels. Raises CaptureError where Inductor refuses it."""
    written: list[tuple[str, str]] = []

    def keep(*, main_code: str, kernel_code: str | None = None, **_: Any) -> Callable[[list[Any]], list[Any]]:
        written.append((main_code, kernel_code or ""))
        return lambda _: []  # is not called: the library is

    _scalars_once(graph)
    values = (node.meta.get("val") for node in graph.graph.nodes)
    size = sum(v.nbytes for v in values if isinstance(v, Tensor))
    options = _CPU | {"fx_graph_cache": False, "memory_planning": size <= _PLANNED}
    with mock.patch.object(CppWrapperCodeCache, "load_pybinding", keep), _no_probes():
        _inductor(graph, args, options)
    [(calls, kernels)] = written
    # The loop is called without the interpreter's lock, so a step has none to release.
    calls = re.sub(r"py::gil_scoped_release\w* \w+;", "", calls.replace(_HEADER, _HEADER + SHORTCUTS, 1))
    return calls + LOOP, _KERNEL.sub(lambda k: _serial(k.group()), kernels)


def build(texts: tuple[str, str], folder: Path) -> Path:
    """The C++ as a shared library in `folder`. Raises CaptureError without a compiler that can."""
    try:
        with config.patch({"cpp.vec_isa_ok": True}), _no_probes():
            processor = pick_vec_isa()

        def builder(name: str, sources: str | list[str], **options: Any) -> CppBuilder:
            made = CppTorchDeviceOptions(vec_isa=processor, device_type="cpu", extra_flags=["-g0"], **options)
            return CppBuilder(name, sources, made, output_dir=str(folder))

        parts = []
        for name, text in zip(("calls", "kernels"), texts, strict=True):
            path = folder / f"{name}.cpp"
            path.write_text(text, encoding="utf-8")
            parts.append(builder(name, str(path), compile_only=True))
        with ThreadPoolExecutor(len(parts)) as beside:
            list(beside.map(CppBuilder.build, parts))
        objects = [part.get_target_file_path() for part in parts]
        library = builder("step", objects)
        library.build()
    except Exception as e:
        raise CaptureError(f"the step can't be compiled here: {first_line(e)}") from e
    for path in folder.glob("*.cpp"):
        path.unlink()
    for name in objects:
        Path(name).unlink()
    if len(texts[0]) > _LONG:
        _return_memory()
    return Path(library.get_target_file_path())


def _return_memory() -> None:
    """What Inductor leaves of a large graph: tens of megabytes in rings of objects, which would count beside the steps'."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc's
        trim(0)


def _no_probes() -> Any:
    """Take the compiler to know the instructions that the processor has: torch would build a file for each to see."""
    return mock.patch.object(VecISA, "check_build", return_value=True)


def kernels(graph: GraphModule, args: Sequence[Tensor]) -> Callable[[list[Tensor]], Any]:
    """The graph as a function that launches kernels, for a GPU."""
    made: list[Any] = []

    def inner(*arguments: Any, **keywords: Any) -> Any:
        made.append(compile_fx_inner(*arguments, **keywords))
        return made[-1]

    _inductor(graph, args, {}, inner_compile=inner)
    [code] = made
    call: Callable[[list[Tensor]], Any] = code.current_callable
    return call


def _inductor(graph: GraphModule, args: Sequence[Tensor], options: dict[str, Any], **keywords: Any) -> None:
    try:
        # A hit in AOTAutograd's cache would not pass by what listens here.
        with torch.no_grad(), functorch_config.patch(enable_autograd_cache=False):
            compile_fx(graph, list(args), config_patches=options | _CHECKED, **keywords)
    except Exception as e:
        reason = getattr(e, "inner_exception", None) or e.__cause__ or e
        raise CaptureError(f"the step can't be compiled here: {first_line(reason)}") from e


def _serial(kernel: str) -> str:
    """A kernel whose loops that add from many threads into one place, as an embedding's gradient does, run on one thread.

    Else the order of the additions, and so the last bits, would be another in each run.
    """
    loops = _LOOP.split(kernel)
    return "".join(
        re.sub("#pragma omp for.*", "#pragma omp single", loop, count=1) if "atomic_add" in loop else loop
        for loop in loops
    )


def _scalars_once(graph: GraphModule) -> None:
    """Have a power or a cosine of one number, as of a schedule, computed once a step.

    Inductor would compute it anew in every loop that reads it; as_strided needs a place in memory, so it stops that.
    """
    for node in list(graph.graph.nodes):
        value = node.meta.get("val")
        if getattr(node.target, "overloadpacket", None) in _COSTLY and isinstance(value, Tensor) and value.ndim == 0:
            with graph.graph.inserting_after(node):
                stored = graph.graph.call_function(torch.ops.aten.as_strided.default, (node, [], []))
            stored.meta["val"] = value
            node.replace_all_uses_with(stored, delete_user_cb=lambda user, stored=stored: user is not stored)
    graph.recompile()


class Launched:
    """A program on a GPU. `bind` records its launches on tensors that stay in place."""

    def __init__(self, call: Callable[[list[Tensor]], Any], made: tuple[Output, ...]) -> None:
        self.call = call
        self.outputs = made

    def bind(self, static: Sequence[Tensor], batch: int = 0) -> Replayed:
        return Replayed(self, static, batch)


class Replayed:
    """The launches of a step as a CUDA graph; a batch is copied to where the graph reads it."""

    def __init__(self, program: Launched, static: Sequence[Tensor], batch: int) -> None:
        self.outputs = program.outputs
        self._static = list(static)
        self._call = program.call
        self._inputs: list[Tensor] = []
        self._graph: torch.cuda.CUDAGraph | None = None
        self._made: Sequence[Tensor] = ()

    def run(self, batch: Sequence[Tensor] = (), steps: int | None = None, results: bool = True) -> list[Tensor]:
        """As Bound.run, without waiting for the device."""
        if self._graph is None:
            self._record(batch)
        assert self._graph is not None
        for there, here in zip(self._inputs, batch, strict=True):
            there.copy_(here)
        device = self._static[0].device
        count = 1 if steps is None else steps
        history = [torch.empty((count, *o.shape), dtype=o.dtype, device=device) for o in self.outputs if results]
        for k in range(count):
            self._graph.replay()
            for rows, made in zip(history, self._made, strict=False):
                rows[k].copy_(made)
        return [rows[0] for rows in history] if steps is None else history

    def _record(self, batch: Sequence[Tensor]) -> None:
        self._inputs = [t.clone() for t in batch]
        # What is lazy (autotuning, libraries' handles) is done on copies first, because recording can't, and runs nothing.
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._call([t.clone() for t in (*self._static, *self._inputs)])
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._made = self._call([*self._static, *self._inputs])
