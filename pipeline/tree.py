"""Trees: nested dicts, tuples and lists with tensors as leaves, as torch.func and torch.compile know them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree  # the registry that torch.func and torch.compile read

from pipeline.errors import StateError

Tree = Any


def tree_map(function: Callable[..., Any], *trees: Tree) -> Tree:
    """`function` on the leaves of trees of one structure."""
    return pytree.tree_map(function, *trees)


def parted(tree: Tree) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Any]]:
    """The tensors of a tree, and what makes it again of others in their places; all else in it stays.

    >>> import torch
    >>> tensors, back = parted({"loss": torch.zeros(()), "training": True})
    >>> len(tensors), back([torch.ones(())])
    (1, {'loss': tensor(1.), 'training': True})
    """
    leaves, spec = pytree.tree_flatten(tree)
    at = [i for i, x in enumerate(leaves) if isinstance(x, Tensor)]
    rest = [None if isinstance(x, Tensor) else x for x in leaves]

    def back(tensors: Sequence[Tensor]) -> Tree:
        put = dict(zip(at, tensors, strict=True))
        return pytree.tree_unflatten([put.get(i, x) for i, x in enumerate(rest)], spec)

    return [leaves[i] for i in at], back


def paths(tree: Tree) -> list[tuple[str, Any]]:
    """The leaves of a tree, in their order, each with where it is.

    >>> paths({"step": 3, "params": {"layers.0.weight": 0.5}, "memory": [1, 2]})
    [('step', 3), ('params/layers.0.weight', 0.5), ('memory/0', 1), ('memory/1', 2)]
    """
    return [
        ("/".join(str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path), leaf)
        for path, leaf in pytree.tree_flatten_with_path(tree)[0]
    ]


def named(tree: Tree) -> dict[str, Any]:
    """`paths` as a dict. Raises StateError where that is one name for two leaves."""
    found: dict[str, Any] = {}
    for name, leaf in paths(tree):
        if name in found:
            raise StateError(f"two tensors are called {name}, so they can't be told apart; rename one")
        found[name] = leaf
    return found


def describe(values: Mapping[str, Any]) -> str:
    """The shapes and dtypes of the tensors among named values, for messages: `inputs (64, 784) float32`."""
    shapes = [
        f"{name} {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
        for name, value in paths(dict(values))
        if hasattr(value, "shape") and hasattr(value, "dtype") and value.ndim > 0
    ]
    return ", ".join(shapes) or "its values"
