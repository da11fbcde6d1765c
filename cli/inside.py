"""Inside: the weights of a network that are matrices between its inputs and its outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


def inside(build: Callable[[], nn.Module], inputs: Any, batch: Mapping[str, Any]) -> set[str]:
    """The parameters that multiply, by the graph of a forward: but for embeddings, filters of the inputs themselves,
    and the last ones before the outputs.

    >>> from pipeline import models
    >>> sorted(inside(lambda: models.mlp(4, 3, 3, 2), "inputs", {"inputs": torch.zeros(2, 4)}))
    ['1.weight', '3.weight']
    """
    keywords = {k: batch[v] for k, v in inputs.items()} if isinstance(inputs, Mapping) else {}
    positions = [] if keywords else [batch[v] for v in ([inputs] if isinstance(inputs, str) else inputs)]
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        module = build().eval()
        outputs = module(*positions, **keywords)
    owners = {id(p): name for name, p in module.named_parameters()}
    todo = {(t.grad_fn, True) for t in pytree.tree_leaves(outputs) if isinstance(t, Tensor)}
    seen, found, others = set[Any]([(None, True), (None, False)]), set[str](), set[str]()
    while todo := todo - seen:
        node, last = todo.pop()
        assert node is not None
        seen.add((node, last))
        kind, before = node.name().lower(), [n for n, _ in node.next_functions]
        filters = "convolution" in kind
        read = {owners[id(p)] for p in map(_read, before) if id(p) in owners and 1 < p.ndim < (9 if filters else 3)}
        if filters or "mm" in kind or "rnn" in kind:
            (others if last or (filters and before[0] is None) else found).update(read)
            last = last and not read
        elif "embedding" in kind:
            others |= read
        todo |= {(n, last) for n in before}
    return found - others


def _read(node: Any) -> Any:
    """The parameter that a node of the graph gives, or a view of it."""
    while node is not None and len(node.next_functions) == 1:
        node = node.next_functions[0][0]
    return getattr(node, "variable", None)
