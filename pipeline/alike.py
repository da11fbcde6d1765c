"""Calls that are alike: in a graph that is being traced, a function of tensors is traced once and then copied."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from attrs import define
from torch import Tensor
from torch.fx import Node, Proxy
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes


def traced_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of trees of tensors, whose calls that are alike add the same operations to a graph: the first two are
    traced, and if they agree, later ones are copied, which takes a tenth of the time. Not in a graph, it is unchanged.

    Calls are alike if all is equal in them but the numbers in their tensors.
    """
    # Nothing is traced before this is imported, which takes seconds.
    proxies = sys.modules.get("torch.fx.experimental.proxy_tensor")
    mode = proxies.get_proxy_mode() if proxies is not None else None
    return function if mode is None else _Traced(function, proxies, mode.tracer)


def layout(t: Tensor) -> tuple[Any, ...]:
    return t.shape, t.stride(), t.storage_offset(), t.dtype, t.device


def like(t: Tensor) -> Tensor:
    """A fake tensor of the layout of another, with memory of its own."""
    with _disable_current_modes():
        empty = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")
        made: Tensor = type(t)(t.fake_mode, empty, t.device)  # type: ignore[attr-defined]  # a FakeTensor
        return made


def _memory(t: Tensor) -> Any:
    return t.untyped_storage()._cdata


def _tensors(node: Node) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(node.meta.get("val")) if isinstance(t, Tensor)]


@define(eq=False)
class _Call:
    """A traced call."""

    inputs: list[Node]
    nodes: list[Node]
    """The operations that it added to the graph."""
    outputs: list[Any]
    """The leaves of its result: nodes, or anything that is no tensor."""
    spec: pytree.TreeSpec
    confirmed: bool = False
    """Whether another call added the same."""

    def equals(self, other: _Call) -> bool:
        """Whether both are the same function of their inputs."""
        if len(self.nodes) != len(other.nodes) or self.spec != other.spec:
            return False
        place = dict(zip((*self.inputs, *self.nodes), (*other.inputs, *other.nodes), strict=True))

        def moved(x: Any) -> Any:
            return map_arg(x, lambda n: place.get(n, n))

        return moved(self.outputs) == other.outputs and all(
            (a.op, a.target, moved(a.args), moved(a.kwargs)) == (b.op, b.target, b.args, b.kwargs)
            for a, b in zip(self.nodes, other.nodes, strict=True)
        )


class _Traced:
    """A function, and its calls in one graph."""

    def __init__(self, function: Callable[..., Any], proxies: Any, tracer: Any) -> None:
        self._function, self._proxies, self._tracer = function, proxies, tracer
        self._calls: dict[Any, _Call | None] = {}
        """None if calls of one key are not alike."""

    def __call__(self, *args: Any) -> Any:
        with torch._C.DisableTorchFunction():  # modes would see each look at a shape
            leaves, spec = pytree.tree_flatten(args)
            tensors = [x for x in leaves if isinstance(x, Tensor)]
            inputs = [node for t in tensors if (node := self._node(t)) is not None]
            if plain := len(inputs) == len(tensors):
                others = repr([x for x in leaves if not isinstance(x, Tensor)])
                key = spec, others, tuple(map(layout, tensors)), tuple(inputs.index(n) for n in inputs)
                call = self._calls.get(key)
                if call is not None and call.confirmed:
                    return self._copied(call, inputs, tensors)
        if not plain or (call is None and key in self._calls):
            return self._function(*args)
        last = next(reversed(self._tracer.graph.nodes))
        result = self._function(*args)
        made = self._recorded(result, inputs, last)
        if call is None:
            self._calls[key] = made
        elif made is not None and call.equals(made):
            call.confirmed = True
        else:
            self._calls[key] = None
        return result

    def _node(self, t: Tensor) -> Node | None:
        """The node of a plain tensor of fixed size in the graph, if it has one."""
        if type(t).__name__ != "FakeTensor" or not all(isinstance(n, int) for n in (*t.shape, *t.stride())):
            return None
        slot = self._proxies.get_proxy_slot(t, self._tracer, None)
        return None if slot is None else slot.proxy.node

    def _recorded(self, result: Any, inputs: list[Node], last: Node) -> _Call | None:
        """A call that added the nodes after `last`; None if it can't be copied."""
        nodes = []
        while (last := last.next).op != "root":
            nodes.append(last)
        leaves, spec = pytree.tree_flatten(result)
        outputs = [self._node(x) if isinstance(x, Tensor) else x for x in leaves]
        known = {*inputs, *nodes}
        others = {_memory(t) for n in nodes for m in n.all_input_nodes if m not in known for t in _tensors(m)}
        held = any(n.op != "call_function" or any(_memory(t) in others for t in _tensors(n)) for n in nodes)
        lost = any(o is None and isinstance(x, Tensor) for o, x in zip(outputs, leaves, strict=True))
        return None if held or lost else _Call(inputs, nodes, outputs, spec)

    def _copied(self, call: _Call, inputs: Sequence[Node], tensors: Sequence[Tensor]) -> Any:
        """The result of a call, by copies of another's operations."""
        place = dict(zip(call.inputs, inputs, strict=True))
        value: dict[Node, Any] = dict(zip(inputs, tensors, strict=True))
        memory = {_memory(n.meta["val"]): t for n, t in zip(call.inputs, tensors, strict=True)}
        copies: dict[int, Tensor] = {}

        def copied(x: Any) -> Any:
            """A tensor that shares memory with its copies as the other call's tensor does with that call's."""
            if isinstance(x, Tensor) and id(x) not in copies:
                base = memory.get(_memory(x))
                if base is None:
                    base = memory[_memory(x)] = like(x)
                elif layout(base) != layout(x):
                    base = base.as_strided(x.shape, x.stride(), x.storage_offset())
                copies[id(x)] = base
            return copies.get(id(x), x)

        with torch.no_grad(), _disable_current_modes():
            for node in call.nodes:
                copy = self._tracer.graph.node_copy(node, lambda n: place.get(n, n))
                val = node.meta.get("val")
                value[copy] = copied(val) if isinstance(val, Tensor) else pytree.tree_map(copied, val)
                place[node], copy.meta["val"] = copy, value[copy]
        made = [place.get(x, x) if isinstance(x, Node) else x for x in call.outputs]
        for node in {n for n in made if isinstance(n, Node)} - set(inputs):
            proxy = Proxy(node, self._tracer)
            self._proxies.track_tensor_tree(value[node], proxy, constant=None, tracer=self._tracer)
        return pytree.tree_unflatten([value[x] if isinstance(x, Node) else x for x in made], call.spec)
