"""Skeleton: a module without its tensors, and instances of it with others."""

from __future__ import annotations

import copy
import functools
import random
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from types import CellType, FunctionType, MethodType, NoneType
from typing import Any

import numpy as np
import torch
from attrs import frozen
from torch import Tensor, nn

_GENERATORS = (random.Random, np.random.Generator, np.random.RandomState)


@frozen(eq=False)
class Skeleton:
    """A module whose tensors have no storage (meta device), so that nothing can change them."""

    module: nn.Module
    names: Mapping[str, int]
    """The identity of each parameter and buffer; of tied ones, under one name."""
    shared: Mapping[int, Any]
    """What all instances have in common: held tensors, and what can't be copied, such as locks."""
    functions: Sequence[FunctionType]
    """Functions that it holds, such as hooks, whose closures refer to it."""

    @classmethod
    def of(cls, real: nn.Module) -> Skeleton:
        """A copy on the meta device, of a module that is not touched."""
        own: dict[int, Tensor] = {id(b): torch.empty_like(b, device="meta") for b in real.buffers()}
        for p in real.parameters():
            own[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        memo: dict[int, Any] = dict(own)
        shared: list[Any] = []
        functions: list[FunctionType] = []
        for held in _held(real, {}):
            if isinstance(held, FunctionType):
                functions += [held] if _refers(held, set(map(id, real.modules()))) else []
            if id(held) in memo or isinstance(held, FunctionType | np.ndarray):  # of arrays, each instance has its own
                continue
            if not isinstance(held, (*_GENERATORS, torch.Generator, Tensor)):
                with suppress(Exception):  # whatever an object says that can't be copied
                    copy.deepcopy(held, memo)
                    continue
            memo[id(held)] = held.detach().clone() if isinstance(held, Tensor) else held
            shared.append(memo[id(held)])
        module = _copied(real, memo, functions)
        named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        return cls(
            module,
            {name: id(t) for name, t in named.items()},
            {id(x): x for x in shared},
            [memo[id(f)] for f in functions],
        )

    @property
    def held(self) -> list[Tensor]:
        return [x for x in self.shared.values() if isinstance(x, Tensor)]

    def drawn(self) -> list[Any]:
        """Where the generators are that it holds."""
        return [_position(x) for x in self.shared.values() if isinstance(x, _GENERATORS)]

    def instance(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """A copy that has these tensors, by name."""
        own = {i: tensors[name] for name, i in self.names.items()}
        return _copied(self.module, {**self.shared, **own}, self.functions)


def _copied(module: nn.Module, memo: dict[int, Any], functions: Sequence[FunctionType]) -> nn.Module:
    """A deep copy, and of these functions, which deepcopy leaves as they are, copies that refer to it."""
    for f in functions:
        closure = tuple(CellType() for _ in f.__closure__ or ())
        memo[id(f)] = FunctionType(f.__code__, f.__globals__, f.__name__, closure=closure or None)
    plain = [part for part in module.modules() if id(part) not in memo and _plain(type(part))]  # type: ignore[arg-type]  # classes are hashable
    for part in plain:
        memo[id(part)] = part.__new__(type(part))
    for part in reversed(plain):  # what is inside first, for parts with a way of their own to be copied
        memo[id(part)].__dict__.update({k: _value(v, memo) for k, v in part.__dict__.items()})
    made: nn.Module = copy.deepcopy(module, memo)
    for f in functions:
        new = memo[id(f)]
        for cell, old in zip(new.__closure__ or (), f.__closure__ or (), strict=True):
            for content in _contents(old):
                cell.cell_contents = copy.deepcopy(content, memo)
        new.__defaults__, new.__kwdefaults__ = copy.deepcopy((f.__defaults__, f.__kwdefaults__), memo)
        new.__dict__.update(f.__dict__)
    return made


@functools.cache
def _plain(kind: Any) -> bool:
    """Whether modules of a kind are copied as their attributes, as most are: deepcopy is slow to find that out."""
    ways = ("__reduce_ex__", "__reduce__", "__getstate__", "__setstate__", "__new__")
    same = all(getattr(kind, way) is getattr(nn.Module, way) for way in ways)
    return same and not hasattr(kind, "__deepcopy__") and not any("__slots__" in vars(c) for c in kind.__mro__)


def _value(value: Any, memo: dict[int, Any]) -> Any:
    """A copy of an attribute; most are numbers, and dicts of tensors and modules that are there already."""
    kind = type(value)
    if kind in (bool, int, float, str, NoneType):
        return value
    if kind in (dict, OrderedDict) and all(type(k) is str and (x is None or id(x) in memo) for k, x in value.items()):
        made = memo[id(value)] = kind((k, None if x is None else memo[id(x)]) for k, x in value.items())
        return made
    return copy.deepcopy(value, memo)


def _held(value: Any, seen: dict[int, Any]) -> Iterator[Any]:
    """What is held at any depth of modules, containers and functions, and the functions themselves."""
    if id(value) in seen:
        return
    seen[id(value)] = value
    parts = _parts(value)
    if parts is None or isinstance(value, FunctionType):
        yield value
    for part in parts or ():
        yield from _held(part, seen)


def _refers(value: Any, modules: set[int], seen: frozenset[int] = frozenset()) -> bool:
    """Whether a function's closure leads to one of these modules."""
    if isinstance(value, nn.Module):
        return id(value) in modules
    parts = () if id(value) in seen else _parts(value) or ()
    return any(_refers(part, modules, seen | {id(value)}) for part in parts)


def _parts(value: Any) -> list[Any] | None:
    """What a module, a container or a function holds; None for anything else."""
    if isinstance(value, nn.Module):
        return list(value.__dict__.values())
    if isinstance(value, dict):
        return [*value, *value.values()]
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, FunctionType):
        contents = [x for cell in value.__closure__ or () for x in _contents(cell)]
        return [*contents, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    return None


def _contents(cell: CellType) -> list[Any]:
    """What a closure's cell holds: one thing, or nothing yet."""
    try:
        return [cell.cell_contents]
    except ValueError:
        return []


def _position(generator: Any) -> Any:
    """Where a generator is, as something that can be compared."""
    if isinstance(generator, random.Random):
        return generator.getstate()
    return repr(generator.bit_generator.state if isinstance(generator, np.random.Generator) else generator.get_state())
