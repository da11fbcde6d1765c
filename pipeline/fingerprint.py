"""Fingerprints: a hash of all that a pipeline's graph is made from, without tracing it.

It walks from the stages to everything that their code can see: bytecode, constants, defaults, closures, the globals that
are named in it, modules' classes and attributes. Numbers that are hyperparameters, a model's weights and the data's values
are no part of it: they are inputs of the graph. What it can't see through gives no fingerprint, and so no package.

Code that is installed is known by its version, and by what somebody put into it afterwards; all other code is read.
"""

from __future__ import annotations

import builtins
import collections
import contextlib
import dis
import enum
import functools
import hashlib
import importlib
import importlib.util
import inspect
import io
import logging
import os
import re
import struct
import sys
import sysconfig
import time
import types
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import PipeError
from pipeline.forward import Module
from pipeline.load import Load
from pipeline.schedules import Schedule
from pipeline.stage import Stage

_ATOMS = (type(None), bool, int, float, complex, str, bytes, type(...), type(NotImplemented), torch.dtype, torch.device,
          torch.memory_format, torch.layout, torch.Size, PurePath, range, np.dtype, np.generic)  # fmt: skip
_BASES = (collections.OrderedDict, collections.defaultdict, dict, collections.deque, list, tuple, set, frozenset, int,
          float, complex, str, bytes)  # fmt: skip
_NOT_CODE = ("__dict__", "__weakref__", "__doc__", "__annotations__", "__module__", "__slots__", "__slotnames__",
             "__orig_bases__", "__parameters__", "__firstlineno__", "__static_attributes__", "_abc_impl",
             "__annotate__", "__annotate_func__", "__annotations_cache__", "__conditional_annotations__",
             "__dataclass_fields__", "__dataclass_params__")  # fmt: skip
_NOT_STATE = ("_non_persistent_buffers_set", "_flat_weight_refs")
_PER_PROCESS = ("_original_object_hash",)
"""What transformers keeps of a text's hash(), which is another in each process."""
_VALUES = (tuple, frozenset, types.CodeType, types.MappingProxyType)
_DESCRIPTORS = (types.GetSetDescriptorType, types.MemberDescriptorType)
_BUILT_IN = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType,
             types.MethodWrapperType, types.ClassMethodDescriptorType)  # fmt: skip
_OUTSIDE = (eval, exec, compile, __import__, globals, input, open, io.open, os.getenv, importlib.import_module,
            time.time, torch.load, np.load)  # fmt: skip
"""What brings in things from nowhere in the code."""
_ANY_NAME = {"getattr", "vars", "__dict__"}
_INSTALLED = tuple({sysconfig.get_path(k) + os.sep for k in ("stdlib", "platstdlib", "purelib", "platlib")})
_OWN = __name__.split(".")[0]


class UnknownError(PipeError):
    """Something whose content can't be told."""


def fingerprint(*values: Any) -> str:
    """The hash. Raises UnknownError where something can't be seen through.

    Stages among the values, or in a tuple of them, are taken as parts of a pipeline: what State or the batch holds is left out.

    >>> fingerprint(nn.Dropout(0.1)) == fingerprint(nn.Dropout(0.1)), fingerprint(nn.ReLU()) == fingerprint(nn.Tanh())
    (True, False)
    """
    walk = _Walk()
    try:
        for value in values:
            parts = value if type(value) is tuple else (value,)
            walk.note(len(parts))
            for part in parts:
                walk.stage(part) if isinstance(part, Stage) else walk(part)
    except PipeError:
        raise
    except Exception as e:  # objects may answer to anything with anything; a pipeline without a package still trains
        raise UnknownError(f"something in the pipeline can't be looked into: {type(e).__name__}: {e}") from e
    return walk.hash.hexdigest()[:32]


class _Walk:
    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self.seen: dict[int, int] = {}
        self.alive: list[Any] = []  # an id is one object's only while that lives
        self.checked: set[str] = set()

    def note(self, *words: Any) -> None:
        self.hash.update(repr(words).encode(errors="surrogatepass"))

    def __call__(self, value: Any) -> None:
        kind = type(value)
        if isinstance(value, _ATOMS) and not isinstance(value, enum.Enum) and _is_version(kind):
            self.note(kind.__name__, value)
            return
        if kind not in _VALUES:  # whether two equal ones of those are one object depends on how Python loaded them
            if id(value) in self.seen:
                self.note("again", self.seen[id(value)])
                return
            self.see(value)
        self.note("(", kind.__module__, kind.__qualname__)
        self.inside(value)
        self.note(")")

    def see(self, value: Any) -> None:
        self.seen.setdefault(id(value), len(self.seen))
        self.alive.append(value)

    def stage(self, value: Stage) -> None:
        """A part of the pipeline. It is not noted as seen: whoever calls it as a plain function sees more of it."""
        if isinstance(value, Load):
            self({k: getattr(value, k) for k in ("name", "size", "shuffle", "drop_last", "fields", "writes")})
            return
        self.content(value, without=("function", "hyper", "init", "create", "check"))
        self.parameters(value.function, value.hyper)
        # The numbers of hyperparameters are State's; that there is a schedule, and which, is the graph's.
        for name, number in value.hyper.items():
            self.note(name, isinstance(number, Schedule))
            if isinstance(number, Schedule):
                self(sorted(number.numbers))
                self.parameters(number.factor, number.numbers)

    def parameters(self, function: Any, given: Any) -> None:
        """A function to which some of its parameters are always given, so that their defaults are nothing to it."""
        if isinstance(function, types.FunctionType):
            self.function(function, frozenset(given))
        else:
            self(function)

    def inside(self, value: Any) -> None:
        if isinstance(value, Module):
            self([value.skeleton(False), value.skeleton(True), value.frozen])
        elif isinstance(value, torch.jit.ScriptModule | torch.jit.ScriptFunction) or value is os.environ:
            raise _unknown(value)
        elif isinstance(value, nn.Module):
            self.module(value)
        elif isinstance(value, Tensor):
            self.tensor(value)
        elif type(value) is np.ndarray:
            self.note(value.shape, value.strides, value.dtype)
            self(value.tolist()) if value.dtype.hasobject else self.note(hashlib.sha256(value.tobytes()).hexdigest())
        elif isinstance(value, types.FunctionType):
            self.function(value)
        elif isinstance(value, types.MethodType):
            self([value.__func__, value.__self__])
        elif isinstance(value, types.CodeType):
            self.code(value)
        elif isinstance(value, type):
            self.type(value)
        elif isinstance(value, types.ModuleType):
            self.note(value.__name__, self.version(value.__name__))
            if not _is_installed(value.__name__):
                self.read(value, None, set())
        elif isinstance(value, types.MappingProxyType):
            self(dict(value))
        elif isinstance(value, slice):
            self([value.start, value.stop, value.step])
        elif isinstance(value, contextlib._GeneratorContextManager) and _is_new(value.gen):
            self([value.func, value.args, value.kwds])  # a decorator: its generator, not begun, is made from these
        elif isinstance(value, functools.partial):
            self([value.func, value.args, value.keywords, vars(value)])
        elif isinstance(value, staticmethod | classmethod):
            self(value.__func__)
        elif type(value) is property:
            self([value.fget, value.fset, value.fdel])
        elif isinstance(value, functools.cached_property):
            self(value.func)
        elif isinstance(value, functools._lru_cache_wrapper):
            self(value.__wrapped__)
        elif isinstance(value, _BUILT_IN) or type(value) is np.ufunc:
            self.built_in(value)
        elif isinstance(value, torch._ops.OpOverload | torch._ops.OpOverloadPacket | torch._ops.HigherOrderOperator):
            higher = isinstance(value, torch._ops.HigherOrderOperator)
            if not (_is_version(type(value)) if higher else str(value).split(".")[0] in ("aten", "prims", "prim")):
                raise _unknown(value)
            self.note(str(value), self.version("torch"))
        elif isinstance(value, collections._tuplegetter):  # type: ignore[attr-defined]  # a field of a namedtuple
            self(value.__reduce__()[1][0])
        elif hasattr(type(value), "__members__") and _is_installed(type(value).__module__):
            self.note(str(value))  # an enum in C++, or one of Python's
        elif isinstance(value, re.Pattern):
            self([value.pattern, value.flags])
        elif isinstance(value, logging.Logger):
            self.note(value.name)
        elif type(value).__module__ == "typing" or isinstance(value, types.GenericAlias | types.UnionType):
            self.note(repr(value))
        elif isinstance(value, enum.Enum):
            self.note(value.name)
            self([value.value, type(value)])
        else:
            self.content(value)

    def content(self, value: Any, without: tuple[str, ...] = ()) -> None:
        """What a plain Python object holds: its class, items, and attributes."""
        kind = type(value)
        base: type = next((b for b in _BASES if isinstance(value, b)), object)
        slots = dict(_slots(kind))
        room = len(slots) + sum(offset > 0 for offset in (kind.__dictoffset__, kind.__weakrefoffset__))
        if base.__itemsize__ == 0 and kind.__basicsize__ > base.__basicsize__ + room * struct.calcsize("P"):
            raise _unknown(value)  # it holds something in C
        if issubclass(base, dict):
            self.note(len(value))
            for k, v in dict.items(value):
                self(k)
                self(v)
            if base is collections.defaultdict:
                self(value.default_factory)
        elif issubclass(base, list | tuple | collections.deque):
            self.note(len(value))
            for v in base.__iter__(value):
                self(v)
        elif issubclass(base, set | frozenset):
            self.note(sorted(map(self.apart, base.__iter__(value))))
        elif base is not object:
            self.note(base.__repr__(value))
        if kind is base:
            return
        self(kind)
        for name, v in (*slots.items(), *getattr(value, "__dict__", {}).items()):
            if name in slots:
                try:
                    v = v.__get__(value)
                except AttributeError:
                    continue
            if name not in (*without, *_PER_PROCESS):
                self.note(name)
                self(v)

    def apart(self, value: Any) -> str:
        """The hash of an element of a set, whose order is another in each process."""
        walk = _Walk()
        walk.seen = dict(self.seen)
        walk(value)
        self.alive += walk.alive
        return walk.hash.hexdigest()

    def module(self, value: nn.Module) -> None:
        self(type(value))
        for name, v in vars(value).items():
            if name in ("_parameters", "_buffers"):
                for k, t in v.items():
                    self.note(name, k)
                    if t is None or id(t) in self.seen or t.device.type != "meta":
                        self(t)  # tied tensors are one; those with values are no State's, but constants
                    else:
                        self.see(t)
                        self.note(type(t).__qualname__, tuple(t.shape), t.stride(), str(t.dtype), t.requires_grad)
            elif name not in _NOT_STATE and v is not None:
                self.note(name)
                self(v)

    def tensor(self, value: Tensor) -> None:
        if value.layout is not torch.strided or value.is_quantized or value.is_nested:
            raise _unknown(value)
        if type(value) not in (Tensor, nn.Parameter, nn.Buffer):
            self(type(value))
        self.note(tuple(value.shape), value.stride(), str(value.dtype), str(value.device), value.requires_grad)
        self(vars(value))
        if value.device.type != "meta":
            # A copy to hash, of a constant in the code; no step sees it.
            plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
            self.note(hashlib.sha256(plain.view(torch.uint8).numpy().tobytes()).hexdigest())

    def function(self, value: types.FunctionType, given: frozenset[str] = frozenset()) -> None:
        if value in _OUTSIDE:
            raise _unknown(value)
        module, code = value.__globals__.get("__name__"), value.__code__
        installed = _is_installed(module)
        if installed:
            self.note(module, code.co_qualname, self.version(module))
            if _found(module, code.co_qualname) is value:
                return
        self.code(code)
        names = code.co_varnames[: code.co_argcount]
        defaults = dict(zip(reversed(names), reversed(value.__defaults__ or ()), strict=False))
        for name, default in {**defaults, **(value.__kwdefaults__ or {})}.items():
            self.note(name)
            if name not in given:
                self(default)
        for name, cell in zip(code.co_freevars, value.__closure__ or (), strict=True):
            self.note(name)
            try:
                content = cell.cell_contents
            except ValueError:  # not assigned yet
                continue
            self(content)
        self({k: v for k, v in vars(value).items() if k != "__wrapped__" or not installed})
        if not installed:
            self.globals(value)

    def globals(self, value: types.FunctionType) -> None:
        """The globals that a function's code mentions, and what it reads from modules."""
        names, texts, imports = _mentioned(value.__code__)
        asked = None if names & _ANY_NAME else frozenset(names | texts)
        for name in sorted(names):
            if name in value.__globals__:
                found = value.__globals__[name]
                self.note(name)
                if isinstance(found, types.ModuleType):
                    self.read(found, asked, set())
                else:
                    self(found)
            elif getattr(builtins, name, None) in _OUTSIDE and name in _loaded(value.__code__):
                raise UnknownError(f"{value.__qualname__} calls {name}(), which may bring in anything")
        for name in imports:
            package = value.__globals__.get("__package__") or ""
            full = importlib.util.resolve_name(name, package) if name.startswith(".") else name
            root = full.split(".")[0]
            if full not in sys.modules and not _is_installed(root):
                raise UnknownError(f"{value.__qualname__} imports {full} while it runs")
            for part in {full if full in sys.modules else root, root}:
                self.read(sys.modules[part], asked, set())

    def read(self, module: types.ModuleType, names: frozenset[str] | None, past: set[int]) -> None:
        """What is read from a module: the values of the names that are asked for, of all where any may be."""
        if id(module) in past:
            return
        past.add(id(module))
        self.note(module.__name__, self.version(module.__name__))
        installed, content = _is_installed(module.__name__), dict(vars(module))
        if not installed and "__getattr__" in content:
            self(content["__getattr__"])
        for name in sorted(content if names is None else names & content.keys()):
            v = content[name]
            if name.startswith("__") and name.endswith("__"):
                continue
            if v is os.environ:
                raise UnknownError("its code reads os.environ")
            if isinstance(v, types.ModuleType):
                if names is None and (installed or _is_installed(v.__name__)):
                    continue
                self.note(name)
                self.read(v, names, past)
            elif not installed or (names is not None and isinstance(v, (*_ATOMS, types.FunctionType))):
                self.note(name)
                self(v)

    def code(self, value: types.CodeType) -> None:
        self.note(
            value.co_code, value.co_names, value.co_varnames, value.co_cellvars, value.co_freevars, value.co_flags,
            value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount, value.co_exceptiontable,
        )  # fmt: skip
        self(value.co_consts)

    def type(self, value: type) -> None:
        self.note(value.__module__, value.__qualname__)
        if _is_version(value):
            self.note(self.version(value.__module__))
            for name, v in vars(value).items():  # methods that somebody put there
                if isinstance(v, types.FunctionType) and v.__globals__.get("__name__") != value.__module__:
                    self.note(name)
                    self(v)
            self([base for base in value.__bases__ if base is not object])
            return
        self([type(value), value.__bases__])
        for name, v in vars(value).items():
            if name not in _NOT_CODE and not name.startswith("__attrs_") and not isinstance(v, _DESCRIPTORS):
                self.note(name)
                self(v)

    def built_in(self, value: Any) -> None:
        if value in _OUTSIDE or (type(value) is np.ufunc and getattr(np, value.__name__, None) is not value):
            raise _unknown(value)
        owner = getattr(value, "__self__", None)
        module = getattr(value, "__module__", None) or getattr(getattr(value, "__objclass__", None), "__module__", "")
        self.note(module, getattr(value, "__qualname__", value.__name__), self.version(module))
        if isinstance(owner, types.ModuleType):
            if not _is_installed(owner.__name__):
                raise _unknown(value)
        elif owner is not None and getattr(owner, "__module__", None) != "torch":
            self(owner)

    def version(self, module: str | None) -> str:
        """An installed module's version. The first time also what somebody put into it afterwards."""
        if module is None or not _is_installed(module):
            return ""
        if module not in self.checked and module.split(".")[0] != _OWN:
            self.checked.add(module)
            for name, v in list(vars(sys.modules[module]).items()) if module in sys.modules else ():
                if isinstance(v, types.FunctionType) and not _is_installed(v.__globals__.get("__name__")):
                    self.note(name)
                    self(v)
        return _version(module)


def _unknown(value: Any) -> UnknownError:
    return UnknownError(f"a {type(value).__module__}.{type(value).__qualname__} can't be told from another")


def _is_new(generator: Any) -> bool:
    return inspect.getgeneratorstate(generator) == inspect.GEN_CREATED


def _slots(kind: type) -> Iterator[tuple[str, Any]]:
    """The slots of a class in Python and of its bases."""
    for c in kind.__mro__:
        if c.__flags__ & 1 << 9:  # made at run time
            yield from ((n, d) for n, d in vars(c).items() if isinstance(d, types.MemberDescriptorType))


@functools.cache
def _mentioned(code: types.CodeType) -> tuple[frozenset[str], frozenset[str], tuple[str, ...]]:
    """Global names and attributes that code mentions, its texts, and the modules that it imports; inside functions too."""
    names, texts, imports = {*code.co_names}, set[str](), set[str]()
    before: list[Any] = [None, None]
    for i in dis.get_instructions(code):
        if i.opname == "IMPORT_NAME":
            level = before[-2] if isinstance(before[-2], int) else 0
            imports.add("." * level + i.argval)
        if i.opname not in ("EXTENDED_ARG", "CACHE"):
            before.append(i.argval)
    for c in code.co_consts:
        if isinstance(c, str):
            texts.add(c)
        elif isinstance(c, tuple):
            texts.update(s for s in c if isinstance(s, str))
        elif isinstance(c, types.CodeType):
            more = _mentioned(c)
            names, texts, imports = names | more[0], texts | more[1], imports.union(more[2])
    return frozenset(names), frozenset(texts), tuple(sorted(imports))


@functools.cache
def _loaded(code: types.CodeType) -> frozenset[str]:
    """The names that code reads as globals or builtins, not as attributes."""
    inner = [_loaded(c) for c in code.co_consts if isinstance(c, types.CodeType)]
    own = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return frozenset(own.union(*inner))


def _found(module: str | None, path: str) -> Any:
    """What stands at a path in a module, if anything."""
    value: Any = sys.modules.get(module or "")
    for part in path.split("."):
        value = vars(value).get(part) if hasattr(value, "__dict__") else None
    return value.__func__ if isinstance(value, staticmethod | classmethod) else value


def _is_version(kind: type) -> bool:
    """Whether a class is what stands in an installed module, or is written in C."""
    if not kind.__flags__ & 1 << 9:
        return True
    if not _is_installed(kind.__module__):
        return False
    return kind.__module__.startswith("torch._C") or _found(kind.__module__, kind.__qualname__) is kind


@functools.cache
def _is_installed(module: str | None) -> bool:
    """Whether a module is part of Python, of an installed package, or of this library: known by its version."""
    root = (module or "").split(".")[0]
    if root in ("", "__main__", "__mp_main__"):  # a profiler or debugger may be what started it
        return False
    if root in (*sys.builtin_module_names, _OWN):
        return True
    file = getattr(sys.modules.get(module or ""), "__file__", None) or getattr(sys.modules.get(root), "__file__", None)
    return file.startswith(_INSTALLED) if file is not None else root in sys.stdlib_module_names


@functools.cache
def _version(module: str) -> str:
    root = module.split(".")[0]
    if root == _OWN or root in sys.stdlib_module_names:  # told by package.machine()
        return ""
    version = getattr(sys.modules.get(root), "__version__", "")
    file = getattr(sys.modules.get(module), "__file__", None)
    own = hashlib.sha256(Path(file).read_bytes()).hexdigest() if file and file.endswith(".py") else ""
    return f"{version} {own}"
