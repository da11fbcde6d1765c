"""Collectives: schedule the communication of a mesh within a graph. Sharded weights are gathered just before they are
used, and again for the backward; gradients are reduced as soon as they are computed. So few of both are in memory at
once, and communication overlaps with computation."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.fx import GraphModule, Node

_ATEN, _OPERATORS = torch.ops.aten, torch.ops._c10d_functional
_GATHER = _OPERATORS.all_gather_into_tensor.default
_WAIT = _OPERATORS.wait_tensor.default
_REDUCTIONS = (_OPERATORS.reduce_scatter_tensor.default, _OPERATORS.all_reduce.default)

LIVE = 2
"""Buckets of gathered weights in memory, the last ones used."""


def schedule(graph: GraphModule) -> None:
    """Reorder the collectives of a graph: gather late, reduce early, wait late."""
    _gather_late(graph)
    _reduce_early(graph)
    _wait_late(graph)


def _gather_late(graph: GraphModule) -> None:
    """Gather weights just before their use, and again if other buckets were used in between."""
    nodes = list(graph.graph.nodes)
    bucket = _buckets(nodes)
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
            gather = bucket[read]
            if gather not in live:
                copies[gather] = {}
            live = [*[b for b in live if b is not gather], gather][-LIVE:]
            node.replace_input_with(read, _copy(graph, read, node, bucket, copies[gather]))
    for node in reversed(nodes):
        if node in bucket and not node.users:
            graph.graph.erase_node(node)


def _buckets(nodes: Iterable[Node]) -> dict[Node, Node]:
    """The gathers of weights by their nodes: each gather, its ancestors (from inputs alone), and the views of its
    result."""
    bucket: dict[Node, Node] = {}
    placeholders: set[Node] = set()
    for node in nodes:
        reads = node.all_input_nodes
        if node.op == "placeholder":
            placeholders.add(node)
        elif node.op != "call_function" or not reads:
            continue
        elif node.target is _GATHER:
            before = _ancestors(node, placeholders)
            if before is not None:
                bucket |= dict.fromkeys((*before, node), node)
        elif len(reads) == 1 and reads[0] in bucket and (node.target is _WAIT or _is_view(node)):
            bucket[node] = bucket[reads[0]]
    return bucket


def _ancestors(node: Node, placeholders: set[Node]) -> list[Node] | None:
    """The nodes from the inputs of a graph to a node; None if one of them is neither a view nor a cat."""
    ancestors: dict[Node, None] = {}
    waiting = list(node.all_input_nodes)
    while waiting:
        n = waiting.pop()
        if n in placeholders or n in ancestors:
            continue
        if n.target is not _ATEN.cat.default and not _is_view(n):
            return None
        ancestors[n] = None
        waiting += n.all_input_nodes
    return list(ancestors)


def _is_view(node: Node) -> bool:
    """Whether a node is a view or a copy of its input."""
    returns = getattr(getattr(node.target, "_schema", None), "returns", ())
    copies = (_ATEN.view.default, _ATEN.reshape.default, _ATEN._unsafe_view.default, _ATEN.clone.default)
    return any(r.alias_info is not None for r in returns) or node.target in copies


def _copy(graph: GraphModule, node: Node, before: Node, bucket: dict[Node, Node], copies: dict[Node, Node]) -> Node:
    """A copy of a bucket's node, and of all its ancestors, in front of another node."""
    if node not in bucket:
        return node
    if node not in copies:
        inputs = {n: _copy(graph, n, before, bucket, copies) for n in node.all_input_nodes}
        with graph.graph.inserting_before(before):
            copies[node] = graph.graph.node_copy(node, lambda n: inputs[n])
    return copies[node]


def _reduce_early(graph: GraphModule) -> None:
    """Move each reduction, with the cheap operations that only it needs, to right after their inputs."""
    nodes = list(graph.graph.nodes)
    place = {n: i for i, n in enumerate(nodes)}
    inputs = [node for node in nodes if node.op == "placeholder"][-1]
    for node in nodes:
        if node.target not in _REDUCTIONS:
            continue
        moved, waiting = {node}, list(node.all_input_nodes)
        outside: list[Node] = []
        while waiting:
            n = waiting.pop()
            if n in moved:
                continue
            if n.op == "call_function" and all(u in moved for u in n.users) and _is_cheap(n):
                moved.add(n)
                waiting += n.all_input_nodes
            else:
                outside.append(n)
        outside = [n for n in outside if n not in moved]  # a later user may have moved it
        last = max((*outside, inputs), key=place.__getitem__)
        for n in sorted(moved, key=place.__getitem__, reverse=True):
            last.append(n)
        place = {n: i for i, n in enumerate(graph.graph.nodes)}


def _wait_late(graph: GraphModule) -> None:
    """Wait for a reduction when the next one starts, or its result is read."""
    wait: Node | None = None
    for node in list(graph.graph.nodes):
        if node.target in _REDUCTIONS:
            if wait is not None:
                node.prepend(wait)
            wait = next((u for u in node.users if u.target is _WAIT), None)
        elif wait is not None and wait in node.all_input_nodes:
            wait = None


def _is_cheap(node: Node) -> bool:
    """Whether a node is elementwise, a view or a copy, such as a gradient's operations before its reduction."""
    tags, others = getattr(node.target, "tags", ()), (_ATEN.cat, _ATEN.constant_pad_nd, _ATEN._to_copy)
    return torch.Tag.pointwise in tags or _is_view(node) or getattr(node.target, "overloadpacket", None) in others
