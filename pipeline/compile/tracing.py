"""Tracing: a program as one flat graph of tensor operations, or an error with the stage and the reason.

A graph is a function of its inputs alone: tensors held by a stage or a module, and tensors created from numbers, become
inputs too, bound once.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve, frozen
from torch import Tensor
from torch._subclasses import fake_tensor
from torch.distributions import Distribution
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.traceback import preserve_node_meta

from pipeline.backward import Gradients
from pipeline.compile import collectives, passes
from pipeline.compile.id_checks import IdCheck, add_id_checks
from pipeline.compile.passes import nodes, stage_of
from pipeline.compile.recurrent import kept_whole
from pipeline.draws import drops_nothing
from pipeline.element import Element
from pipeline.errors import CaptureError, StageError, first_line, place_of
from pipeline.programs.program import Program
from pipeline.stage import Stage

if TYPE_CHECKING:
    from pipeline.compile.symbolic import Sizes

_VALUE_ERRORS: tuple[type[Exception], ...] = (
    fake_tensor.DataDependentOutputException,
    fake_tensor.DynamicOutputShapeException,
    fake_tensor.UnsupportedOperatorException,
)

_LOW = (torch.bfloat16, torch.float16)


@frozen(eq=False)
class Traced:
    """A graph whose placeholders are the arguments that it was traced on, then `constants`."""

    graph: GraphModule
    constants: tuple[Tensor, ...]
    sizes: Sizes | None
    """The symbolic sizes of its arguments."""
    id_checks: tuple[IdCheck, ...] = ()
    """Checks of ids before it runs."""
    checks: bool = False
    """Whether its last output says that all other ids were in range."""

    @functools.cached_property
    def operations(self) -> int:
        return sum(node.op == "call_function" for node in nodes(self.graph))

    @property
    def low_precision(self) -> bool:
        """Whether it computes in less than float32 anywhere."""
        return any(getattr(node.meta.get("val"), "dtype", None) in _LOW for node in nodes(self.graph))

    @property
    def talks(self) -> bool:
        """Whether it has collectives, which other processes take part in."""
        return any(getattr(node.target, "namespace", "") == "_c10d_functional" for node in nodes(self.graph))

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """Its outputs, as fake tensors."""
        [node] = self.graph.graph.find_nodes(op="output")
        return tuple(n.meta["val"] for n in node.args[0])


def trace(
    function: Callable[..., Any], args: Sequence[Tensor], varying: Sequence[Collection[int]] = (),
    fixed: Collection[int] = (),
) -> Traced:  # fmt: skip
    """A function of tensors as one flat graph of ATen operations, gradients included.

    `varying` are the dimensions of the last arguments to make symbolic, `fixed` the places of arguments that no call
    changes. Raises CaptureError if the result depends on more than tensors: on a value read into Python, or on torch's
    global generator.
    """
    sizes, unreadable = None, _VALUE_ERRORS
    if varying:
        from pipeline.compile import symbolic

        sizes, unreadable = symbolic.Sizes(args, varying), (*_VALUE_ERRORS, symbolic.UNREADABLE)
    mode = sizes.mode if sizes else fake_tensor.FakeTensorMode(allow_non_fake_inputs=True)
    fakes = sizes.fakes if sizes else [mode.from_tensor(t) for t in args]
    symbols = sizes.tracing() if sizes else nullcontext()
    try:
        with torch.no_grad(), mode, symbols, kept_whole(), preserve_node_meta(), _tracing():
            graph = make_fx(function)(*fakes)
    except StageError as e:
        if isinstance(e.__cause__, unreadable):
            raise _uncaptured(e) from e
        raise
    for module in passes.graphs(graph):
        passes.repair(module)
        passes.merge_numbers(module)
    # On an accelerator, reading the flag of each call would wait for the device, whose kernels assert by themselves.
    id_checks, checks = add_id_checks(graph, fixed, stage_of, guard=all(t.device.type == "cpu" for t in args))
    collectives.schedule(graph)
    for node in nodes(graph):
        # An operation with built-in dropout has the tag, but a probability of 0: pipeline.draws has done the dropout.
        tagged = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        if tagged and not drops_nothing(node.target, node.args, node.kwargs):
            raise CaptureError(
                f"stage {stage_of(node)!r} draws random numbers through {node.target}, which can't be a function of "
                "(seed, step); draw with torch.rand or nn.Dropout, or use fallback='eager'"
            )
    constants = passes.lift_constants(graph)
    for module in passes.graphs(graph):
        module.recompile()
    return Traced(graph, constants, sizes, id_checks, checks)


def _uncaptured(error: StageError) -> CaptureError:
    """The error of a stage that no graph can express: operation, line, and a replacement to write."""
    cause = error.__cause__
    assert cause is not None
    operator = re.search(r"(?:aten|prims|c10d)\.(\w+)", str(cause))
    name = operator[1] if operator else ""
    default = "reads a tensor's value into Python", "use tensor operations such as torch.where"
    does, instead = next((words for known, words in _INSTEAD.items() if re.match(known, name)), default)
    return CaptureError(
        f"stage {error.stage!r} can't be captured as a graph: it {does}{place_of(cause)} ({first_line(cause)}); "
        f"{instead}, or fallback='eager'"
    )


_INSTEAD = {
    "nonzero|masked_select|unique": (
        "makes a tensor whose size depends on values",
        "keep all rows, and multiply or torch.where them by a mask",
    ),
    "_pack_padded_sequence|_use_cudnn_ctc|_ctc_loss|ctc_loss": ("reads lengths", "pad, and mask the padding"),
    "_local_scalar_dense|item": (
        "reads a tensor's value into Python",
        "use tensor operations: torch.where(flag, a, b) for an if, and index by tensors, such as "
        "queue[(at + torch.arange(n)) % size] for queue[int(at) : int(at) + n]",
    ),
}
"""Operators that no graph can have -> their effect, and a replacement to write."""


def watched(program: Program, within: Callable[[str], AbstractContextManager[Any]]) -> Program:
    """The same pipeline, whose stages after place run within a context made of their names."""

    def watch(s: Element) -> Element:
        if not isinstance(s, Stage) or isinstance(s, Gradients) or s not in program.pipe.graph:
            return s  # a backward remembers its route

        @functools.wraps(s.function)
        def function(*args: Any, **kwargs: Any) -> Any:
            with within(s.name):
                return s.function(*args, **kwargs)

        return evolve(s, function=function)

    return program.of([watch(s) for s in program.pipe.stages])


@contextmanager
def _tracing() -> Iterator[None]:
    """Set torch.compiler.is_compiling(), so that models do not read values, and turn off validation in
    distributions."""
    before, validates = torch.compiler._is_compiling_flag, Distribution._validate_args
    torch.compiler._is_compiling_flag, Distribution._validate_args = True, False
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag, Distribution._validate_args = before, validates
