"""Fingerprints: a hash of all that a pipeline's graph is made from, without tracing it.

It walks from the stages to everything that their code can see: bytecode, constants, defaults, closures, the globals that
are named in it, modules' classes and attributes. Numbers that are hyperparameters, weights and the data's values are
no part of it: they are inputs of the graph. What it can't see through gives no fingerprint, and so no package.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import sys
import sysconfig
import types
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import PipeError
from pipeline.forward import Module
from pipeline.load import Load
from pipeline.schedules import Schedule
from pipeline.stage import Stage

_ATOMS = (type(None), bool, int, float, complex, str, bytes, type(...), torch.dtype, torch.device, torch.memory_format,
          torch.layout, torch.Size, PurePath, range, slice, np.dtype, np.generic)  # fmt: skip
_NOT_CODE = ("__dict__", "__weakref__", "__doc__", "__annotations__", "__module__", "__attrs_attrs__", "__slots__",
             "__orig_bases__", "__parameters__", "__firstlineno__", "__static_attributes__", "_abc_impl")  # fmt: skip
_VALUES = (tuple, frozenset, types.CodeType)
_INSTALLED = tuple({sysconfig.get_path(k) for k in ("stdlib", "platstdlib", "purelib", "platlib")})


class UnknownError(PipeError):
    """Something whose content can't be told."""


def fingerprint(*values: Any) -> str:
    """The hash. Raises UnknownError where something can't be seen through.

    >>> fingerprint(nn.Linear(2, 3)) == fingerprint(nn.Linear(2, 3)), fingerprint(nn.ReLU()) == fingerprint(nn.Tanh())
    (True, False)
    """
    walk = _Walk()
    for value in values:
        walk(value)
    return walk.hash.hexdigest()[:32]


class _Walk:
    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self.seen: dict[int, int] = {}
        self.alive: list[Any] = []  # an id is one object's only while that lives

    def note(self, *words: Any) -> None:
        self.hash.update(repr(words).encode())

    def __call__(self, value: Any) -> None:
        if isinstance(value, _ATOMS):
            self.note(type(value).__name__, value)
            return
        if isinstance(value, _VALUES):  # whether two equal ones are one object depends on how Python loaded them
            self.note(type(value).__name__)
            self.inside(value)
            return
        if id(value) in self.seen:
            self.note("again", self.seen[id(value)])
            return
        self.seen[id(value)] = len(self.seen)
        self.alive.append(value)
        self.note(type(value).__module__, type(value).__qualname__)
        self.inside(value)

    def inside(self, value: Any) -> None:
        if isinstance(value, Load):
            self({k: getattr(value, k) for k in ("name", "size", "shuffle", "drop_last", "fields", "writes")})
        elif isinstance(value, Stage):
            self.attributes(value, "hyper", "init", "create", "check")
            # The numbers of hyperparameters are State's; that there is a schedule, and which, is the graph's.
            self({k: v if isinstance(v, Schedule) else None for k, v in value.hyper.items()})
        elif isinstance(value, Schedule):
            self([value.factor, sorted(value.numbers)])
        elif isinstance(value, Module):
            self([value.skeleton(False), value.skeleton(True), value.frozen])
        elif isinstance(value, nn.Module):
            self.module(value)
        elif isinstance(value, Tensor):
            self.tensor(value)
        elif isinstance(value, np.ndarray):
            self.note(value.shape, value.dtype.str, hashlib.sha256(value.tobytes()).hexdigest())
        elif isinstance(value, Mapping):
            for k, v in value.items():
                self(k)
                self(v)
        elif isinstance(value, tuple | list):
            self.note(len(value))
            for v in value:
                self(v)
        elif isinstance(value, set | frozenset):
            self.note(sorted(map(repr, value)))
        elif isinstance(value, enum.Enum):
            self.note(value.name)
        elif isinstance(value, functools.partial):
            self([value.func, value.args, value.keywords])
        elif isinstance(value, types.FunctionType):
            self.function(value)
        elif isinstance(value, types.MethodType):
            self([value.__func__, value.__self__])
        elif isinstance(value, types.CodeType):
            self.code(value)
        elif isinstance(value, type):
            self.type(value)
        elif isinstance(value, types.ModuleType):
            self.note(value.__name__, _version(value.__name__))
        elif isinstance(value, staticmethod | classmethod):
            self(value.__func__)
        elif isinstance(value, property):
            self([value.fget])
        elif _is_installed(getattr(value, "__module__", None)) and callable(value) and hasattr(value, "__qualname__"):
            self.note(value.__module__, value.__qualname__, _version(value.__module__))  # built in
        elif attrs.has(type(value)):
            self.attributes(value)
        elif type(value).__module__.startswith("torch") and hasattr(value, "__name__"):
            self.note(value.__name__)  # an operator
        elif hasattr(value, "__dict__"):
            self(type(value))
            self(vars(value))
        else:
            raise UnknownError(f"a {type(value).__module__}.{type(value).__qualname__} can't be told from another")

    def attributes(self, value: Any, *without: str) -> None:
        self(type(value))
        for a in attrs.fields(type(value)):
            if a.name not in without:
                self.note(a.name)
                self(getattr(value, a.name))

    def module(self, value: nn.Module) -> None:
        self(type(value))
        for name, v in vars(value).items():
            if name in ("_parameters", "_buffers"):
                self(
                    {
                        k: None if t is None else (*t.shape, str(t.dtype), t.requires_grad, id(t) in self.seen)
                        for k, t in v.items()
                    }
                )
                for t in v.values():  # tied tensors are one
                    self.seen.setdefault(id(t), len(self.seen))
                    self.alive.append(t)
            elif name not in ("_non_persistent_buffers_set",) and v is not None:
                self.note(name)
                self(v)

    def tensor(self, value: Tensor) -> None:
        self.note(tuple(value.shape), str(value.dtype), str(value.device), value.requires_grad)
        if value.device.type != "meta":
            data = (
                value.detach().cpu().contiguous().view(torch.uint8) if value.ndim else value.detach().cpu().reshape(1)
            )
            self.note(hashlib.sha256(data.numpy().tobytes()).hexdigest())

    def function(self, value: types.FunctionType) -> None:
        if _is_installed(value.__module__):
            self.note(value.__module__, value.__qualname__, _version(value.__module__))
            self([cell.cell_contents for cell in value.__closure__ or ()])
            return
        self.code(value.__code__)
        self([value.__defaults__, value.__kwdefaults__])
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            self.note(name)
            self(cell.cell_contents)
        for name in sorted(_names(value.__code__)):
            if name in value.__globals__:
                found = value.__globals__[name]
                self.note(name)
                self(found)
                if isinstance(found, types.ModuleType) and not _is_installed(found.__name__):
                    # What is read from a module of the user's own: the values of the names that are asked for.
                    self({n: vars(found)[n] for n in sorted(_names(value.__code__)) if n in vars(found)})

    def code(self, value: types.CodeType) -> None:
        self.note(
            value.co_code, value.co_names, value.co_varnames, value.co_freevars, value.co_flags, value.co_argcount
        )
        self(value.co_consts)

    def type(self, value: type) -> None:
        self.note(value.__module__, value.__qualname__)
        if _is_installed(value.__module__):
            self.note(_version(value.__module__))
            return
        self(value.__bases__)
        for name, v in vars(value).items():
            if name not in _NOT_CODE and not isinstance(v, types.GetSetDescriptorType | types.MemberDescriptorType):
                self.note(name)
                self(v)


def _names(code: types.CodeType) -> set[str]:
    """Global names and attributes that code mentions, in functions inside it too."""
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return {*code.co_names}.union(*map(_names, inner))


@functools.cache
def _is_installed(module: str | None) -> bool:
    """Whether a module is part of Python, of an installed package, or of this library: known by its version."""
    root = (module or "").split(".")[0]
    if root in sys.builtin_module_names or root in sys.stdlib_module_names or root == __name__.split(".")[0]:
        return True
    file = getattr(sys.modules.get(module or ""), "__file__", None)
    return file is not None and file.startswith(_INSTALLED)


@functools.cache
def _version(module: str) -> str:
    root = sys.modules.get(module.split(".")[0])
    version = getattr(root, "__version__", None)
    if version is None and _is_installed(module):
        file = getattr(sys.modules.get(module), "__file__", None)
        # A package without a version: what its file holds tells.
        version = hashlib.sha256(Path(file).read_bytes()).hexdigest() if file and not file.endswith(".so") else ""
    return str(version)
