"""The native backend: Inductor's C++ for a CPU, in a library with a loop over steps. The only file that imports
Inductor.

`Native` compiles a pipeline's programs: each is lowered to C++ by itself, and all waiting ones are built together.
`compile` does the same for any function, as the backend "pipe" of torch.compile.
"""

from __future__ import annotations

import atexit
import ctypes
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast
from unittest import mock

import torch
from attrs import define, evolve
from torch import Tensor
from torch.fx import GraphModule

from pipeline import files, memory
from pipeline.compile.backends import passes, repeats, text
from pipeline.compile.backends import torch as generic
from pipeline.compile.backends.backend import Backend, Context, Output
from pipeline.compile.backends.library import Call, Library, capsules
from pipeline.compile.passes import nodes
from pipeline.compile.tracing import Traced
from pipeline.errors import CaptureError

_CPU: dict[str, Any] = {
    "cpp_wrapper": True,  # the calls of the kernels in C++ too
    "cpp.vec_isa_ok": True,  # saves seconds of probing the compiler; a compiler too old for the processor fails later
    "cpp_wrapper_build_separate": True,  # the kernels in a file of their own, compiled beside the calls
    "fx_graph_cache": False,
    "pattern_matcher": False,  # no step measured is faster by them, and they take a second to load
    "size_asserts": False,  # the caller checks shapes
    "alignment_asserts": False,
}
_PLANNED = 32 << 20
"""Bytes of intermediate results up to which they share one allocation; above, Inductor's plan needs more memory than
malloc."""

_LARGE = 1000
"""Operations above which `_BOUNDED` applies."""
_BOUNDED: dict[str, Any] = {
    "max_fusion_buffer_group_pairwise_attempts": 8,  # not 64: all updates read lr, so all pairs of them are tried
}
_LONG = 100_000
"""Characters of calls above which the compiler's -O1 takes several times as long as -Og, and so long that returning
memory to the system costs little in comparison."""


@define(eq=False)
class Lowered:
    """A program's C++."""

    code: text.Program
    inputs: tuple[int, ...]
    outputs: tuple[Output, ...]
    built: Library | Exception | None = None


class Native(Backend):
    """Compiles all programs that wait into one library: torch's headers take the compiler longer than a step does."""

    name = "native"
    devices = ("cpu",)
    symbolic = collectives = False
    cached = True

    def __init__(self) -> None:
        self._waiting: list[Lowered] = []
        self._known: dict[tuple[str, ...], tuple[text.Code, tuple[int, ...]]] = {}
        """The parts of programs that wait: a step on the last batch updates as one on a whole batch does."""

    def settings(self) -> str:
        """All of Inductor's settings."""
        from torch._inductor import config  # tracing has imported it already

        # The folder of CUTLASS defaults to the current one; no code for a CPU depends on it.
        return repr(sorted((k, v) for k, v in config.get_config_copy().items() if not k.endswith(".cutlass_dir")))

    def begin(
        self, traced: Traced, args: Sequence[Tensor], outputs: tuple[Output, ...], context: Context
    ) -> Callable[[], Library]:
        """Lower a graph to C++. Raises CaptureError if Inductor refuses it, or writes C++ of an unknown form."""
        for node in nodes(traced.graph):
            if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace not in ("aten", "prims"):
                raise CaptureError(f"it calls {node.target}, which is no operation of torch's C++")
        # Distinct tensors; their values are never read.
        examples = tuple(torch.empty_strided(t.shape, t.stride(), dtype=t.dtype) for t in args)
        try:
            chain = repeats.chain(traced.graph)
            parts = chain.parts if chain else (repeats.Part(traced.graph, examples),)
            codes, inputs = zip(*map(self._part, parts), strict=True)
        except Exception as e:
            raise CaptureError(generic.reason(e)) from e
        if chain is None:
            lowered = Lowered(text.Program(codes), inputs[0], outputs)
        else:
            calls = tuple(evolve(c, inputs=tuple(c.inputs[i] for i in inputs[c.part])) for c in chain.calls)
            lowered = Lowered(text.Program(codes, evolve(chain, calls=calls)), chain.inputs, outputs)
        self._waiting.append(lowered)
        return lambda: self._library(lowered)

    def _part(self, part: repeats.Part) -> tuple[text.Code, tuple[int, ...]]:
        found = self._known.get(part.words) or _part(part)
        if part.words:
            self._known[part.words] = found
        return found

    def _library(self, lowered: Lowered) -> Library:
        if lowered.built is None:
            group, self._waiting, self._known = self._waiting, [], {}
            _build_all(group)
        assert lowered.built is not None
        if isinstance(lowered.built, Exception):
            raise lowered.built
        return lowered.built


def compile(graph: GraphModule, inputs: Sequence[Any], **_: Any) -> Callable[..., Any]:
    """The backend "pipe" of torch.compile, for any function: Inductor's C++, with small products straight to BLAS.

    Graphs of symbolic sizes, or on another device, are left to Inductor.

    >>> torch.compile(lambda x: (x * 2).sum(), backend="pipe")(torch.ones(3))
    tensor(6.)
    """
    if not all(isinstance(t, Tensor) and t.device.type == "cpu" for t in inputs):
        from torch._inductor.compile_fx import compile_fx

        plain: Any = compile_fx(graph, list(inputs))
        return cast(Callable[..., Any], plain)
    return _lower(
        graph, inputs, lambda code: Call(_build([text.Program((code,))], text.CALL), text.entry(0), code.outputs)
    )


def _part(part: repeats.Part) -> tuple[text.Code, tuple[int, ...]]:
    """The C++ of a function, and the places of the inputs that it reads, in its order."""
    found: list[tuple[text.Code, tuple[int, ...]]] = []
    [output] = part.graph.graph.find_nodes(op="output")
    results = [n.meta["val"] for n in output.args[0]]

    def backend(module: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        places = {id(t): i for i, t in enumerate(part.examples)}

        def collect(code: text.Code) -> Callable[[Sequence[Any]], list[Any]]:
            found.append((code, tuple(places[id(t)] for t in inputs)))
            # The result of this call only; later calls go to the library.
            return lambda _: capsules([torch.empty_strided(t.shape, t.stride(), dtype=t.dtype) for t in results])

        return _lower(module, inputs, collect)

    with torch.no_grad():
        generic.make(part.graph, backend)(*part.examples)
    [(code, inputs)] = found
    if code.outputs != len(results):
        raise CaptureError(f"Inductor's C++ returns {code.outputs} tensors, not {len(results)}")
    return code, inputs


def _lower(graph: GraphModule, inputs: Sequence[Any], load: Callable[[text.Code], Any]) -> Callable[..., Any]:
    """A graph as Inductor compiles it, with `load` in place of compiling and loading its C++."""
    from torch._functorch import config as functorch_config
    from torch._inductor.codecache import CppWrapperCodeCache
    from torch._inductor.compile_fx import compile_fx  # takes seconds

    def load_pybinding(*, main_code: str, kernel_code: str | None = None, num_outputs: int = -1, **_: Any) -> Any:
        return load(text.Code.read(main_code, kernel_code or "", num_outputs))

    passes.store(graph)
    passes.transpose_narrow(graph)
    values = (n.meta.get("example_value", n.meta.get("val")) for n in graph.graph.nodes)
    # Inductor frees planned memory of a loop after the loop.
    loops = any(isinstance(n.target, torch._ops.HigherOrderOperator) for n in graph.graph.nodes)
    size = sum(v.nbytes for v in values if isinstance(v, Tensor))
    options = {**_CPU, "memory_planning": size <= _PLANNED and not loops}
    options |= _BOUNDED if len(graph.graph.nodes) > _LARGE else {}
    # A hit in AOTAutograd's cache would bypass the patch.
    uncached = functorch_config.patch(enable_autograd_cache=False)
    with mock.patch.object(CppWrapperCodeCache, "load_pybinding", load_pybinding), _no_probes(), uncached:
        compiled: Any = compile_fx(graph, list(inputs), config_patches=options)
    return cast(Callable[..., Any], compiled)


def _no_probes() -> Any:
    """Trust the compiler to know the processor's instructions: torch would build a file for each set of them."""
    from torch._inductor.cpu_vec_isa import VecISA

    return mock.patch.object(VecISA, "check_build", return_value=True)


def _build_all(group: Sequence[Lowered]) -> None:
    """Build programs as one library or, if that fails, each as its own."""
    try:
        library = ctypes.CDLL(str(_build([lowered.code for lowered in group], text.RUN)))
        for k, lowered in enumerate(group):
            lowered.built = Library(library, text.entry(k), lowered.inputs, lowered.outputs)
    except Exception as e:
        group[0].built = e
        for lowered in group if len(group) > 1 else ():
            _build_all([lowered])
    if max(len(part.calls) for lowered in group for part in lowered.code.parts) > _LONG:
        memory.give_back()


def _build(programs: Sequence[text.Program], kind: str) -> Path:
    """C++ as a shared library, in a folder of this process. Raises CaptureError if no compiler can."""
    from torch._inductor.cpp_builder import CppBuilder

    folder = Path(tempfile.mkdtemp(prefix="pipe-train-"))
    atexit.register(files.remove, folder)
    try:
        calls, kernels = text.joined(programs, kind)
        versions = {"calls": [calls, text.whole(calls)], "kernels": [kernels]}
        with ThreadPoolExecutor(len(versions)) as pool:
            objects = list(pool.map(lambda name: _compile(folder, name, versions[name]), versions))
        library = CppBuilder("step", objects, _options(False), output_dir=str(folder))
        library.build()
        for path in (*folder.glob("*.cpp"), *map(Path, objects)):
            path.unlink()
    except Exception as e:
        errors = [line.strip() for line in str(e).splitlines() if "error:" in line]
        raise CaptureError(f"the C++ can't be compiled here: {errors[0] if errors else generic.reason(e)}") from e
    return Path(library.get_target_file_path())


def _compile(folder: Path, name: str, versions: Sequence[str]) -> str:
    """The path of an object file, made from the first version of a source that compiles."""
    from torch._inductor.cpp_builder import CppBuilder

    path = folder / f"{name}.cpp"
    with files.updated(path) as file:
        file.write(versions[0].encode())
        file.truncate()
    # Calls have no loops over samples: -O1 makes them as fast as -O3, and compiles them in less than half the time.
    level = "" if name == "kernels" else "-Og" if len(versions[0]) > _LONG else "-O1"
    part = CppBuilder(name, str(path), _options(True, level), output_dir=str(folder))
    try:
        part.build()
    except Exception:
        if len(versions) == 1:
            raise
        return _compile(folder, name, versions[1:])
    return part.get_target_file_path()


def trial() -> tuple[str, float]:
    """The C++ compiler, and its seconds for a tiny library, which is loaded and called. Raises CaptureError if one of
    them fails here."""
    from torch._inductor.cpp_builder import CppBuilder, get_cpp_compiler

    start = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(prefix="pipe-train-") as folder:
            path = Path(folder, "trial.cpp")
            files.replace(path, b'#include <cmath>\n#include <omp.h>\nextern "C" int trial(int x) { return x + 1; }\n')
            builder = CppBuilder("trial", str(path), _options(False), output_dir=folder)
            builder.build()
            if ctypes.CDLL(builder.get_target_file_path()).trial(1) != 2:
                raise CaptureError("a compiled function gives a wrong number")
            return get_cpp_compiler(), time.perf_counter() - start
    except Exception as e:
        errors = [line.strip() for line in str(e).splitlines() if "error:" in line]
        raise CaptureError(f"C++ can't be compiled here: {errors[0] if errors else generic.reason(e)}") from e


def _options(compile_only: bool, level: str = "") -> Any:
    """Arguments of the C++ compiler; a level of optimization in place of -O3."""
    from torch._inductor import config
    from torch._inductor.cpp_builder import CppTorchDeviceOptions
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    with config.patch({"cpp.vec_isa_ok": True}), _no_probes():
        processor = pick_vec_isa()
    flags = ["-g0", "-w", level]
    return CppTorchDeviceOptions(vec_isa=processor, device_type="cpu", extra_flags=flags, compile_only=compile_only)
