"""Native: a program compiled to one shared library, which runs any number of steps in a call.

Inductor writes a step as C++. `LOOP` is put behind it: a loop over steps that goes back to Python only at its end. A library
is called through ctypes with handles of tensors, which are made once for all that stays where it is (State, data set).
Loading one needs neither a trace nor a compiler.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

LOOP = r"""
#include <cstdint>
#include <cstring>
#include <exception>
#include <vector>

// Inputs are borrowed, except for the last `owned`, which are deleted here. Output j of step k goes to history[j] + k * bytes[j].
extern "C" __attribute__((visibility("default"))) int pipeline_run(
    AtenTensorHandle* inputs, int64_t n, int64_t owned, int64_t m, int64_t steps,
    char** history, const int64_t* bytes, char* error, int64_t room) {
  int failed = 0;
  try {
    std::vector<AtenTensorHandle> in(n), out(m);
    for (int64_t k = 0; k < steps; k++) {
      for (int64_t i = 0; i < n; i++) aoti_torch_new_tensor_handle(inputs[i], &in[i]);
      inductor_entry_impl(in.data(), out.data());
      for (int64_t j = 0; j < m; j++) {
        void* data;
        aoti_torch_get_data_ptr(out[j], &data);
        if (history) std::memcpy(history[j] + k * bytes[j], data, bytes[j]);
        aoti_torch_delete_tensor_object(out[j]);
      }
    }
  } catch (std::exception const& e) {
    std::strncpy(error, e.what(), room - 1);
    failed = 1;
  }
  for (int64_t i = n - owned; i < n; i++) aoti_torch_delete_tensor_object(inputs[i]);
  return failed;
}
"""

_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
_ROOM = 1000


@frozen
class Output:
    """What a program returns each step: a contiguous tensor of known shape."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


def handles(tensors: Sequence[Tensor]) -> list[int]:
    """New handles of tensors, as the C interface of torch takes them; whoever gets them deletes them."""
    capsules = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors(list(tensors))
    return [_pointer(c, None) for c in capsules]


class Native:
    """A loaded library. `bind` it to the tensors that stay in place."""

    def __init__(self, path: Path, outputs: tuple[Output, ...]) -> None:
        self.outputs = outputs
        library = ctypes.CDLL(str(path))  # lets other threads of Python run meanwhile
        number, array = ctypes.c_int64, ctypes.c_void_p
        self.run = library.pipeline_run
        self.run.argtypes = [array, number, number, number, number, array, array, ctypes.c_char_p, number]
        self.delete = library.aoti_torch_delete_tensor_object
        self.delete.argtypes = [array]
        self.sizes = tuple(torch.Size(o.shape).numel() * o.dtype.itemsize for o in outputs)

    def bind(self, static: Sequence[Tensor], batch: int = 0) -> Bound:
        return Bound(self, static, batch)


class Bound:
    """A program with the tensors that it reads and writes in place; a batch may come with each call."""

    def __init__(self, program: Native, static: Sequence[Tensor], batch: int) -> None:
        self.outputs = program.outputs
        self._static = tuple(static)  # their storage must outlive the handles
        own = handles(static)
        self._n, self._batch, m = len(own) + batch, batch, len(self.outputs)
        self._inputs = (ctypes.c_void_p * self._n)(*own)
        self._history = (ctypes.c_void_p * max(m, 1))()
        self._bytes = (ctypes.c_int64 * max(m, 1))(*program.sizes)
        self._error = ctypes.create_string_buffer(_ROOM)
        self._run = program.run
        weakref.finalize(self, _release, program.delete, own)

    def run(self, batch: Sequence[Tensor] = (), steps: int | None = None, results: bool = True) -> list[Tensor]:
        """Do `steps` steps and return each output, stacked (steps, ...); of one step (None), as it is.

        Raises RuntimeError where an operation fails.
        """
        count = len(self._static)
        if self._batch:
            for i, handle in enumerate(handles(batch), count):
                self._inputs[i] = handle
        made: list[Tensor] = []
        if results:
            for j, o in enumerate(self.outputs):
                made.append(torch.empty(o.shape if steps is None else (steps, *o.shape), dtype=o.dtype))
                self._history[j] = made[j].data_ptr()
        failed = self._run(
            self._inputs, self._n, self._batch, len(self.outputs), 1 if steps is None else steps,
            self._history if results else None, self._bytes, self._error, _ROOM,
        )  # fmt: skip
        if failed:
            raise RuntimeError(f"the compiled step failed: {self._error.value.decode(errors='replace')}")
        return made


def _release(delete: Any, own: list[int]) -> None:
    for handle in own:
        delete(handle)
