"""The hidden matrices of a network, which Muon updates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from cli.predictions import apply


def inside(build: Callable[[], nn.Module], inputs: Any, batch: Mapping[str, Any]) -> set[str]:
    """Names of the weight matrices in the autograd graph of a forward, except embeddings, filters of the inputs, and
    the last layer.

    >>> from pipeline import models
    >>> sorted(inside(lambda: models.mlp(4, 3, 3, 2), "inputs", {"inputs": torch.zeros(2, 4)}))
    ['1.weight', '3.weight']
    """
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        module = build().eval()
        outputs = apply(module, inputs, batch)
    names = {id(p): name for name, p in module.named_parameters()}
    todo = {(t.grad_fn, True) for t in pytree.tree_leaves(outputs) if isinstance(t, Tensor)}
    seen, hidden, others = set[Any]([(None, True), (None, False)]), set[str](), set[str]()
    while todo := todo - seen:
        node, last = todo.pop()  # last: no product between the node and the outputs
        assert node is not None
        seen.add((node, last))
        kind, operands = node.name().lower(), [n for n, _ in node.next_functions]
        filters = "convolution" in kind
        read = {
            names[id(p)] for p in map(_parameter, operands) if id(p) in names and 1 < p.ndim < (9 if filters else 3)
        }
        if filters or "mm" in kind or "rnn" in kind:
            (others if last or (filters and operands[0] is None) else hidden).update(read)
            last = last and not read
        elif "embedding" in kind:
            others |= read
        todo |= {(n, last) for n in operands}
    return hidden - others


def _parameter(node: Any) -> Any:
    """The parameter at a node of the graph, directly or behind a view."""
    while node is not None and len(node.next_functions) == 1:
        node = node.next_functions[0][0]
    return getattr(node, "variable", None)
