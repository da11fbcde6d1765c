"""Library: a program in a shared library, which runs any number of steps a call.

It is called through ctypes with handles of tensors; handles of State and of the data set are created once. Loading one
needs no compiler.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import tempfile
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline import files
from pipeline.compile.backends.backend import Output

_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
_capsule = ctypes.pythonapi.PyCapsule_New
_capsule.restype, _capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_NUMBER, _ARRAY = ctypes.c_int64, ctypes.c_void_p

_ROOM = 1000
"""Bytes of an error message."""


def handles(tensors: Sequence[Tensor]) -> list[int]:
    """New handles of tensors for torch's C interface; the caller deletes them."""
    return [_pointer(c, None) for c in capsules(tensors)]


def capsules(tensors: Sequence[Tensor]) -> list[Any]:
    """New handles as capsules, which Inductor's wrappers take."""
    new: list[Any] = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors(list(tensors))
    return new


def _keep_memory() -> None:
    """Let glibc keep freed memory, in the whole process: else each step maps and clears its buffers again."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # from malloc.h
        if not mallopt(mmap_threshold, 2**30):
            mallopt(mmap_threshold, 32 << 20)  # the maximum of older versions
        mallopt(trim_threshold, 2**31 - 1)


def loaded(code: bytes, name: str) -> ctypes.CDLL:
    """A shared library of exactly these bytes, which nobody can change meanwhile: a sealed file in memory, shown as
    `name` by debuggers, or else a private copy. Raises OSError if the system runs neither."""
    with suppress(AttributeError, OSError):  # not Linux, or a system that runs no code from memory files
        descriptor = _memory(name)
        if not fcntl.fcntl(descriptor, fcntl.F_GET_SEALS):
            os.posix_fallocate(descriptor, 0, len(code))  # raises OSError if memory is short
            os.pwrite(descriptor, code, 0)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, 0b1111)  # against seals, shrinking, growing and writing
        library = ctypes.CDLL(f"/proc/self/fd/{descriptor}")
        if f"/memfd:{name} ".encode() in files.read(Path("/proc/self/maps")):  # avoids an earlier library of this path
            return library
    with tempfile.TemporaryDirectory(prefix="pipe-train-") as folder:
        files.replace(path := Path(folder, f"{name}.so"), code, 0o600)
        return ctypes.CDLL(str(path))


def _memory(name: str) -> int:
    """The descriptor of this process's newest memory file of this name; created if there is none.

    It stays open, because the loader returns an earlier library for a known path.
    """
    for descriptor in reversed(os.listdir("/proc/self/fd")):
        with suppress(OSError):  # it was closed meanwhile
            if os.readlink(f"/proc/self/fd/{descriptor}") == f"/memfd:{name} (deleted)":
                return int(descriptor)
    return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


class Library:
    """A loaded program."""

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
    """A program bound to the tensors that it reads and writes in place."""

    def __init__(self, program: Library, static: Sequence[Tensor], given: int, constants: Sequence[Tensor]) -> None:
        self.outputs = program.outputs
        self._flat: list[Tensor | None] = [*static, *[None] * given, *constants]  # storage must outlive the handles
        if max(program.inputs, default=0) >= len(self._flat):
            raise RuntimeError(f"a program of {max(program.inputs) + 1} inputs was given {len(self._flat)}")
        tensors = {i: t for i, t in enumerate(self._flat) if t is not None}
        kept = dict(zip(tensors, handles(list(tensors.values())), strict=True))
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
        """Do `steps` steps on the tensors of a batch, and return each output stacked, (steps, ...); for None, one step
        with unstacked outputs. Raises RuntimeError if an operation fails."""
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
        """Write `order.permute` of the positions from `first` on into `out`, (count,) int64."""
        self._order(out.data_ptr(), first, len(out), n, keys.data_ptr(), len(keys))


def _release(delete: Any, kept: list[int]) -> None:
    for handle in kept:
        delete(handle)


class Call:
    """A library as the function that Inductor's wrapper calls: it takes ownership of capsules of handles, and returns
    new ones."""

    def __init__(self, path: Path, entry: str, outputs: int) -> None:
        self._call = ctypes.CDLL(str(path))[entry]
        self._call.argtypes = [_ARRAY, _ARRAY, ctypes.c_char_p, _NUMBER]
        self._outputs = outputs

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        error = ctypes.create_string_buffer(_ROOM)
        outputs = (ctypes.c_void_p * max(self._outputs, 1))()
        given = (ctypes.c_void_p * max(len(inputs), 1))(*[_pointer(c, None) for c in inputs])
        if self._call(given, outputs, error, _ROOM):
            raise RuntimeError(error.value.decode(errors="replace"))
        return [_capsule(outputs[i], None, None) for i in range(self._outputs)]
