"""Native: a program compiled to one shared library, which runs any number of steps in a call.

Inductor writes a step as C++. `LOOP` is put behind it: a loop over steps that goes back to Python only at its end. A library
is called through ctypes with handles of tensors, which are made once for all that stays where it is (State, data set).
Loading one needs neither a trace nor a compiler.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from functools import cache
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

SHORTCUTS = r"""
// Small float32 products go to BLAS at once: through torch's dispatcher they take a microsecond more each.
extern "C" __attribute__((weak)) void sgemm_(
    const char*, const char*, const int*, const int*, const int*, const float*, const float*, const int*,
    const float*, const int*, const float*, float*, const int*);

struct PipelineMatrix {
  float* data = nullptr;
  int64_t rows = 0, columns = 0, step = 0;
  bool transposed = false;

  explicit PipelineMatrix(AtenTensorHandle tensor) {
    int32_t dtype;
    int64_t dims, *sizes, *strides;
    void* pointer;
    aoti_torch_get_dtype(tensor, &dtype);
    aoti_torch_get_dim(tensor, &dims);
    if (dtype != aoti_torch_dtype_float32() || dims != 2) return;
    aoti_torch_get_sizes(tensor, &sizes);
    aoti_torch_get_strides(tensor, &strides);
    transposed = strides[1] != 1;
    if (strides[transposed ? 0 : 1] != 1 || strides[transposed ? 1 : 0] < sizes[transposed ? 0 : 1]) return;
    rows = sizes[0], columns = sizes[1], step = strides[transposed ? 1 : 0];
    if (rows * columns == 0 || rows > 4096 || columns > 4096 || step > 1 << 24) return;
    aoti_torch_get_data_ptr(tensor, &pointer);
    data = static_cast<float*>(pointer);
  }
};

static bool pipeline_product(const PipelineMatrix& out, const PipelineMatrix& a, const PipelineMatrix& b, float beta) {
  if (!sgemm_ || !out.data || !a.data || !b.data || out.transposed || a.columns != b.rows) return false;
  const int m = out.rows, n = out.columns, k = a.columns, lda = a.step, ldb = b.step, ldc = out.step;
  const float one = 1;
  // BLAS counts by columns: the transposed product of the transposed matrices.
  sgemm_(b.transposed ? "T" : "N", a.transposed ? "T" : "N", &n, &m, &k, &one, b.data, &ldb, a.data, &lda, &beta, out.data, &ldc);
  return true;
}

static AOTITorchError pipeline_mm(AtenTensorHandle out, AtenTensorHandle a, AtenTensorHandle b) {
  if (pipeline_product(PipelineMatrix(out), PipelineMatrix(a), PipelineMatrix(b), 0)) return AOTI_TORCH_SUCCESS;
  return aoti_torch_cpu_mm_out(out, a, b);
}

static AOTITorchError pipeline_addmm(
    AtenTensorHandle out, AtenTensorHandle bias, AtenTensorHandle a, AtenTensorHandle b, double beta, double alpha) {
  int32_t dtype;
  int64_t dims, *strides, *sizes;
  void* data;
  aoti_torch_get_dtype(bias, &dtype);
  aoti_torch_get_dim(bias, &dims);
  aoti_torch_get_sizes(bias, &sizes);
  aoti_torch_get_strides(bias, &strides);
  aoti_torch_get_data_ptr(bias, &data);
  PipelineMatrix c(out);
  if (dtype == aoti_torch_dtype_float32() && dims == 1 && strides[0] == 1 && c.data && !c.transposed &&
      sizes[0] == c.columns && alpha == 1 && beta == 1) {
    for (int64_t i = 0; i < c.rows; i++) std::memcpy(c.data + i * c.step, data, c.columns * sizeof(float));
    if (pipeline_product(c, PipelineMatrix(a), PipelineMatrix(b), 1)) return AOTI_TORCH_SUCCESS;
  }
  return aoti_torch_cpu_addmm_out(out, bias, a, b, beta, alpha);
}

// Small buffers are kept for the next step, one for each place in the code that asks for one.
static thread_local std::vector<void*> pipeline_pools;

static AOTITorchError pipeline_empty(
    AtenTensorHandle* kept, int64_t dims, const int64_t* sizes, const int64_t* strides, int32_t dtype, int32_t device,
    int32_t index, AtenTensorHandle* made) {
  if (*kept) return aoti_torch_new_tensor_handle(*kept, made);
  AOTITorchError failed = aoti_torch_empty_strided(dims, sizes, strides, dtype, device, index, made);
  int64_t bytes;
  if (failed || aoti_torch_get_storage_size(*made, &bytes) || bytes > 1 << 20) return failed;
  void* data;
  aoti_torch_get_data_ptr(*made, &data);
  pipeline_pools.push_back(data);
  *kept = *made;
  return aoti_torch_new_tensor_handle(*kept, made);
}

static AOTITorchError pipeline_part(
    AtenTensorHandle* kept, AtenTensorHandle pool, int64_t offset, int32_t dtype, int64_t dims, const int64_t* sizes,
    const int64_t* strides, AtenTensorHandle* made) {
  if (*kept) return aoti_torch_new_tensor_handle(*kept, made);
  AOTITorchError failed = aoti_torch__alloc_from_pool(pool, offset, dtype, dims, sizes, strides, made);
  void* data;
  if (failed || aoti_torch_get_data_ptr(pool, &data)) return failed;
  for (void* known : pipeline_pools) {
    if (known != data) continue;
    *kept = *made;
    return aoti_torch_new_tensor_handle(*kept, made);
  }
  return failed;
}
#define PIPELINE_KEPT ([] { static thread_local AtenTensorHandle kept = nullptr; return &kept; }())
#define aoti_torch_empty_strided(...) pipeline_empty(PIPELINE_KEPT, __VA_ARGS__)
#define aoti_torch__alloc_from_pool(...) pipeline_part(PIPELINE_KEPT, __VA_ARGS__)
#define aoti_torch_cpu_mm_out pipeline_mm
#define aoti_torch_cpu_addmm_out pipeline_addmm
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


@cache
def _keep_memory() -> None:
    """Have glibc keep what is freed: given back to the system, the buffers of a step would be mapped and cleared anew in each.

    It holds for the whole process, as a step's memory is most of what a training process has.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # as malloc.h has them
        if not mallopt(mmap_threshold, 2**30):
            mallopt(mmap_threshold, 32 << 20)  # the most that older ones take
        mallopt(trim_threshold, 2**31 - 1)


class Native:
    """A loaded library. `bind` it to the tensors that stay in place."""

    def __init__(self, path: Path, outputs: tuple[Output, ...]) -> None:
        self.outputs = outputs
        _keep_memory()
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
