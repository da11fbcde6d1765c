"""Text: Inductor's C++ of several programs, joined to one file of calls and one of kernels.

Each replacement has an expected count; another count means an unknown version of Inductor, and raises an error instead
of compiling a wrong step.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from attrs import frozen

from pipeline import files
from pipeline.compile.backends.repeats import Chain
from pipeline.errors import CaptureError

RUN, CALL = "RUN", "CALL"
"""Kinds of libraries: run steps in place, or return new tensors."""

_INPUTS = "steal_from_raw_handles_to_raii_handles("
_HEADER = "#include <torch/csrc/inductor/cpp_wrapper/cpu.h>\n"
_USED = """#undef __F16C__
#undef CPU_CAPABILITY_AVX2
#undef CPU_CAPABILITY_AVX512
#include <torch/csrc/inductor/aoti_runtime/utils.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
using namespace torch::aot_inductor;
"""
"""What calls of torch's C interface use of `_HEADER`: the rest, Python's interface and ATen's types, takes the compiler
as long as the calls themselves. By these names, c10::Half includes the processor's intrinsics."""
_INCLUDE = re.compile(r"^[ \t]*#[ \t]*include\b.*\n", re.MULTILINE)
_RELEASE = re.compile(r"^.*gil_scoped_release\w* \w+;\n", re.MULTILINE)
_LOOPED = re.compile(r"\baoti_torch_empty_strided(?=\([^;]*&while_loop_\w+\))")
_KERNEL = re.compile(r'^extern "C" [^;{]*{$.*?^}$', re.MULTILINE | re.DOTALL)
_DEFINED = re.compile(r'^extern "C"\s+(?:__attribute__\S+\s+)?void\s+(\w+)\(', re.MULTILINE)
_LOOP = re.compile(r"^(?= *#pragma omp (?:for|single|parallel))", re.MULTILINE)
_THREAD = re.compile(r"\bint tid = omp_get_thread_num\(\);")
_SHARED = re.compile(r"#pragma omp for.*")
_ADDS = "atomic_add"


@frozen(eq=False)
class Code:
    """Inductor's C++ of a part."""

    calls: str
    kernels: str
    outputs: int

    @classmethod
    def read(cls, calls: str, kernels: str, outputs: int) -> Code:
        """Adapt Inductor's output. Raises CaptureError if its form is unknown."""
        _once("header", calls.count(_HEADER), 1)
        _once("place that takes the inputs", calls.count(_INPUTS), 1)  # see buffers.cpp
        # ctypes released the interpreter's lock before the loop over steps.
        calls, count = _RELEASE.subn("", calls)
        # A loop's next iteration reads this buffer, so it can't be the one kept for its place in the code: brackets
        # prevent expansion of the macro in buffers.cpp.
        calls = _LOOPED.sub(lambda name: f"({name.group()})", calls)
        _once("release of the interpreter's lock", count, 1)
        _once("kernel", len(_KERNEL.findall(kernels)), len(_DEFINED.findall(kernels)))
        return cls(calls, _KERNEL.sub(lambda k: _serial(k.group()), kernels), outputs)


@frozen
class Program:
    """The C++ of a program: of the parts of a chain, or of one."""

    parts: tuple[Code, ...]
    chain: Chain | None = None


def entry(k: int) -> str:
    """The name of program k in a library."""
    return f"pipeline_program_{k}"


def joined(programs: Sequence[Program], kind: str) -> tuple[str, str]:
    """The calls and the kernels of all programs, each distinct part in its own namespace. If the calls don't compile,
    they need all headers; see `whole`."""
    includes: dict[str, None] = {
        "#include <cstdint>\n#include <cstring>\n#include <exception>\n#include <vector>\n": None
    }
    kernel_includes: dict[str, None] = {}
    calls: list[str] = []
    kernels: list[str] = []
    times = _times(programs)
    spaces = {part: f"part_{i}" for i, part in enumerate(times)}
    for i, (part, space) in enumerate(spaces.items()):
        rename = _renaming(_DEFINED.findall(part.kernels), i)
        calls.append(f"#undef PIPELINE_CALLS\n#define PIPELINE_CALLS {times[part]}\n")
        for content, texts, lines in ((part.calls, calls, includes), (part.kernels, kernels, kernel_includes)):
            lines.update(dict.fromkeys(_INCLUDE.findall(content)))
            texts.append(f"namespace {space} {{\n{rename(_INCLUDE.sub('', content))}\n}}\n")
    chains = [_source("chain")] if any(program.chain for program in programs) else []
    entries = []
    for k, program in enumerate(programs):
        names = [spaces[part] for part in program.parts]
        if program.chain:
            chains.append(_chained(program.chain, names, f"program_{k}"))
        entries.append(f"PIPELINE_{kind}({entry(k)}, {f'program_{k}' if program.chain else names[0]})\n")
    shortcuts = [_source("flush"), _source("products"), *([_source("buffers")] if kind == RUN else [])]
    if kind == RUN:  # each thread has its own register for flushing
        kernels = [_source("flush"), *(_THREAD.sub(r"\g<0> const PipelineFlush flush;", text) for text in kernels)]
    header = "".join(includes).replace(_HEADER, _USED)
    called = "".join([header, *shortcuts, *calls, *chains, _source("loop"), *entries])
    return called, "".join([*kernel_includes, *kernels])


def _times(programs: Sequence[Program]) -> dict[Code, int]:
    """Each distinct part, and the most calls of it in one program."""
    times: dict[Code, int] = {}
    for program in programs:
        for i, part in enumerate(program.parts):
            calls = sum(call.part == i for call in program.chain.calls) if program.chain else 1
            times[part] = max(calls, times.get(part, 0))
    return times


def _chained(chain: Chain, spaces: Sequence[str], name: str) -> str:
    """The entry of a program in parts; see chain.cpp."""
    plan: list[int] = []
    done = [0] * len(spaces)
    for call in chain.calls:
        plan += [call.part, done[call.part]]
        done[call.part] += 1
        for values in (call.inputs, call.outputs, call.freed):
            plan += [len(values), *values]
    parts = ", ".join(f"{space}::inductor_entry_impl" for space in spaces)
    numbers = ", ".join(map(str, plan))
    facts = f"std::end(plan), {len(chain.inputs)}, {chain.values}, {{{', '.join(map(str, chain.outputs))}}}"
    return (
        f"namespace {name} {{\n"
        "static void inductor_entry_impl(AtenTensorHandle* inputs, AtenTensorHandle* outputs) {\n"
        f"  static const PipelinePart parts[] = {{{parts}}};\n  static const int32_t plan[] = {{{numbers}}};\n"
        f"  pipeline_chain(parts, plan, {facts}, inputs, outputs);\n}}\n}}\n"
    )


def whole(calls: str) -> str:
    """Joined calls with all headers that Inductor includes, such as for operations called through Python."""
    return calls.replace(_USED, _HEADER, 1)


def _renaming(names: Sequence[str], k: int) -> Callable[[str], str]:
    """Number the names of kernels: extern "C" ignores namespaces."""
    if not names:
        return lambda code: code
    words = re.compile(rf"\b({'|'.join(map(re.escape, names))})\b")
    return lambda code: words.sub(rf"\1_{k}", code)


def _source(name: str) -> str:
    return files.read(Path(__file__).parent / f"{name}.cpp").decode()


def _once(what: str, count: int, expected: int) -> None:
    if count != expected:
        raise CaptureError(f"Inductor's C++ is not as known: it has {count} times a {what}, not {expected}")


def _serial(kernel: str) -> str:
    """Run loops with atomic additions, such as an embedding's gradient, on one thread: otherwise the order of
    additions, and so the last bits, differ in each run."""
    if "#pragma omp" not in kernel:
        return kernel
    loops = _LOOP.split(kernel)
    for i, loop in enumerate(loops):
        if _ADDS in loop:
            loops[i], count = _SHARED.subn("#pragma omp single", loop, count=1)
            _once("shared loop around an addition", count + loop.count("#pragma omp single"), 1)
    return "".join(loops)
