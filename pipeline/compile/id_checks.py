"""Checks: an id out of range is found inside the graph, and the step that it is in changes nothing.

Ids that are as they stand in a data set on the device, or in a tensor that code holds, cost no step anything: those of
the data are looked at once, before the first.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial, reduce
from typing import Any

import torch
from attrs import evolve, frozen
from torch import Tensor
from torch._higher_order_ops.scan import scan_op
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from pipeline.compile.backends.program import Run
from pipeline.errors import StageError
from pipeline.ids import Taken, taken

_ATEN = torch.ops.aten
_VIEWS = ("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "transpose", "permute", "t", "expand", "detach")
_SAME = frozenset((*_VIEWS, "clone", "alias", "lift_fresh_copy", "_to_copy", "index_select"))
"""Operations whose result holds no integers but those of their first argument."""


@frozen
class Look:
    """Ids that stand in the tensor at `place` of a program's arguments."""

    place: int
    stage: str
    taken: Taken

    def at(self, args: Sequence[Tensor]) -> None:
        """Raise StageError where one is out of range."""
        if said := self.taken.refused(args[self.place]):
            raise StageError(self.stage, f"fails on a value of its data set: {said}")


class Checked:
    """A bound program that returns, as its last, whether its ids were in range; where not, `again` does such a step
    uncompiled, which says what is wrong."""

    def __init__(self, bound: Run, again: Callable[..., None]) -> None:
        self.outputs, self._bound, self._again = bound.outputs[:-1], bound, again
        self.permute = getattr(bound, "permute", None)

    def run(self, given: Sequence[Tensor] = (), steps: int | None = None, results: bool = True) -> list[Tensor]:
        """As LibraryRun.run. Raises StageError, and then what the program writes into is as before the wrong step."""
        *made, fine = self._bound.run(given, steps)
        if not (fine if steps is None else fine.all()).item():
            self._again(*given)
            raise RuntimeError("an id is out of range in the compiled step, and in no uncompiled one")
        return made if results else []


def checked(
    graph: GraphModule, fixed: Collection[int], stage: Any, guard: bool = True
) -> tuple[tuple[Look, ...], bool]:
    """Have a graph check its ids: what is to be looked at before it runs, and whether it returns, as its last, if all
    others were in range. Where not, it leaves what it writes into as it was.

    `fixed` are the places of arguments that no step changes. Without `guard`, only what is to be looked at is found.
    """
    places = {n: i for i, n in enumerate(graph.graph.find_nodes(op="placeholder")) if i in fixed}
    looks: dict[Any, Look] = {}
    given: dict[Node, Node] = {}
    good: list[Node] = []
    loop: Any
    out: Any
    for loop in graph.graph.find_nodes(op="call_function", target=scan_op):
        body = getattr(graph, loop.args[0].target)
        inner = [*body.graph.find_nodes(op="placeholder")][len(loop.args[1]) :]
        given |= zip(inner, (*loop.args[2], *loop.args[3]), strict=True)
        if own := _guarded(body, given, places, looks, stage, guard):
            [out] = body.graph.find_nodes(op="output")
            with body.graph.inserting_before(out):
                out.args = ((*out.args[0], _all(body, own)),)
            body.recompile()
            rows = own[0].meta["val"].new_empty(len(loop.args[2][0].meta["val"]))
            with graph.graph.inserting_after(loop):
                good.append(graph.graph.call_function(operator.getitem, (loop, len(loop.meta["val"]))))
            loop.meta["val"] = (*loop.meta["val"], rows)
            good[-1].meta["val"] = rows
    good += _guarded(graph, given, places, looks, stage, guard)
    if good:
        [out] = graph.graph.find_nodes(op="output")
        copies: Any = graph.graph.find_nodes(op="call_function", target=_ATEN.copy_.default)
        writes = [n for n in copies if n.args[0].op == "placeholder"]
        with graph.graph.inserting_before(writes[0] if writes else out):
            fine = _all(graph, good)
        for n in writes:
            with graph.graph.inserting_before(n):
                n.args = (n.args[0], _made(graph, _ATEN.where.self, fine, n.args[1], n.args[0]))
        out.args = ((*out.args[0], fine),)
    graph.recompile()
    return tuple(looks.values()), bool(good)


def _guarded(
    graph: GraphModule, given: Mapping[Node, Node], places: Mapping[Node, int], looks: dict[Any, Look], stage: Any,
    guard: bool,
) -> list[Node]:  # fmt: skip
    """Have each operation read ids that are in range; whether those that it was given were, of each."""
    changed = {n for node in graph.graph.nodes for x in _written(node) for n in _chain(x, {})}
    known: dict[Any, Node] = {}
    good: list[Node] = []
    begun = False
    for node in list(graph.graph.nodes):
        begun = begun or bool(node.meta.get("custom"))  # what stands before the stages gathers the batch
        if not begun or not hasattr(node.target, "overloadpacket"):
            continue
        for one in taken(node.target, node.args, node.kwargs, lambda n: n.meta["val"]):
            chain, key = _chain(one.ids, given), (one.ids, str(one.size), one.wraps, one.ignored)
            if isinstance(one.size, int) and not changed.intersection(chain):
                if chain[-1] in places:
                    look = Look(places[chain[-1]], stage(node), evolve(one, ids=None, of=(None, None)))
                    looks.setdefault((look.place, *key[1:]), look)
                    continue
                if (held := _held(chain[-1])) is not None and not one.refused(held):
                    continue
            if not guard:
                continue
            if key not in known or one.ids in changed:
                with graph.graph.inserting_before(node):
                    fine, known[key] = _guard(graph, one)
                good.append(fine)
            node.args = map_arg(node.args, partial(_instead, one.ids, known[key]))
    return good


def _instead(old: Node, new: Node, node: Node) -> Node:
    return new if node is old else node


def _guard(graph: GraphModule, one: Taken) -> tuple[Node, Node]:
    """Whether ids are in range, and the same with 0 in the place of those that are not."""
    ids, size = one.ids, one.size
    if isinstance(size, torch.SymInt):
        of = (_ATEN.sym_numel.default, one.of[0]) if one.of[1] is None else (_ATEN.sym_size.int, *one.of)
        size = _made(graph, *of)
    at = ids
    if one.wraps:
        at = _made(graph, _ATEN.where.self, _made(graph, _ATEN.lt.Scalar, ids, 0),
                   _made(graph, _ATEN.add.Tensor, ids, size), ids)  # fmt: skip
    low, high = _made(graph, _ATEN.ge.Scalar, at, 0), _made(graph, _ATEN.lt.Scalar, at, size)
    fine = _made(graph, _ATEN.logical_and.default, low, high)
    if one.ignored is not None:
        fine = _made(graph, _ATEN.logical_or.default, fine, _made(graph, _ATEN.eq.Scalar, ids, one.ignored))
    return _made(graph, _ATEN.all.default, fine), _made(graph, _ATEN.mul.Tensor, ids, fine)


def _made(graph: GraphModule, target: Any, *args: Any) -> Node:
    node = graph.graph.call_function(target, args)
    values = [a.meta["val"] if isinstance(a, Node) else a for a in args]
    with torch.no_grad(), next(v.fake_mode for v in values if isinstance(v, FakeTensor)):
        node.meta["val"] = target(*values)
    return node


def _all(graph: GraphModule, good: Sequence[Node]) -> Node:
    each = [_made(graph, _ATEN.all.default, n) if n.meta["val"].ndim else n for n in good]
    return reduce(lambda a, b: _made(graph, _ATEN.logical_and.default, a, b), each)


def _written(node: Any) -> list[Node]:
    """What an operation writes into."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    return [a for s, a in zip(schema.arguments, node.args, strict=False) if s.is_write and isinstance(a, Node)]


def _chain(node: Any, given: Mapping[Node, Node]) -> list[Any]:
    """A node, and those that it has all its integers from; `given` are inputs of loops, and what these are given."""
    chain = [node]
    while True:
        node = chain[-1]
        name = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
        picks = name == "index_select" and node.meta.get("custom")  # a part, which may leave out what is wrong
        if node in given:
            chain.append(given[node])
        elif name in _SAME and not picks and not node.args[0].meta["val"].is_floating_point():
            chain.append(node.args[0])
        else:
            return chain


def _held(node: Any) -> Tensor | None:
    """The integers that code holds, or counts up."""
    if node.op == "get_attr":
        value = getattr(node.graph.owning_module, str(node.target))
        return value if isinstance(value, Tensor) else None
    counts = getattr(node.target, "overloadpacket", None) is _ATEN.arange
    if not counts or any(isinstance(a, Node) for a in node.args):
        return None
    made: Tensor = node.target(*node.args, **node.kwargs)
    return made
