"""Flow: the operations of a graph by the memory that they read and write, in an order in which it can be cut."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan_op
from torch.fx import GraphModule, Node

from pipeline.compile.passes import written

_ATEN = torch.ops.aten


class Flow:
    """The operations of a graph by the memory that they read: `steps` make new tensors or write, others are views."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._beneath: dict[Node, Node] = {}
        """View -> the argument that it is a view of."""
        for node in nodes:
            if (argument := self._viewed(node)) is not None:
                self._beneath[node] = argument
        self.steps = [n for n in nodes if n not in self._beneath and n.op != "get_attr"]
        self.clear = all(len(n.all_input_nodes) == 1 for n in self._beneath)
        """Whether each view reads one tensor, so that it can be made again from that alone."""

    def _viewed(self, node: Node) -> Node | None:
        if node.target is operator.getitem:
            [made] = node.all_input_nodes
            return made if made in self._beneath else None
        if written(node):
            return None
        memory = {t.untyped_storage()._cdata for t in tensors(node)}
        shared = (n for n in node.all_input_nodes for t in tensors(n) if t.untyped_storage()._cdata in memory)
        return next(shared, None)

    def base(self, node: Node) -> Node:
        """The node that made the memory of a value."""
        while node in self._beneath:
            node = self._beneath[node]
        return node

    def read(self, step: Node) -> list[Node]:
        """The bases that an operation reads or writes."""
        return [self.base(n) for n in step.all_input_nodes if n.op != "get_attr"]  # no body of a loop

    def sources(self, steps: Sequence[Node]) -> list[list[int]]:
        """The places of the operations that each one reads."""
        places = {n: i for i, n in enumerate(steps)}
        return [[places[n] for n in self.read(step) if n in places] for step in steps]


def known(node: Node) -> bool:
    """Whether it is known which memory an operation of torch writes: none, or that of its first argument, which it
    returns."""
    if node.target in (operator.getitem, scan_op) or node.op == "get_attr":
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    if not node.target._schema.is_mutable:
        return True
    first = node.args[0]
    return isinstance(first, Node) and written(node) == [first] and facts(node) == facts(first)


def tensors(node: Node) -> Iterator[Tensor]:
    value = node.meta.get("val")
    return (v for v in (value if isinstance(value, (tuple, list)) else (value,)) if isinstance(v, Tensor))


def facts(node: Node) -> str:
    return "".join(f"{v.dtype}{tuple(v.shape)}{v.stride()}" for v in tensors(node))


def free_draws(graph: GraphModule, nodes: Sequence[Node]) -> list[Node]:
    """Compute the numbers by which draws differ first, and return them: blocks with dropout are alike but for these.
    The k-th draw of a stage adds a multiple of k to the key; see draws.modes."""
    numbers: list[Node] = []
    for node in nodes:
        if node.target is not _ATEN.add.Tensor or facts(node) != "torch.int64()()" or not isinstance(node.args[1], int):
            continue
        if abs(node.args[1]) >= 2**16:  # no step of a counter
            with graph.graph.inserting_before(nodes[0]):
                dtype: dict[str, Any] = {"dtype": torch.int64}
                number = graph.graph.call_function(_ATEN.scalar_tensor.default, (node.args[1],), dtype)
            number.meta["val"] = node.meta["val"].new_empty(())
            node.args = (node.args[0], number)
            numbers.append(number)
    return numbers


def ordered(flow: Flow) -> list[Node]:
    """The operations, where what two of them do to one tensor is close together. A traced step scales all gradients
    before the first update, and writes all results at the end.

    A tensor is overwritten as soon as its old value is read no more, beside the computation of the new one. An
    elementwise operation on one tensor is done right before its result is read, if that takes no more memory.
    """
    place = {n: float(i) for i, n in enumerate(flow.steps)}
    writers: dict[Node, list[Node]] = {}
    readers: dict[Node, list[Node]] = {}
    for node in flow.steps:
        for base in dict.fromkeys(flow.read(node)):
            readers.setdefault(base, []).append(node)
        for argument in written(node):
            writers.setdefault(flow.base(argument), []).append(node)
    for node in reversed(flow.steps):
        if node in readers and _elementwise(flow, node) and not any(n in writers for n in (node, *flow.read(node))):
            place[node] = max(place[node], min(place[n] for n in readers[node]) - 0.25)
    for old, [write, *more] in writers.items():
        # The new value may be a choice between a result and the old value: if an id is out of range, nothing changes.
        moved = [*(n for n in flow.read(write) if readers[n] == [write] and n in place), write]
        read = {n for step in moved for n in flow.read(step)} - {old}
        if more or old in place or any(n in writers for n in read):
            continue  # move only single writes, and only those into inputs
        before = [n for n in (*read, *readers[old]) if n in place and n not in moved]
        earliest = max((place[n] for n in before), default=-1.0) + 0.5
        for node in moved:
            place[node] = min(place[node], earliest)
    return sorted(flow.steps, key=place.__getitem__)


def _elementwise(flow: Flow, node: Node) -> bool:
    """Whether an operation is elementwise, and its result takes about as much memory as all that it reads, or more."""
    value = node.meta.get("val")
    if torch.Tag.pointwise not in getattr(node.target, "tags", ()) or not isinstance(value, Tensor) or not value.ndim:
        return False
    return sum(t.nbytes for base in {*flow.read(node)} for t in tensors(base)) <= 1.25 * value.nbytes
