"""Passes over a traced graph: repairs for compilers, common subexpressions, and constants lifted to inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan_op
from torch.fx import GraphModule, Node

from pipeline.errors import CaptureError

MEMBERS = 4096
"""Tensors of at most this many values count as one number per member of a sweep."""


def graphs(graph: GraphModule) -> list[GraphModule]:
    """A graph, and the graphs of its loops."""
    return [module for module in graph.modules() if isinstance(module, GraphModule)]


def nodes(graph: GraphModule) -> Iterator[Node]:
    """The nodes of a graph and of its loops."""
    return (node for module in graphs(graph) for node in module.graph.nodes)


def stage_of(node: Node) -> str:
    """The name of the stage that a node belongs to."""
    stage: str = node.meta.get("custom", {}).get("stage", "?")
    return stage


def is_number(value: Any) -> bool:
    """Whether a value is a number, or one for each member of a sweep."""
    return isinstance(value, Tensor) and value.ndim <= 1 and value.numel() <= MEMBERS


def written(node: Any) -> list[Node]:
    """The arguments that an operation writes into."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    return [a for a in _given(node, lambda s: s.is_write) if isinstance(a, Node)]


def _given(node: Node, of: Callable[[Any], bool]) -> list[Any]:
    """The arguments of an operation whose schema is chosen by `of`."""
    arguments = node.target._schema.arguments  # type: ignore[union-attr]  # an operator
    places = ((s, node.args[i] if i < len(node.args) else node.kwargs.get(s.name)) for i, s in enumerate(arguments))
    return [a for s, a in places if of(s)]


def _changed(graph: GraphModule) -> set[Node]:
    """The nodes whose memory a later operation writes into, directly or by a view."""
    changed: set[Node] = set()
    todo = [a for node in graph.graph.nodes for a in written(node)]
    while todo:
        if (node := todo.pop()) not in changed:
            changed.add(node)
            if hasattr(node.target, "_schema"):
                todo += [a for a in _given(node, lambda s: s.alias_info is not None) if isinstance(a, Node)]
    return changed


def repair(graph: GraphModule) -> None:
    """Remove operations that compilers refuse or get wrong: marks of profilers, and torch.cat of one tensor and empty
    ones. Inductor's clone keeps the tensor's strides, but torch's is contiguous, and later views rely on it.
    """
    for node in list(graph.graph.nodes):
        if "_record_function" in str(node.target):
            node.replace_all_uses_with(None)  # the end of a mark has its beginning as argument
            graph.graph.erase_node(node)
        elif node.target is torch.ops.aten.cat.default:
            parts = [t for t in node.args[0] if t.meta["val"].shape != (0,)]
            same = len(parts) == 1 and parts[0].meta["val"].dtype == node.meta["val"].dtype
            if same and node.meta["val"].is_contiguous():
                with graph.graph.inserting_before(node):
                    options: dict[str, Any] = {"memory_format": torch.contiguous_format}
                    clone = graph.graph.call_function(torch.ops.aten.clone.default, (parts[0],), options)
                clone.meta.update(node.meta)
                node.replace_all_uses_with(clone)
                graph.graph.erase_node(node)


def merge_numbers(graph: GraphModule) -> None:
    """Eliminate common scalar subexpressions.

    Rules are mapped over parameters, so each computes its own bias correction, and a compiler makes a kernel for each.
    Larger results stay: keeping one takes memory. So do those that are written into, which are equal only at first.
    """
    known: dict[Any, Node] = {}
    changed = _changed(graph)
    for node in list(graph.graph.nodes):
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            continue
        if schema.is_mutable:
            known.clear()  # values read before may have changed
            continue
        read = [*node.args, *node.kwargs.values()]
        numbers = [x for x in read if isinstance(x, Node)]
        if not numbers or not all(is_number(x.meta.get("val")) for x in (node, *numbers)):
            continue
        seeded = torch.Tag.nondeterministic_seeded in node.target.tags
        if seeded or node in changed or any(r.alias_info for r in schema.returns):
            continue
        same = known.setdefault((node.target, repr(read), tuple(node.kwargs), node.meta["val"].dtype), node)
        if same is not node:
            node.replace_all_uses_with(same)
            graph.graph.erase_node(node)


def lift_constants(graph: GraphModule) -> tuple[Tensor, ...]:
    """Move the tensors held by a graph to its last inputs, and return them."""
    for node in graph.graph.find_nodes(op="call_function", target=scan_op):
        _lift_from_loop(graph, node)
    places: dict[int, Node] = {}
    constants: list[Tensor] = []
    last = list(graph.graph.find_nodes(op="placeholder"))[-1]
    for node in graph.graph.find_nodes(op="get_attr"):
        value = getattr(graph, str(node.target))
        if not isinstance(value, Tensor):
            continue  # the body of a loop
        if value.layout is not torch.strided or value.is_quantized or value.is_nested:
            raise CaptureError(f"stage {stage_of(node)!r} holds a tensor of layout {value.layout}; hold a plain one")
        held = value.detach()
        if id(value) not in places:
            with graph.graph.inserting_after(last):
                last = places[id(value)] = graph.graph.placeholder(f"held_{len(constants)}")
            constants.append(held.view(1) if held.ndim == 0 else held)  # no input is 0-d: see flatten
            last.meta["val"] = constants[-1]
        read = places[id(value)]
        if held.ndim == 0:
            with graph.graph.inserting_before(node):
                read = graph.graph.call_function(torch.ops.aten.view.default, (read, []))
            read.meta.update(node.meta, val=held)
        node.replace_all_uses_with(read)
        graph.graph.erase_node(node)
    return tuple(constants)


def _lift_from_loop(graph: GraphModule, loop: Node) -> None:
    """Move the tensors held by a loop's body to the graph, and pass them to the loop."""
    body = getattr(graph, str(loop.args[0].target))  # type: ignore[union-attr]  # the body is an attribute
    last = list(body.graph.find_nodes(op="placeholder"))[-1]
    places: dict[str, Node] = {}
    for held in body.graph.find_nodes(op="get_attr"):
        name = str(held.target)
        if name not in places:
            setattr(graph, f"{loop.name}_{name}", getattr(body, name))
            with graph.graph.inserting_before(loop):
                outer = graph.graph.create_node("get_attr", f"{loop.name}_{name}")  # get_attr() warns of plain tensors
            with body.graph.inserting_after(last):
                last = places[name] = body.graph.placeholder(f"given{name}")
            for node in (outer, last):
                node.meta.update(held.meta)
            loop.args = (*loop.args[:3], (*loop.args[3], outer))  # type: ignore[misc]  # a tuple of nodes
        held.replace_all_uses_with(places[name])
        body.graph.erase_node(held)
