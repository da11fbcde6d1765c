"""Inputs: the values that a stage may not write into, found by their storage."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pipeline.errors import ImpureError
from pipeline.tree import paths

_INSTEAD = {
    "params": "do so in a stage after the update",
    "held": "a tensor that a module holds is State's only as a buffer: use register_buffer()",
}
"""The replacement of an in-place write, by the name of the value."""


class Inputs:
    """A stage's inputs."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    @functools.cached_property
    def _storages(self) -> dict[int, str]:
        return {_storage(t): path for path, t in reversed(paths(dict(self.values))) if _strided(t)}

    def name(self, tensors: list[Any]) -> str | None:
        """The name of a value that shares storage with one of the tensors."""
        names = (self._storages.get(_storage(t)) for t in tensors if _strided(t))
        name = next(filter(None, names), None)
        return name and name.replace("/", ".")

    def refuse_write(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raise ImpureError if an operator would write into one of them."""
        written = [a for a, s in zip(args, func._schema.arguments, strict=False) if s.is_write]
        written += [kwargs[s.name] for s in func._schema.arguments if s.is_write and s.name in kwargs]
        name = self.name(pytree.tree_leaves(written))
        if name is not None:
            instead = _INSTEAD.get(name.split(".")[0], "return a new tensor instead")
            if "renorm" in str(func):
                instead = "leave out max_norm, or scale the rows in a stage after the update"
            raise ImpureError(f"writes into {name!r} in place ({func}); {instead}")


def _strided(t: Any) -> bool:
    return isinstance(t, Tensor) and t.layout is torch.strided


def _storage(t: Tensor) -> int:
    while torch._C._functorch.is_functorch_wrapped_tensor(t):
        t = torch._C._functorch.get_unwrapped(t)
    storage: int = t.untyped_storage()._cdata
    return storage
