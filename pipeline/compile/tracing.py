"""Tracing: a program as one flat graph of tensor operations, or the stage and the reason why it can't be.

A graph is a function of its inputs alone: tensors that a stage or a module holds, and those made from numbers, are
found while tracing and become inputs too, which are bound once.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve, frozen
from torch import Tensor
from torch._higher_order_ops.scan import scan_op
from torch._subclasses import fake_tensor
from torch.distributions import Distribution
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.traceback import annotate, preserve_node_meta

from pipeline.backward import Gradients
from pipeline.compile import collectives
from pipeline.compile.id_checks import Look, checked
from pipeline.compile.recurrent import kept_whole
from pipeline.draws import drops_nothing
from pipeline.errors import CaptureError, StageError, place_of
from pipeline.programs.program import Program
from pipeline.stage import Stage, first_line

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
    """A graph whose placeholders are the arguments that it was traced on, and behind them `constants`."""

    graph: GraphModule
    constants: tuple[Tensor, ...]
    sizes: Sizes | None
    """Those that are symbols, if some are."""
    looks: tuple[Look, ...] = ()
    checks: bool = False
    """Whether its last output is whether all other ids were in range."""

    @functools.cached_property
    def operations(self) -> int:
        return sum(node.op == "call_function" for node in nodes(self.graph))

    @property
    def low_precision(self) -> bool:
        """Whether some number in it has fewer bits than float32."""
        return any(getattr(node.meta.get("val"), "dtype", None) in _LOW for node in nodes(self.graph))

    @property
    def talks(self) -> bool:
        """Whether it has collectives, in which other processes take part."""
        return any(getattr(node.target, "namespace", "") == "_c10d_functional" for node in nodes(self.graph))

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """What it returns, as fake tensors."""
        [node] = self.graph.graph.find_nodes(op="output")
        return tuple(n.meta["val"] for n in node.args[0])


def _graphs(graph: GraphModule) -> list[GraphModule]:
    """A graph, and those that its operations hold, as the loop over the parts of a batch does."""
    return [module for module in graph.modules() if isinstance(module, GraphModule)]


def nodes(graph: GraphModule) -> Iterator[Node]:
    """All operations of a graph, and of those within it."""
    return (node for part in _graphs(graph) for node in part.graph.nodes)


def trace(
    function: Callable[..., Any], args: Sequence[Tensor], varying: Sequence[Collection[int]] = (),
    fixed: Collection[int] = (),
) -> Traced:  # fmt: skip
    """A function of tensors as one flat graph of ATen operations, gradients included.

    `varying` names the dimensions that get symbolic sizes, for as many of the last arguments as it has entries, `fixed`
    the places of those that no call changes. Raises CaptureError where the result would depend on more than tensors: on
    a value read into Python, or on torch's global generator.
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
    for part in _graphs(graph):
        _mended(part)
        _merged(part)
    # On an accelerator, to read the flag of each call would wait for the device, whose kernels assert by themselves.
    looks, checks = checked(graph, fixed, _stage, guard=all(t.device.type == "cpu" for t in args))
    collectives.scheduled(graph)
    for node in nodes(graph):
        # Some carry the tag for a dropout of their own, which is 0 here: pipeline.draws has done it already.
        tagged = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        if tagged and not drops_nothing(node.target, node.args, node.kwargs):
            raise CaptureError(
                f"stage {_stage(node)!r} draws random numbers through {node.target}, which can't be made a function of "
                "(seed, step); draw with torch.rand or nn.Dropout, or use fallback='eager'"
            )
    return Traced(graph, _lifted(graph), sizes, looks, checks)


def _uncaptured(error: StageError) -> CaptureError:
    """What a stage does that no graph can, in which line, and what to write instead."""
    cause = error.__cause__
    assert cause is not None
    operator = re.search(r"(?:aten|prims|c10d)\.(\w+)", str(cause))
    name = operator[1] if operator else ""
    does, instead = next(
        (words for known, words in _INSTEAD.items() if re.match(known, name)),
        ("reads a tensor's value into Python", "use tensor operations such as torch.where"),
    )
    return CaptureError(
        f"stage {error.stage!r} can't be captured as a graph: it {does}{place_of(cause)} ({first_line(cause)}); "
        f"{instead}, or fallback='eager'"
    )


_INSTEAD = {
    "nonzero|masked_select|unique": (
        "makes a tensor whose size depends on values",
        "keep all rows, and multiply or torch.where them by a mask",
    ),
    "_pack_padded_sequence|_use_cudnn_ctc|_ctc_loss|ctc_loss": ("reads lengths", "pad, and mask what is beyond them"),
    "_local_scalar_dense|item": (
        "reads a tensor's value into Python",
        "use tensor operations: torch.where(flag, a, b) for an if, and index by tensors, such as "
        "queue[(at + torch.arange(n)) % size] for queue[int(at) : int(at) + n]",
    ),
}
"""What operators do that have no place in a graph, and what to write instead."""


def _mended(graph: GraphModule) -> None:
    """Take out what compilers do not take.

    That is a profiler's marks, and torch.cat of one tensor and empty ones: for that, Inductor's is a clone with the
    tensor's strides, where torch's is contiguous, and views of it rely on that.
    """
    for node in list(graph.graph.nodes):
        if "_record_function" in str(node.target):
            node.replace_all_uses_with(None)  # an end takes what its beginning gave
            graph.graph.erase_node(node)
        elif node.target is torch.ops.aten.cat.default:
            parts = [t for t in node.args[0] if t.meta["val"].shape != (0,)]
            same = len(parts) == 1 and parts[0].meta["val"].dtype == node.meta["val"].dtype
            if same and node.meta["val"].is_contiguous():
                with graph.graph.inserting_before(node):
                    options: dict[str, Any] = {"memory_format": torch.contiguous_format}
                    made = graph.graph.call_function(torch.ops.aten.clone.default, (parts[0],), options)
                made.meta.update(node.meta)
                node.replace_all_uses_with(made)
                graph.graph.erase_node(node)


def _merged(graph: GraphModule) -> None:
    """Have a number that is worked out of the same numbers in the same way be worked out once.

    Rules are mapped over the parameters, so each has a bias correction of its own, and a compiler makes a kernel for
    each. Larger results are left alone: to keep one costs memory.
    """
    known: dict[Any, Node] = {}
    for node in list(graph.graph.nodes):
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            continue
        if schema.is_mutable:
            known.clear()  # what was read before may be other now
        read = [*node.args, *node.kwargs.values()]
        numbers = [x for x in read if isinstance(x, Node)]
        small = all(is_number(x.meta.get("val")) for x in (node, *numbers))
        if not numbers or not small or schema.is_mutable:
            continue
        if torch.Tag.nondeterministic_seeded in node.target.tags or any(r.alias_info for r in schema.returns):
            continue
        same = known.setdefault((node.target, repr(read), tuple(node.kwargs), node.meta["val"].dtype), node)
        if same is not node:
            node.replace_all_uses_with(same)
            graph.graph.erase_node(node)
    graph.recompile()


MEMBERS = 4096
"""As many numbers, one for each member of a sweep, are taken as one is."""


def is_number(value: Any) -> bool:
    """Whether something in a graph is a number, or one for each member."""
    return isinstance(value, Tensor) and value.ndim <= 1 and value.numel() <= MEMBERS


def _lifted(graph: GraphModule) -> tuple[Tensor, ...]:
    """Make the tensors that a graph holds its last inputs, and return them."""
    for node in graph.graph.find_nodes(op="call_function", target=scan_op):
        _handed(graph, node)
    places: dict[int, Node] = {}
    constants: list[Tensor] = []
    last = list(graph.graph.find_nodes(op="placeholder"))[-1]
    for node in graph.graph.find_nodes(op="get_attr"):
        value = getattr(graph, str(node.target))
        if not isinstance(value, Tensor):
            continue  # the graph of a higher-order operation
        if value.layout is not torch.strided or value.is_quantized or value.is_nested:
            raise CaptureError(f"stage {_stage(node)!r} holds a tensor of layout {value.layout}; hold a plain one")
        held = value.detach()
        if id(value) not in places:
            with graph.graph.inserting_after(last):
                last = places[id(value)] = graph.graph.placeholder(f"held_{len(constants)}")
            constants.append(held.view(1) if held.ndim == 0 else held)  # no input is 0-d: see functions
            last.meta["val"] = constants[-1]
        read = places[id(value)]
        if held.ndim == 0:
            with graph.graph.inserting_before(node):
                read = graph.graph.call_function(torch.ops.aten.view.default, (read, []))
            read.meta.update(node.meta, val=held)
        node.replace_all_uses_with(read)
        graph.graph.erase_node(node)
    graph.recompile()
    return tuple(constants)


def _handed(graph: GraphModule, loop: Node) -> None:
    """Have a graph hold what the graph of a loop in it holds, and give it to that."""
    inner = getattr(graph, str(loop.args[0].target))  # type: ignore[union-attr]  # the graph is an attribute
    last = list(inner.graph.find_nodes(op="placeholder"))[-1]
    places: dict[str, Node] = {}
    for held in inner.graph.find_nodes(op="get_attr"):
        name = str(held.target)
        if name not in places:
            setattr(graph, f"{loop.name}_{name}", getattr(inner, name))
            with graph.graph.inserting_before(loop):
                given = graph.graph.create_node("get_attr", f"{loop.name}_{name}")  # get_attr() warns of plain tensors
            with inner.graph.inserting_after(last):
                last = places[name] = inner.graph.placeholder(f"given{name}")
            for node in (given, last):
                node.meta.update(held.meta)
            loop.args = (*loop.args[:3], (*loop.args[3], given))  # type: ignore[misc]  # a tuple of nodes
        held.replace_all_uses_with(places[name])
        inner.graph.erase_node(held)
    inner.recompile()


def _stage(node: Node) -> str:
    stage: str = node.meta.get("custom", {}).get("stage", "?")
    return stage


def watched(program: Program) -> Program:
    """The same pipeline with stages that note their names in the graph."""

    def watch(s: Stage) -> Stage:
        @functools.wraps(s.function)
        def function(*args: Any, **kwargs: Any) -> Any:
            with annotate({"stage": s.name}):
                return s.function(*args, **kwargs)

        return evolve(s, function=function)

    # A backward is the same one: it remembers its route.
    stages = program.pipe.stages
    return program.of([watch(s) if isinstance(s, Stage) and not isinstance(s, Gradients) else s for s in stages])


@contextmanager
def _tracing() -> Iterator[None]:
    """torch.compiler.is_compiling() says so meanwhile: models ask it before they look at values. Distributions do not
    look at theirs."""
    before, looks = torch.compiler._is_compiling_flag, Distribution._validate_args
    torch.compiler._is_compiling_flag, Distribution._validate_args = True, False
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag, Distribution._validate_args = before, looks
