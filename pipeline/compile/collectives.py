"""Collectives: when the processes of a mesh talk in a graph. Whole weights are put together just before they are used,
and again for the backward; gradients are summed as soon as they are there. So few of both are in memory at once, and a
backend can compute meanwhile."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.fx import GraphModule, Node

_ATEN, _OPERATORS = torch.ops.aten, torch.ops._c10d_functional
_GATHER = _OPERATORS.all_gather_into_tensor.default
_WAIT = _OPERATORS.wait_tensor.default
_SUMS = (_OPERATORS.reduce_scatter_tensor.default, _OPERATORS.all_reduce.default)

LIVE = 2
"""How many buckets of weights are kept whole, those that were used last."""


def scheduled(graph: GraphModule) -> None:
    """Put the collectives of a graph where they belong."""
    _sunk(graph)
    _raised(graph)
    graph.recompile()


def _sunk(graph: GraphModule) -> None:
    """Have weights put together where they are used: anew, where other ones were used since."""
    nodes = list(graph.graph.nodes)
    bucket = _unpacked(nodes)
    if not bucket:
        return
    live: list[Node] = []
    copies: dict[Node, dict[Node, Node]] = {}
    for node in nodes:
        if node in bucket or node.op == "placeholder":
            continue
        for read in list(node.all_input_nodes):
            if read not in bucket:
                continue
            home = bucket[read]
            if home not in live:
                copies[home] = {}
            live = [*[b for b in live if b is not home], home][-LIVE:]
            node.replace_input_with(read, _copied(graph, read, node, bucket, copies[home]))
    for node in reversed(nodes):
        if node in bucket and not node.users:
            graph.graph.erase_node(node)


def _unpacked(nodes: Iterable[Node]) -> dict[Node, Node]:
    """What leads from the inputs of a graph to whole weights, each with the collective that it goes through: that is
    made of inputs alone, and all that is made of it alone by views."""
    bucket: dict[Node, Node] = {}
    given: set[Node] = set()
    for node in nodes:
        reads = node.all_input_nodes
        if node.op == "placeholder":
            given.add(node)
        elif node.op != "call_function" or not reads:
            continue
        elif node.target is _GATHER:
            own = _ancestors(node, given)
            if own is not None:
                bucket |= dict.fromkeys((*own, node), node)
        elif len(reads) == 1 and reads[0] in bucket and (node.target is _WAIT or _views(node)):
            bucket[node] = bucket[reads[0]]
    return bucket


def _ancestors(node: Node, given: set[Node]) -> list[Node] | None:
    """What a node is made of, up to the inputs of the graph; None where that is more than a few views and a copy."""
    found: dict[Node, None] = {}
    waiting = list(node.all_input_nodes)
    while waiting:
        n = waiting.pop()
        if n in given or n in found:
            continue
        if n.target is not _ATEN.cat.default and not _views(n):
            return None
        found[n] = None
        waiting += n.all_input_nodes
    return list(found)


def _views(node: Node) -> bool:
    """Whether it shows the same numbers in another shape, or a copy of them."""
    returns = getattr(getattr(node.target, "_schema", None), "returns", ())
    shown = (_ATEN.view.default, _ATEN.reshape.default, _ATEN._unsafe_view.default, _ATEN.clone.default)
    return any(r.alias_info is not None for r in returns) or node.target in shown


def _copied(graph: GraphModule, node: Node, before: Node, bucket: dict[Node, Node], made: dict[Node, Node]) -> Node:
    """A node of a bucket, with what it is made of, once more, in front of another one."""
    if node not in bucket:
        return node
    if node not in made:
        inputs = {n: _copied(graph, n, before, bucket, made) for n in node.all_input_nodes}
        with graph.graph.inserting_before(before):
            made[node] = graph.graph.node_copy(node, lambda n: inputs[n])
    return made[node]


def _raised(graph: GraphModule) -> None:
    """Have sums over processes begin as soon as what is summed is there, and waited for where the next one begins."""
    nodes = list(graph.graph.nodes)
    place = {n: i for i, n in enumerate(nodes)}
    inputs = [node for node in nodes if node.op == "placeholder"][-1]
    for node in nodes:
        if node.target not in _SUMS:
            continue
        own, waiting = {node}, list(node.all_input_nodes)
        outside: list[Node] = []
        while waiting:
            n = waiting.pop()
            if n in own:
                continue
            if n.op == "call_function" and all(u in own for u in n.users) and _cheap(n):
                own.add(n)
                waiting += n.all_input_nodes
            else:
                outside.append(n)
        outside = [n for n in outside if n not in own]  # all that read it were found later
        last = max((*outside, inputs), key=place.__getitem__)
        for n in sorted(own, key=place.__getitem__, reverse=True):
            last.append(n)
        place = {n: i for i, n in enumerate(graph.graph.nodes)}
    before: Node | None = None
    for node in list(graph.graph.nodes):
        if node.target in _SUMS:
            if before is not None:
                node.prepend(before)
            waits = [u for u in node.users if u.target is _WAIT]
            before = waits[0] if waits else None
        elif before is not None and before in node.all_input_nodes:
            before = None


def _cheap(node: Node) -> bool:
    """Whether it is element by element, or a view or a copy: what is done to a gradient before it is summed."""
    tags, others = getattr(node.target, "tags", ()), (_ATEN.cat, _ATEN.constant_pad_nd, _ATEN._to_copy)
    return torch.Tag.pointwise in tags or _views(node) or getattr(node.target, "overloadpacket", None) in others
