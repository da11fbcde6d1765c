"""The native backend: Inductor's C++ for a CPU, in a library with a loop of its own. The only file that imports
Inductor.

It is a backend as torch has them: a GraphModule and example inputs in, a callable out. `compile` is it for anybody
(under the name "pipe"); `begin` is it for a pipeline's programs, which are brought to C++ one by one, and compiled
together.
"""

from __future__ import annotations

import atexit
import ctypes
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias
from unittest import mock

import torch
from attrs import define
from torch import Tensor
from torch.fx import GraphModule, Node

from pipeline import files
from pipeline.compile.backends import text
from pipeline.compile.backends.library import Call, Library, capsules, return_memory
from pipeline.compile.backends.program import Output
from pipeline.compile.backends.torch import reason
from pipeline.compile.tracing import is_number, nodes
from pipeline.errors import CaptureError

_CPU: dict[str, Any] = {
    "cpp_wrapper": True,  # the calls of the kernels in C++ too
    "cpp.vec_isa_ok": True,  # saves seconds of building probes; a compiler too old for the processor fails as any
    "cpp_wrapper_build_separate": True,  # the kernels as a text of their own, compiled beside that of the calls
    "fx_graph_cache": False,
    "size_asserts": False,  # shapes are checked by whoever calls
    "alignment_asserts": False,
}
_PLANNED = 32 << 20
"""Bytes of intermediate results up to which they share one allocation; of large ones, Inductor's plan needs more memory
than malloc."""

_LARGE = 1000
"""Operations above which compiling takes care of what grows faster than the graph."""
_BOUNDED: dict[str, Any] = {
    "max_fusion_buffer_group_pairwise_attempts": 8,  # of 64: all updates read lr, and each pair of them was looked at
}
_LONG = 100_000
"""Characters of calls above which the C++ compiler's -O3 takes minutes, and tidying up after Inductor is little beside
its work."""

_COSTLY = tuple(getattr(torch.ops.aten, name) for name in ("pow", "exp", "log", "cos"))
_GATHER = torch.ops.aten.index_select.default

Inputs: TypeAlias = tuple[int, ...]


@define(eq=False)
class Lowered:
    """A program's C++, which waits with others to become one library: torch's headers take the compiler longer than a
    step."""

    code: text.Code
    inputs: Inputs
    outputs: tuple[Output, ...]
    waiting: list[Lowered]
    made: Library | Exception | None = None

    def library(self) -> Library:
        """Compiled, with all that wait. Raises CaptureError without a compiler that can."""
        if self.made is None:
            _build_all(self.waiting)
        assert self.made is not None
        if isinstance(self.made, Exception):
            raise self.made
        return self.made


def settings() -> str:
    """All that Inductor is told, by whomever."""
    from torch._inductor import config  # tracing has imported it already

    # Where CUTLASS would be is a folder, for want of a better one the current one; no CPU's code depends on it.
    told = {k: v for k, v in config.get_config_copy().items() if not k.endswith(".cutlass_dir")}
    return repr(sorted(told.items()))


def begin(
    make: Callable[..., Any],
    graph: GraphModule,
    args: Sequence[Tensor],
    outputs: Sequence[Output],
    waiting: list[Lowered],
) -> Lowered:
    """Have `make`, which calls torch.compile, compile a graph by this backend, up to its C++, which joins those
    waiting.

    Raises CaptureError where Inductor refuses the graph, or where what it wrote is not what this file knows.
    """
    for node in nodes(graph):
        if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace not in ("aten", "prims"):
            raise CaptureError(f"it calls {node.target}, which is no operation of torch's C++")
    # Each is its own memory, which is never touched.
    examples = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype) for t in args]
    found: list[Lowered] = []

    def backend(module: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        if not all(isinstance(t, Tensor) for t in inputs):
            raise CaptureError("the native backend takes no symbolic sizes")
        indices = {id(t): i for i, t in enumerate(examples)}
        which = tuple(indices[id(t)] for t in inputs)

        def collect(code: text.Code) -> Callable[[Sequence[Any]], list[Any]]:
            found.append(Lowered(code, which, tuple(outputs), waiting))
            # The library is what runs later, not this.
            return lambda _: capsules([torch.empty(o.shape, dtype=o.dtype) for o in outputs])

        return _lower(module, inputs, collect)

    try:
        with torch.no_grad():
            make(graph, backend)(*examples)
        [lowered] = found
    except Exception as e:
        raise CaptureError(reason(e)) from e
    waiting.append(lowered)
    return lowered


def compile(graph: GraphModule, inputs: Sequence[Any], **_: Any) -> Callable[..., Any]:
    """The backend "pipe" of torch.compile, for any function: as Inductor's C++, with small products straight to BLAS.

    Graphs with symbolic sizes, or on another device, are Inductor's own.

    >>> torch.compile(lambda x: (x * 2).sum(), backend="pipe")(torch.ones(3))
    tensor(6.)
    """
    plain = all(isinstance(t, Tensor) and t.device.type == "cpu" for t in inputs)
    made: Callable[..., Any] = _lower(graph, inputs, _called) if plain else _compile_fx()(graph, list(inputs))
    return made


def _called(code: text.Code) -> Call:
    return Call(_build([code], text.CALL), text.entry(0), code.outputs)


def _compile_fx() -> Any:
    from torch._inductor.compile_fx import compile_fx  # takes seconds

    return compile_fx


def _lower(graph: GraphModule, inputs: Sequence[Any], load: Callable[[text.Code], Any]) -> Callable[..., Any]:
    """What Inductor makes of a graph, with `load` where it would compile and load its C++."""
    compile_fx = _compile_fx()
    from torch._functorch import config as functorch_config
    from torch._inductor.codecache import CppWrapperCodeCache

    def pybinding(*, main_code: str, kernel_code: str | None = None, num_outputs: int = -1, **_: Any) -> Any:
        return load(text.Code.read(main_code, kernel_code or "", num_outputs))

    _store(graph)
    _narrow(graph)
    values = (n.meta.get("example_value", n.meta.get("val")) for n in graph.graph.nodes)
    # Inductor frees what it planned in a loop where the loop has ended.
    loops = any(isinstance(n.target, torch._ops.HigherOrderOperator) for n in graph.graph.nodes)
    size = sum(v.nbytes for v in values if isinstance(v, Tensor))
    options = (
        _CPU
        | {"memory_planning": size <= _PLANNED and not loops}
        | (_BOUNDED if len(graph.graph.nodes) > _LARGE else {})
    )
    # A hit in AOTAutograd's cache would not pass by what listens here.
    cached = functorch_config.patch(enable_autograd_cache=False)
    with mock.patch.object(CppWrapperCodeCache, "load_pybinding", pybinding), _no_probes(), cached:
        made: Callable[..., Any] = compile_fx(graph, list(inputs), config_patches=options)
    return made


def _store(graph: GraphModule) -> None:
    """Have what is costly to work out and small put in memory once a step: powers and cosines of numbers, as of a
    schedule, what all numbers of a tensor are changed by, as a learning rate, and the indices of a gather.

    Inductor would work it out anew in every loop that reads it, there by each vector; as_strided needs a place in
    memory, so it stops that.
    """
    for node in list(graph.graph.nodes):
        value = node.meta.get("example_value")
        costly = getattr(node.target, "overloadpacket", None) in _COSTLY
        gathers = any(user.target is _GATHER and user.args[2] is node for user in node.users)
        gathers |= node.target is _GATHER and not value.is_floating_point()
        if (is_number(value) and (costly or _spreads(node))) or gathers:
            with graph.graph.inserting_after(node):
                there = (node, list(value.shape), list(value.stride()))
                stored = graph.graph.call_function(torch.ops.aten.as_strided.default, there)
            stored.meta["example_value"] = value
            node.replace_all_uses_with(stored, delete_user_cb=lambda user, stored=stored: user is not stored)
    graph.recompile()


def _spreads(node: Node) -> bool:
    """Whether a number that is worked out of float64 ones, as all hyperparameters are, meets a whole tensor."""
    if node.op != "call_function":
        return False
    values = [n.meta.get("example_value") for n in (node, *node.all_input_nodes)]
    exact = all(is_number(v) for v in values) and any(getattr(v, "dtype", None) == torch.float64 for v in values)
    return exact and any(not is_number(user.meta.get("example_value")) for user in node.users)


NARROW = 16
"""Columns below which a product is laid out by columns."""


def _narrow(graph: GraphModule) -> None:
    """Have products of few columns, as those of a last layer, lie in memory by columns: what follows, such as a
    softmax, is then done for many rows at once, where it would be done row by row."""
    aten = torch.ops.aten

    def made(target: Any, *args: Any) -> Node:
        node: Node = graph.graph.call_function(target, args)
        node.meta["example_value"] = target(*[a.meta["example_value"] if isinstance(a, Node) else a for a in args])
        return node

    for node in list(graph.graph.nodes):
        if node.target is aten.addmm.default and not node.kwargs:
            bias, a, b = node.args
        elif node.target in (aten.mm.default, aten.bmm.default):
            bias, (a, b) = None, node.args
        else:
            continue
        # By the factors: what is known of a product itself is changed by a squeeze of it in place.
        rows, columns = a.meta["example_value"].shape[-2], b.meta["example_value"].shape[-1]
        if not columns < NARROW <= rows:
            continue
        with graph.graph.inserting_before(node):
            product = aten.bmm.default if node.target is aten.bmm.default else aten.mm.default
            flipped = made(product, *(made(aten.transpose.int, x, -2, -1) for x in (b, a)))
            result = made(aten.transpose.int, flipped, -2, -1)
            if bias is not None:
                result = made(aten.add.Tensor, result, bias)
        node.replace_all_uses_with(result)
        graph.graph.erase_node(node)
    graph.recompile()


def _no_probes() -> Any:
    """Take the compiler to know the instructions that the processor has: torch would build a file for each to see."""
    from torch._inductor.cpu_vec_isa import VecISA

    return mock.patch.object(VecISA, "check_build", return_value=True)


def _build_all(waiting: list[Lowered]) -> None:
    """Programs as one library; where that fails, each as its own."""
    group = list(waiting)
    waiting.clear()
    try:
        library = ctypes.CDLL(str(_build([lowered.code for lowered in group], text.RUN)))
        for k, lowered in enumerate(group):
            lowered.made = Library(library, text.entry(k), lowered.inputs, lowered.outputs)
    except Exception as e:
        group[0].made = e
        for lowered in group if len(group) > 1 else ():
            _build_all([lowered])
    if max(len(lowered.code.calls) for lowered in group) > _LONG:
        return_memory()


def _build(codes: Sequence[text.Code], kind: str) -> Path:
    """C++ as a shared library, in a folder of this process. Raises CaptureError without a compiler that can."""
    from torch._inductor.cpp_builder import CppBuilder

    folder = Path(tempfile.mkdtemp(prefix="pipe-train-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        parts = []
        for name, content in zip(("calls", "kernels"), text.joined(codes, kind), strict=True):
            path = folder / f"{name}.cpp"
            with files.updated(path) as file:
                file.write(content.encode())
            quick = name == "calls" and len(content) > _LONG
            parts.append(CppBuilder(name, str(path), _options(True, quick), output_dir=str(folder)))
        with ThreadPoolExecutor(len(parts)) as beside:
            list(beside.map(CppBuilder.build, parts))
        objects = [part.get_target_file_path() for part in parts]
        library = CppBuilder("step", objects, _options(False, False), output_dir=str(folder))
        library.build()
        for path in (*folder.glob("*.cpp"), *map(Path, objects)):
            path.unlink()
    except Exception as e:
        errors = [line.strip() for line in str(e).splitlines() if "error:" in line]
        raise CaptureError(f"the C++ can't be compiled here: {errors[0] if errors else reason(e)}") from e
    return Path(library.get_target_file_path())


@cache
def _options(compile_only: bool, quick: bool) -> Any:
    """How the C++ compiler is called."""
    from torch._inductor import config
    from torch._inductor.cpp_builder import CppTorchDeviceOptions
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    with config.patch({"cpp.vec_isa_ok": True}), _no_probes():
        processor = pick_vec_isa()
    flags = ["-g0", "-w", *(["-Og"] if quick else [])]
    return CppTorchDeviceOptions(vec_isa=processor, device_type="cpu", extra_flags=flags, compile_only=compile_only)
