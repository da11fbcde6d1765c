"""Trees: nested dicts, tuples and lists of tensors: the pytrees of torch.func and torch.compile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree  # the registry that torch.func and torch.compile read

from pipeline.errors import StateError

Tree = Any


def tree_map(function: Callable[..., Any], *trees: Tree) -> Tree:
    """Apply `function` to the leaves of trees of one structure."""
    return pytree.tree_map(function, *trees)


def parted(tree: Tree) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Any]]:
    """The tensors of a tree, and a function that rebuilds it with others in their places. Other leaves stay.

    >>> import torch
    >>> tensors, back = parted({"loss": torch.zeros(()), "training": True})
    >>> len(tensors), back([torch.ones(())])
    (1, {'loss': tensor(1.), 'training': True})
    """
    leaves, spec = pytree.tree_flatten(tree)
    at = [i for i, x in enumerate(leaves) if isinstance(x, Tensor)]
    rest = {i: x for i, x in enumerate(leaves) if not isinstance(x, Tensor)}

    def rebuild(tensors: Sequence[Tensor]) -> Tree:
        every = {**rest, **dict(zip(at, tensors, strict=True))}
        return pytree.tree_unflatten([every[i] for i in range(len(leaves))], spec)

    return [leaves[i] for i in at], rebuild


def paths(tree: Tree) -> list[tuple[str, Any]]:
    """The leaves of a tree with their paths, in order.

    >>> paths({"step": 3, "params": {"layers.0.weight": 0.5}, "memory": [1, 2]})
    [('step', 3), ('params/layers.0.weight', 0.5), ('memory/0', 1), ('memory/1', 2)]
    """
    return [
        ("/".join(str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path), leaf)
        for path, leaf in pytree.tree_flatten_with_path(tree)[0]
    ]


def named(tree: Tree) -> dict[str, Any]:
    """`paths` as a dict. Raises StateError if two leaves have one path."""
    leaves: dict[str, Any] = {}
    for name, leaf in paths(tree):
        if name in leaves:
            raise StateError(f"two tensors are called {name}, so they can't be told apart; rename one")
        leaves[name] = leaf
    return leaves


def dtype_name(dtype: Any) -> str:
    """A dtype in a word, such as `float32`."""
    return str(dtype).removeprefix("torch.")


def describe(values: Mapping[str, Any]) -> str:
    """Shapes and dtypes of named tensors, for messages: `inputs (64, 784) float32`."""
    shapes = [
        f"{name} {tuple(value.shape)} {dtype_name(value.dtype)}"
        for name, value in paths(dict(values))
        if hasattr(value, "shape") and hasattr(value, "dtype") and value.ndim > 0
    ]
    return ", ".join(shapes) or "its values"
