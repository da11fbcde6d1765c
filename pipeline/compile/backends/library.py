"""Library: a program compiled to a shared library, which runs any number of steps in a call.

It is called through ctypes with handles of tensors, which are made once for all that stays where it is (State, data
set). Loading one needs neither a trace nor a compiler.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import os
import tempfile
import weakref
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline import files
from pipeline.compile.backends.program import Output

_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
_capsule = ctypes.pythonapi.PyCapsule_New
_capsule.restype, _capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_ROOM = 1000
_NUMBER, _ARRAY = ctypes.c_int64, ctypes.c_void_p


def handles(tensors: Sequence[Tensor]) -> list[int]:
    """New handles of tensors, as the C interface of torch takes them; whoever gets them deletes them."""
    return [_pointer(c, None) for c in capsules(tensors)]


def capsules(tensors: Sequence[Tensor]) -> list[Any]:
    """New handles as Inductor's wrappers pass them."""
    made: list[Any] = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors(list(tensors))
    return made


@cache
def _keep_memory() -> None:
    """Have glibc keep what is freed: given back to the system, the buffers of a step would be mapped and cleared anew
    in each.

    It holds for the whole process, as a step's memory is most of what a training process has.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # as malloc.h has them
        if not mallopt(mmap_threshold, 2**30):
            mallopt(mmap_threshold, 32 << 20)  # the most that older ones take
        mallopt(trim_threshold, 2**31 - 1)


def return_memory() -> None:
    """What Inductor leaves of a large graph: tens of megabytes in rings of objects, which would count beside the
    steps'."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc's
        trim(0)


def loaded(code: bytes, name: str) -> ctypes.CDLL:
    """A shared library of just these bytes, which nobody can change meanwhile: a sealed file in memory, which debuggers
    show by `name`, or a copy of our own. Raises OSError where it can't be run."""
    with suppress(AttributeError, OSError):  # not Linux, or one that runs nothing from memory
        handle = _memory(name)
        if not fcntl.fcntl(handle, fcntl.F_GET_SEALS):
            os.posix_fallocate(handle, 0, len(code))  # raises where there is no room
            os.pwrite(handle, code, 0)
            fcntl.fcntl(handle, fcntl.F_ADD_SEALS, 0b1111)  # neither written, shorter, longer, nor unsealed
        library = ctypes.CDLL(f"/proc/self/fd/{handle}")
        if f"/memfd:{name} ".encode() in files.read(Path("/proc/self/maps")):  # and not one that had this path before
            return library
    with tempfile.TemporaryDirectory(prefix="pipe-train-") as folder:
        files.replace(path := Path(folder, f"{name}.so"), code, 0o600)
        return ctypes.CDLL(str(path))


@cache
def _memory(name: str) -> int:
    """A new file in memory. It stays open: the loader takes what has the path of a loaded library for that one."""
    return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


class Library:
    """A loaded program. `bind` it to the tensors that stay in place."""

    backend = "native"
    note: str | None = None

    def __init__(self, library: ctypes.CDLL, entry: str, inputs: tuple[int, ...], outputs: tuple[Output, ...]) -> None:
        self.path, self.entry, self.inputs, self.outputs = library._name, entry, inputs, outputs
        _keep_memory()
        self.delete = library.aoti_torch_delete_tensor_object
        self.delete.argtypes = [_ARRAY]
        self.step = library[entry]
        self.step.argtypes = [_ARRAY, _ARRAY, _NUMBER, _NUMBER, _NUMBER, _ARRAY, _ARRAY, ctypes.c_char_p, _NUMBER]
        self.order = library.pipeline_permute
        self.order.argtypes = [_ARRAY, _NUMBER, _NUMBER, _NUMBER, _ARRAY, _NUMBER]

    def bind(self, static: Sequence[Tensor], given: int = 0, constants: Sequence[Tensor] = ()) -> LibraryRun:
        return LibraryRun(self, static, given, constants)


class LibraryRun:
    """A program with the tensors that it reads and writes in place; a batch may come with each call."""

    def __init__(self, program: Library, static: Sequence[Tensor], given: int, constants: Sequence[Tensor]) -> None:
        self.outputs = program.outputs
        self._flat: list[Tensor | None] = [*static, *[None] * given, *constants]  # storage must outlive the handles
        if max(program.inputs, default=0) >= len(self._flat):
            raise RuntimeError(f"a program of {max(program.inputs) + 1} inputs was given {len(self._flat)}")
        there = {i: t for i, t in enumerate(self._flat) if t is not None}
        kept = dict(zip(there, handles(list(there.values())), strict=True))
        n, m = len(program.inputs), len(self.outputs)
        self._inputs = (ctypes.c_void_p * n)(*[kept.get(i) for i in program.inputs])
        places = {i: at for at, i in enumerate(program.inputs)}
        self._given = [places.get(len(static) + i) for i in range(given)]
        used = [at for at in self._given if at is not None]
        self._history = (ctypes.c_void_p * max(m, 1))()
        self._bytes = (ctypes.c_int64 * max(m, 1))(*[o.bytes for o in self.outputs])
        self._error = ctypes.create_string_buffer(_ROOM)
        self._first = (self._inputs, (ctypes.c_int64 * max(len(used), 1))(*used), len(used), m)
        self._step, self._order = program.step, program.order
        weakref.finalize(self, _release, program.delete, list(kept.values()))

    def run(self, given: Sequence[Tensor] = (), steps: int | None = None, results: bool = True) -> list[Tensor]:
        """Do `steps` steps and return each output, stacked (steps, ...); of one step (None), as it is.

        Raises RuntimeError where an operation fails.
        """
        if given:
            read = [(at, t) for at, t in zip(self._given, given, strict=True) if at is not None]
            for (at, _), handle in zip(read, handles([t for _, t in read]), strict=True):
                self._inputs[at] = handle
        made: list[Tensor] = []
        if results:
            for j, o in enumerate(self.outputs):
                made.append(torch.empty(o.shape if steps is None else (steps, *o.shape), dtype=o.dtype))
                self._history[j] = made[j].data_ptr()
        count, history = 1 if steps is None else steps, self._history if results else None
        failed = self._step(*self._first, count, history, self._bytes, self._error, _ROOM)
        if failed:
            raise RuntimeError(f"the compiled step failed: {self._error.value.decode(errors='replace')}")
        return made

    def permute(self, out: Tensor, first: int, n: int, keys: Tensor) -> None:
        """`order.permute` of the positions from `first` on, written into `out`, (count,) int64."""
        self._order(out.data_ptr(), first, len(out), n, keys.data_ptr(), len(keys))


def _release(delete: Any, own: list[int]) -> None:
    for handle in own:
        delete(handle)


class Call:
    """A library in the place of the function that Inductor's wrapper calls: capsules of handles, which it takes over,
    in and out."""

    def __init__(self, path: Path, entry: str, outputs: int) -> None:
        self._call = ctypes.CDLL(str(path))[entry]
        self._call.argtypes = [_ARRAY, _ARRAY, ctypes.c_char_p, _NUMBER]
        self._outputs = outputs

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        error = ctypes.create_string_buffer(_ROOM)
        made = (ctypes.c_void_p * max(self._outputs, 1))()
        given = (ctypes.c_void_p * max(len(inputs), 1))(*[_pointer(c, None) for c in inputs])
        if self._call(given, made, error, _ROOM):
            raise RuntimeError(error.value.decode(errors="replace"))
        return [_capsule(made[i], None, None) for i in range(self._outputs)]
