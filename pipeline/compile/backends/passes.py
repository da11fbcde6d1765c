"""Passes of the native backend over a graph, for how Inductor lays out memory and orders loops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from pipeline.compile.passes import is_number

_ATEN = torch.ops.aten
_COSTLY = (_ATEN.pow, _ATEN.exp, _ATEN.log, _ATEN.cos)
_GATHER = _ATEN.index_select.default

NARROW = 16
"""Columns below which a product is stored column by column."""


def store(graph: GraphModule) -> None:
    """Store small values that are costly or read by many loops, once a step: powers and cosines of numbers, such as a
    schedule's; numbers that scale whole tensors, such as a learning rate; the indices of a gather.

    Inductor would compute them again in each loop, for each vector. as_strided needs a place in memory, which prevents
    it. It would read part of a tensor from the start of the whole, so parts are left out.
    """
    for node in list(graph.graph.nodes):
        value = node.meta.get("example_value")
        costly = getattr(node.target, "overloadpacket", None) in _COSTLY
        indices = any(user.target is _GATHER and user.args[2] is node for user in node.users)
        indices |= node.target is _GATHER and not value.is_floating_point()
        if ((is_number(value) and (costly or _scales(node))) or indices) and not _part(node):
            with graph.graph.inserting_after(node):
                strided = (node, list(value.shape), list(value.stride()))
                stored = graph.graph.call_function(_ATEN.as_strided.default, strided)
            stored.meta["example_value"] = value
            node.replace_all_uses_with(stored, delete_user_cb=lambda user, stored=stored: user is not stored)
    graph.recompile()


def _part(node: Node) -> bool:
    """Whether a value is a view of part of a tensor, or its clone, which Inductor removes.

    Told by the storage: a slice is aten.slice in a traced step, but operator.getitem in a graph of Dynamo's.
    """
    storage = node.meta["example_value"].untyped_storage()
    if storage.nbytes() != node.meta["example_value"].nbytes:
        return True
    copied = node.target in (_ATEN.clone.default, torch.clone, "clone")
    for source in node.all_input_nodes:
        value = source.meta.get("example_value")
        if isinstance(value, Tensor) and (copied or value.untyped_storage()._cdata == storage._cdata):
            return _part(source)
    return False


def _scales(node: Node) -> bool:
    """Whether a number computed from float64 numbers, such as hyperparameters, is combined with a whole tensor."""
    if node.op != "call_function":
        return False
    values = [n.meta.get("example_value") for n in (node, *node.all_input_nodes)]
    exact = all(is_number(v) for v in values) and any(getattr(v, "dtype", None) == torch.float64 for v in values)
    return exact and any(not is_number(user.meta.get("example_value")) for user in node.users)


def transpose_narrow(graph: GraphModule) -> None:
    """Store products of few columns, as of a last layer, column by column, so that later operations, such as a softmax,
    are vectorized over rows."""

    def call(target: Any, *args: Any) -> Node:
        node: Node = graph.graph.call_function(target, args)
        node.meta["example_value"] = target(*[a.meta["example_value"] if isinstance(a, Node) else a for a in args])
        return node

    for node in list(graph.graph.nodes):
        if node.target is _ATEN.addmm.default and not node.kwargs:
            bias, a, b = node.args
        elif node.target in (_ATEN.mm.default, _ATEN.bmm.default):
            bias, (a, b) = None, node.args
        else:
            continue
        # The shapes of the factors: a later squeeze in place changes the product's own example.
        rows, columns = a.meta["example_value"].shape[-2], b.meta["example_value"].shape[-1]
        if not columns < NARROW <= rows:
            continue
        with graph.graph.inserting_before(node):
            product = _ATEN.bmm.default if node.target is _ATEN.bmm.default else _ATEN.mm.default
            transposed = call(product, *(call(_ATEN.transpose.int, x, -2, -1) for x in (b, a)))
            result = call(_ATEN.transpose.int, transposed, -2, -1)
            if bias is not None:
                result = call(_ATEN.add.Tensor, result, bias)
        node.replace_all_uses_with(result)
        graph.graph.erase_node(node)
    graph.recompile()
