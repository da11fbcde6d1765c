"""Leftovers: attributes that a call leaves on its module, besides tensors in State, and their effect on later calls."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from operator import attrgetter
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pipeline.draws import keyed
from pipeline.errors import ImpureError
from pipeline.module.skeleton import Skeleton
from pipeline.tree import tree_map

_TORCHS = ("training", "_parameters", "_buffers", "_modules")
"""Attributes that torch itself changes, or that are checked elsewhere."""


def leaves(
    skeleton: Skeleton, called: list[nn.Module], tensors: dict[str, Tensor], args: Any, kwargs: Any
) -> set[str] | None:
    """Names of the attributes that a call left on its submodules `called`. Raises ImpureError if they would change
    later calls.

    Compares a next call, on other numbers, with and without them, in train and in eval mode. None if that is
    impossible.
    """
    levels = torch._C._functorch.get_interpreter_stack() or []
    if any(level.key() == torch._C._functorch.TransformType.Vmap for level in levels):
        return None  # values under vmap can't be compared
    fresh = skeleton.instance(tensors).modules()
    left = [(i, *at) for i, (old, new) in enumerate(zip(fresh, called, strict=False)) for at in _changed(old, new)]
    numbers = [t for t in pytree.tree_leaves((tensors, args, kwargs)) if isinstance(t, Tensor)]
    if not left or not numbers:
        return {key for _, _, key in left}
    zero = numbers[0].detach().new_zeros((), dtype=torch.int64)

    def call_again(keep: bool, evals: bool = False) -> tuple[list[nn.Module], list[Tensor]]:
        module = skeleton.instance({name: t.detach().clone() for name, t in tensors.items()})
        if evals:
            module.eval()
        submodules = list(module.modules())
        for i, attributes, key in left if keep else ():
            value = attributes(called[i]).get(key)
            attributes(submodules[i])[key] = value if isinstance(value, Tensor) else copy.copy(value)
            if key not in attributes(called[i]):
                del attributes(submodules[i])[key]
        others = tree_map(other_numbers, (args, kwargs))  # each time, because the module may write into them
        with torch.no_grad(), keyed(zero, zero, 0):
            result = module(*others[0], **others[1])
        return submodules, [t.nan_to_num() for t in pytree.tree_leaves(result) if isinstance(t, Tensor)]

    try:
        without, expected = call_again(False)
    except Exception:  # not all code accepts other numbers
        return None
    try:
        after, result = call_again(True)
        equal = all(map(torch.equal, result, expected))
        # A counter or a list depends on its last value, even if nothing reads it yet.
        counts = [(i, key) for i, attributes, key in left
                  if not same(attributes(without[i]).get(key), attributes(after[i]).get(key))]  # fmt: skip
    except Exception:  # it can't be called twice
        equal, counts = False, []
    if equal and not counts:
        with suppress(Exception):  # it may have no result in eval mode
            expected = call_again(False, evals=True)[1]
            equal = all(map(torch.equal, call_again(True, evals=True)[1], expected))
    if not equal or counts:
        i, key = counts[0] if counts else (left[0][0], left[0][2])
        attribute = f"{[*dict(skeleton.module.named_modules())][i]}.{key}".lstrip(".")
        why = "for later calls, which State does not hold; give it a first value by register_buffer()"
        raise ImpureError(f"changes its attribute {attribute!r} {why}")
    return {key for _, _, key in left}


def read_by(f: Any, module: nn.Module, depth: int = 4) -> list[str] | None:
    """The names that a function reads, if it, or one that it holds, holds the module."""
    f = getattr(f, "func", f)  # of a partial
    code = getattr(f, "__code__", None)
    if code is None or not depth:
        return None
    read, codes = list[str](), [code]
    for c in codes:
        read += c.co_names
        codes += [inner for inner in c.co_consts if isinstance(inner, CodeType)]
    held = [getattr(f, "__self__", None), *(f.__defaults__ or ()), *(f.__globals__.get(name) for name in read)]
    for cell in f.__closure__ or ():
        with suppress(ValueError):  # it is empty
            held.append(cell.cell_contents)
    if {id(h) for h in held} & {id(m) for m in module.modules()}:
        return read
    inner = (read_by(h, module, depth - 1) for h in held if callable(h))
    return next((names for names in inner if names is not None), None)


def _changed(before: nn.Module, after: nn.Module) -> Iterator[tuple[Callable[[nn.Module], dict[str, Any]], str]]:
    """Attributes that a call changed or deleted, and buffers that it set from None."""
    for key in {**before.__dict__, **after.__dict__}:
        if key not in _TORCHS and not same(before.__dict__.get(key), after.__dict__.get(key)):
            yield vars, key
    for key, value in after._buffers.items():
        if value is not None and before._buffers.get(key) is None:
            yield attrgetter("_buffers"), key


def same(a: Any, b: Any, depth: int = 5) -> bool:
    """Whether two values are equal, compared to this depth."""
    if a is b or not depth:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        if (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device):
            return False
        return torch.equal(a, b) or (a.is_floating_point() and torch.equal(a.nan_to_num(), b.nan_to_num()))
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, int | float | complex | str):
        return a == b or a != a
    if isinstance(a, dict):
        a, b = [*a.values()], [*b.values()]
    if isinstance(a, list | tuple | deque):
        return len(a) == len(b) and all(same(x, y, depth - 1) for x, y in zip(a, b, strict=True))
    if isinstance(a, nn.Module | MethodType | FunctionType) or not hasattr(a, "__dict__"):
        return True
    return same(vars(a), vars(b), depth - 1)


def other_numbers(value: Any) -> Any:
    """A tensor of the same shape with other numbers; anything else as it is."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    return value.flip(0) * 0.75 if value.is_floating_point() else value.flip(0)
