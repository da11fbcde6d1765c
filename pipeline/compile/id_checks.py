"""Id checks: a graph finds ids out of range, and then its step changes nothing.

Ids that stay in place cost nothing per step: ids of a data set on the device are checked once, before the first step,
and constants during tracing.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve, frozen
from torch import Tensor
from torch._higher_order_ops.scan import scan_op
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule, Node

from pipeline.alike import layout, like
from pipeline.compile.passes import written
from pipeline.errors import StageError
from pipeline.ids import Ids, id_arguments

if TYPE_CHECKING:
    from pipeline.compile.backends.backend import Run

_ATEN = torch.ops.aten
_VIEWS = ("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "transpose", "permute", "t", "expand", "detach")
_SAME = frozenset((*_VIEWS, "clone", "alias", "lift_fresh_copy", "_to_copy", "index_select"))
"""Operations that only rearrange the integers of their first argument."""


@frozen
class IdCheck:
    """A check of the ids in the tensor at `place` of a program's arguments."""

    place: int
    stage: str
    ids: Ids

    def run(self, tensor: Tensor) -> None:
        """Raise StageError for an id out of range."""
        if error := self.ids.error(tensor):
            raise StageError(self.stage, f"fails on a value of its data set: {error}")


class Checked:
    """A bound program whose last output says whether its ids were in range; if not, `plain` repeats the step uncompiled
    and raises the error."""

    def __init__(self, bound: Run, plain: Callable[..., None]) -> None:
        self.outputs, self._bound, self._plain = bound.outputs[:-1], bound, plain
        self.permute = getattr(bound, "permute", None)

    def run(self, given: Sequence[Tensor] = (), steps: int | None = None, results: bool = True) -> list[Tensor]:
        """As LibraryRun.run. Raises StageError, and leaves State as it was before the wrong step."""
        *outputs, fine = self._bound.run(given, steps)
        if not (fine if steps is None else fine.all()).item():
            self._plain(*given)
            raise RuntimeError("an id is out of range in the compiled step, and in no uncompiled one")
        return outputs if results else []


def add_id_checks(
    graph: GraphModule, fixed: Collection[int], stage: Callable[[Node], str], guard: bool = True
) -> tuple[tuple[IdCheck, ...], bool]:
    """Guard the ids in a graph: if one is out of range, it writes nothing, and its last output is False.

    Ids in arguments at the places `fixed`, which no step changes, are left to checks before it runs. Returns these, and
    whether the graph has a guard; without `guard` it gets none.
    """
    arguments = {n: i for i, n in enumerate(graph.graph.find_nodes(op="placeholder")) if i in fixed}
    guards = _Guards(arguments, stage, guard)
    flags: list[Node] = []
    loop: Any
    for loop in graph.graph.find_nodes(op="call_function", target=scan_op):
        flags += _check_loop(graph, loop, guards)
    flags += guards.add(graph)
    if flags:
        out: Any
        [out] = graph.graph.find_nodes(op="output")
        copies: Any = graph.graph.find_nodes(op="call_function", target=_ATEN.copy_.default)
        writes = [n for n in copies if n.args[0].op == "placeholder"]
        *_, last = (n for n in graph.graph.nodes if n in flags)
        with graph.graph.inserting_before(last.next):
            fine = _all(graph, flags)
        for n in writes:
            with graph.graph.inserting_before(n):
                n.args = (n.args[0], _call(graph, _ATEN.where.self, fine, n.args[1], n.args[0]))
        out.args = ((*out.args[0], fine),)
    return tuple(guards.checks.values()), bool(flags)


def _check_loop(graph: GraphModule, loop: Any, guards: _Guards) -> list[Node]:
    """Add an output to the body of a scan, stacked by the loop: whether its ids are in range."""
    body = getattr(graph, loop.args[0].target)
    inner = [*body.graph.find_nodes(op="placeholder")][len(loop.args[1]) :]
    guards.sources |= zip(inner, (*loop.args[2], *loop.args[3]), strict=True)
    flags = guards.add(body)
    if not flags:
        return []
    [out] = body.graph.find_nodes(op="output")
    with body.graph.inserting_before(out):
        out.args = ((*out.args[0], _all(body, flags)),)
    stacked = flags[0].meta["val"].new_empty(len(loop.args[2][0].meta["val"]))
    with graph.graph.inserting_after(loop):
        flag = graph.graph.call_function(operator.getitem, (loop, len(loop.meta["val"])))
    loop.meta["val"] = (*loop.meta["val"], stacked)
    flag.meta["val"] = stacked
    return [flag]


class _Guards:
    """Guards the ids in a graph and in its loops."""

    def __init__(self, arguments: Mapping[Node, int], stage: Callable[[Node], str], guard: bool) -> None:
        self.arguments, self.stage, self.guard = arguments, stage, guard
        self.sources: dict[Node, Node] = {}
        """Input of a loop's body -> the node passed to it."""
        self.checks: dict[Any, IdCheck] = {}

    def add(self, graph: GraphModule) -> list[Node]:
        """Replace ids out of range by 0 in each operation; return flags, each true if all its ids were in range."""
        changed = {n for node in graph.graph.nodes for x in written(node) for n in _origins(x, {})}
        known: dict[Any, Node] = {}
        flags: list[Node] = []
        in_stages = False
        for node in list(graph.graph.nodes):
            in_stages = in_stages or bool(node.meta.get("custom"))  # nodes before the stages gather the batch
            if not in_stages or not hasattr(node.target, "overloadpacket"):
                continue
            for argument in id_arguments(node.target, node.args, node.kwargs, lambda n: n.meta["val"]):
                if self._in_place(argument, node, changed) or not self.guard:
                    continue
                ids, key = argument.ids, (argument.ids, str(argument.size), argument.wraps, argument.ignored)
                if key not in known or ids in changed:
                    with graph.graph.inserting_before(node):
                        fine, known[key] = _guard(graph, argument)
                    flags.append(fine)
                node.replace_input_with(ids, known[key])
        return flags

    def _in_place(self, argument: Ids, node: Node, changed: Collection[Node]) -> bool:
        """Whether ids need no guard: they come from an argument, which gets a check, or are constants in range."""
        origins = _origins(argument.ids, self.sources)
        if not isinstance(argument.size, int) or any(n in changed for n in origins):
            return False
        if origins[-1] in self.arguments:
            place = self.arguments[origins[-1]]
            check = IdCheck(place, self.stage(node), evolve(argument, ids=None, rows=(None, None)))
            self.checks.setdefault((place, str(argument.size), argument.wraps, argument.ignored), check)
            return True
        held = _held(origins[-1])
        return held is not None and not argument.error(held)


def _guard(graph: GraphModule, argument: Ids) -> tuple[Node, Node]:
    """Whether ids are in range, and the ids, with 0 for any out of range."""
    ids, size = argument.ids, argument.size
    if isinstance(size, torch.SymInt):
        x, dim = argument.rows
        size = _call(graph, *((_ATEN.sym_numel.default, x) if dim is None else (_ATEN.sym_size.int, x, dim)))
    index = ids
    if argument.wraps:
        negative, wrapped = _call(graph, _ATEN.lt.Scalar, ids, 0), _call(graph, _ATEN.add.Tensor, ids, size)
        index = _call(graph, _ATEN.where.self, negative, wrapped, ids)
    low, high = _call(graph, _ATEN.ge.Scalar, index, 0), _call(graph, _ATEN.lt.Scalar, index, size)
    fine = _call(graph, _ATEN.logical_and.default, low, high)
    if argument.ignored is not None:
        ignored = _call(graph, _ATEN.eq.Scalar, ids, argument.ignored)
        fine = _call(graph, _ATEN.logical_or.default, fine, ignored)
    return _call(graph, _ATEN.all.default, fine), _call(graph, _ATEN.mul.Tensor, ids, fine)


def _call(graph: GraphModule, target: Any, *args: Any) -> Node:
    node = graph.graph.call_function(target, args)
    values = [a.meta["val"] if isinstance(a, Node) else a for a in args]
    if target is _ATEN.where.self and layout(values[1]) == layout(values[2]):
        node.meta["val"] = like(values[1])  # one for each tensor of a State: a thousandth of a second each by torch
        return node
    with torch.no_grad(), next(v.fake_mode for v in values if isinstance(v, FakeTensor)):
        node.meta["val"] = target(*values)
    return node


def _all(graph: GraphModule, flags: Sequence[Node]) -> Node:
    each = [_call(graph, _ATEN.all.default, n) if n.meta["val"].ndim else n for n in flags]
    return reduce(lambda a, b: _call(graph, _ATEN.logical_and.default, a, b), each)


def _origins(node: Any, sources: Mapping[Node, Node]) -> list[Any]:
    """A node, followed by the successive sources of all its integers. `sources`: input of a loop's body -> node
    outside."""
    chain = [node]
    while True:
        node = chain[-1]
        name = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
        picks = name == "index_select" and node.meta.get("custom")  # a stage may leave out wrong ids
        if node in sources:
            chain.append(sources[node])
        elif name in _SAME and not picks and not node.args[0].meta["val"].is_floating_point():
            chain.append(node.args[0])
        else:
            return chain


def _held(node: Any) -> Tensor | None:
    """Constant integers, or a range of numbers."""
    if node.op == "get_attr":
        value = getattr(node.graph.owning_module, str(node.target))
        return value if isinstance(value, Tensor) else None
    ranges = getattr(node.target, "overloadpacket", None) is _ATEN.arange
    if not ranges or any(isinstance(a, Node) for a in node.args):
        return None
    numbers: Tensor = node.target(*node.args, **node.kwargs)
    return numbers
