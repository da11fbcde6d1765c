"""Skeleton: a module on the meta device, from which instances with given tensors are copied."""

from __future__ import annotations

import copy
import functools
import random
from collections import OrderedDict, defaultdict
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
    """A module whose tensors have no storage, so that nothing can change them."""

    module: nn.Module
    names: Mapping[str, int]
    """Name -> id of each parameter and buffer; tied ones under one name."""
    shared: Mapping[int, Any]
    """Id -> object that all instances share: held tensors, and objects that can't be copied, such as locks."""
    functions: Sequence[FunctionType]
    """Functions, such as hooks, whose closures refer to the module."""

    @classmethod
    def of(cls, real: nn.Module) -> Skeleton:
        """A copy of a module, which stays unchanged."""
        meta: dict[int, Tensor] = {id(b): torch.empty_like(b, device="meta") for b in real.buffers()}
        for p in real.parameters():
            meta[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        memo: dict[int, Any] = dict(meta)
        shared: list[Any] = []
        functions: list[FunctionType] = []
        for held in _held(real, {}):
            if isinstance(held, FunctionType):
                functions += [held] if _refers(held, set(map(id, real.modules()))) else []
            if id(held) in memo or isinstance(held, FunctionType | np.ndarray):  # each instance copies its arrays
                continue
            if not isinstance(held, (*_GENERATORS, torch.Generator, Tensor)):
                with suppress(Exception):  # objects that can't be copied raise any type of error
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

    def generator_states(self) -> list[Any]:
        """The states of the generators that the module holds."""
        return [_state(x) for x in self.shared.values() if isinstance(x, _GENERATORS)]

    def instance(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """A copy with these tensors, by name."""
        ids = {i: tensors[name] for name, i in self.names.items()}
        return _copied(self.module, {**self.shared, **ids}, self.functions)


def _copied(module: nn.Module, memo: dict[int, Any], functions: Sequence[FunctionType]) -> nn.Module:
    """A deep copy, with copies of these functions that refer to it; deepcopy leaves functions alone."""
    for f in functions:
        closure = tuple(CellType() for _ in f.__closure__ or ())
        memo[id(f)] = FunctionType(f.__code__, f.__globals__, f.__name__, closure=closure or None)
    submodules = [m for m in module.modules() if id(m) not in memo]
    plain_types = {kind for kind in {type(m) for m in submodules} if _is_plain(kind)}
    plain = [m for m in submodules if type(m) in plain_types]
    for m in plain:
        memo[id(m)] = m.__new__(type(m))
    for m in reversed(plain):  # inner ones first, for modules that define how they are copied
        memo[id(m)].__dict__.update({k: _value(v, memo) for k, v in m.__dict__.items()})
    result: nn.Module = copy.deepcopy(module, memo)
    for f in functions:
        new = memo[id(f)]
        for cell, old in zip(new.__closure__ or (), f.__closure__ or (), strict=True):
            for content in _contents(old):
                cell.cell_contents = copy.deepcopy(content, memo)
        new.__defaults__, new.__kwdefaults__ = copy.deepcopy((f.__defaults__, f.__kwdefaults__), memo)
        new.__dict__.update(f.__dict__)
    return result


def _is_plain(kind: Any) -> bool:
    """Whether a module class is copied by its attributes, as most are; deepcopy is slow to find out."""
    ways = ("__reduce_ex__", "__reduce__", "__getstate__", "__setstate__", "__new__")
    same = all(getattr(kind, way) is getattr(nn.Module, way) for way in ways)
    return same and not hasattr(kind, "__deepcopy__") and not any("__slots__" in vars(c) for c in kind.__mro__)


def _value(value: Any, memo: dict[int, Any]) -> Any:
    """A copy of an attribute; quick for numbers, and for dicts of tensors and modules in memo."""
    kind = type(value)
    if kind in (bool, int, float, str, NoneType):
        return value
    if kind in (dict, OrderedDict) and all(type(k) is str and (x is None or id(x) in memo) for k, x in value.items()):
        copied = memo[id(value)] = kind((k, None if x is None else memo[id(x)]) for k, x in value.items())
        return copied
    return copy.deepcopy(value, memo)


def _held(value: Any, seen: dict[int, Any]) -> Iterator[Any]:
    """Leaves at any depth of modules, containers and functions, and the functions themselves."""
    if id(value) in seen:
        return
    seen[id(value)] = value
    children = _children(value)
    if children is None or isinstance(value, FunctionType):
        yield value
    for child in children or ():
        yield from _held(child, seen)


def _refers(value: Any, modules: set[int], seen: frozenset[int] = frozenset()) -> bool:
    """Whether a value refers to one of these modules."""
    if isinstance(value, nn.Module):
        return id(value) in modules
    children = () if id(value) in seen else _children(value) or ()
    return any(_refers(child, modules, seen | {id(value)}) for child in children)


def _children(value: Any) -> list[Any] | None:
    """Contents of a module, a container or a function; None for anything else."""
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
    """Contents of a closure's cell: one object, or nothing yet."""
    try:
        return [cell.cell_contents]
    except ValueError:
        return []


def trainable(module: nn.Module) -> dict[str, Tensor]:
    """The parameters of a module by name, and those that it holds elsewhere, as in a list, by their shape."""
    names = {id(p): name for name, p in module.named_parameters()}
    held = [x for x in _held(module, {}) if isinstance(x, nn.Parameter) and x.requires_grad]
    return {names.get(id(p), f"a held parameter {i} {tuple(p.shape)}"): p for i, p in enumerate(held)}


def overlapping(tensors: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Names of a tensor and of another one that have a number in common in memory, or are the same."""
    places = defaultdict[int, list[str]](list)
    for name, t in tensors.items():
        if _in_memory(t):
            places[t.untyped_storage()._cdata].append(name)
    for other, t in others.items():
        for name in places.get(t.untyped_storage()._cdata, ()) if _in_memory(t) else ():
            if t is tensors[name] or _meet(t, tensors[name]):
                yield name, other


def _meet(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one storage have a number in common."""
    (first, last), (begin, end) = _range(a), _range(b)
    if end < first or last < begin:
        return False
    seen = torch.zeros(max(last, end) + 1, dtype=torch.bool, device="cpu")
    seen.as_strided(a.shape, a.stride(), a.storage_offset()).fill_(True)
    return bool(seen.as_strided(b.shape, b.stride(), b.storage_offset()).any())


def _range(t: Tensor) -> tuple[int, int]:
    """The first and the last place of a tensor in its storage."""
    first = int(t.storage_offset())
    return first, first + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))


def _in_memory(t: Tensor) -> bool:
    return t.layout is torch.strided and not nn.parameter.is_lazy(t)


def _state(generator: Any) -> Any:
    """A generator's state, comparable."""
    if isinstance(generator, random.Random):
        return generator.getstate()
    return repr(generator.bit_generator.state if isinstance(generator, np.random.Generator) else generator.get_state())
