"""Place: the only step that names a device or moves a tensor."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from attrs import evolve, field, frozen
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from pipeline.element import Element
from pipeline.errors import DeviceError, did_you_mean
from pipeline.mesh import Mesh, broadcast, make, processes
from pipeline.sources.tensors import as_tensor
from pipeline.state import Batch
from pipeline.tree import Tree, tree_map

_STAYS = object()
"""Marker of a value that stays on the host."""

KNOWN = ("auto", "cpu", "cuda")
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
LOW = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""dtypes of products and convolutions under autocast."""


@frozen(eq=False, repr=False)
class Place(Element):
    """The border of the step: stages before it run on the host, stages after it as one graph on `device`."""

    device: torch.device = field(factory=lambda: torch.device("cpu"))
    precision: str = "fp32"
    mesh: Mesh | None = None
    """The processes of a run on several."""

    def __repr__(self) -> str:
        words = [str(self.device)]
        if self.mesh is not None:
            words.append(f"data={self.mesh.data}, shard={self.mesh.shard}")
        return f"{self.name}({', '.join([*words, *([self.precision] if self.precision != 'fp32' else [])])})"

    @property
    def first(self) -> bool:
        """Whether this is the first process: `if pipe.place.first: print(report)`."""
        return self.mesh is None or self.mesh.rank == 0

    def agreed(self, value: Any) -> Any:
        """The first process's value, for values that differ between processes, such as a time. A collective."""
        return value if self.mesh is None else broadcast(value)

    def everyone(self, value: Any) -> list[Any]:
        """Each process's value. A collective."""
        return [value] if self.mesh is None else self.mesh.everyone(value)

    def autocast(self) -> AbstractContextManager[Any]:
        """Context in which products and convolutions of float32 weights compute in bf16 or fp16, if requested."""
        if self.precision not in LOW:
            return nullcontext()
        # The cache of cast weights is keyed by object, and would outlive a transformed function's tensors.
        return torch.autocast(self.device.type, dtype=LOW[self.precision], cache_enabled=False)

    def computing(self) -> AbstractContextManager[Any]:
        """Context in which float32 products compute in TF32, if requested, in the backward too."""
        return _tf32() if self.precision == "tf32" else nullcontext()

    def tree(self, tree: Tree) -> Tree:
        """A pytree of tensors on the device."""
        return tree_map(lambda t: self._move(t) if isinstance(t, Tensor) else t, tree)

    def batch(self, batch: Batch) -> Batch:
        """A batch on the device: its tensors, arrays and numbers (as 0-d tensors), nested or not, and nothing else."""
        placed = {name: self._placed(name, value) for name, value in batch.items()}
        return {name: value for name, value in placed.items() if value is not _STAYS}

    def _placed(self, name: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._move(value)
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, bool | int | float):
            return self._move(torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None))
        if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
            return self._move(as_tensor(name, value))
        if value is None:
            return value
        if isinstance(value, Mapping):
            return self.batch(value) or _STAYS
        if isinstance(value, PackedSequence):
            return value.to(self.device)  # type: ignore[arg-type]  # torch's types know dtypes alone
        if isinstance(value, list | tuple):
            items = [self._placed(name, item) for item in value]
            if all(item is _STAYS for item in items):
                return _STAYS
            items = [None if item is _STAYS else item for item in items]
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        return _STAYS

    def fits(self, tensors: Iterable[Tensor]) -> bool:
        """Whether tensors fit on the device: on an accelerator, in half of its free memory."""
        if self.device.type == "cpu":
            return True
        return 2 * sum(t.nbytes for t in tensors if t.device != self.device) <= free_memory(self.device)

    def ahead(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches on the device, each sent during the previous step."""
        if self.device.type == "cpu":
            for batch in batches:
                placed = all(isinstance(t, Tensor) and t.device == self.device for t in batch.values())
                yield batch if placed else self.batch(batch)
            return
        waiting: Batch | None = None
        for batch in batches:
            following = self.batch(batch)
            if waiting is not None:
                yield waiting
            waiting = following
        if waiting is not None:
            yield waiting

    def _move(self, tensor: Tensor) -> Tensor:
        if tensor.device == self.device:
            return tensor
        if tensor.device.type != "cpu" or self.device.type in ("cpu", "meta"):
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)


def on(device: str | torch.device = "auto", *, precision: str = "fp32") -> Place:
    """Place State and batches on "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1" or a torch.device.

    - `precision`: "bf16" and "fp16" run the stages up to a backward, and evaluation, under torch.autocast; weights,
      gradients and updates stay float32. "fp16" needs update.finite("scale"), since its range is small. "tf32" computes
      float32 products on a GPU with 10 bits of mantissa.

    To a GPU, batches go pinned, non-blocking and one ahead. Raises DeviceError for a device that is missing, or has no
    float64, in which State keeps its numbers.

    >>> on("cpu").device
    device(type='cpu')
    """
    if precision not in PRECISIONS:
        raise DeviceError(f"unknown precision {precision!r}{did_you_mean(precision, PRECISIONS)}")
    resolved = resolve(device)
    if precision == "tf32" and resolved.type == "cpu":
        raise DeviceError("precision 'tf32' is for GPUs, and the device is the CPU; use fp32 or bf16")
    return Place("place.on", device=resolved, precision=precision)


def mesh(
    device: str | torch.device = "auto", *, data: int | None = None, shard: int = 1, precision: str = "fp32",
    timeout: float = 600.0,
) -> Place:  # fmt: skip
    """Place the run on all processes that torchrun started, `data * shard` of them, each with a device.

    Each process computes its rows of every batch, and the result equals one process's. `shard` processes share one copy
    of the parameters, gradients and update rules' memory, each keeping a shard (FSDP, ZeRO-3: Rajbhandari et al.,
    2020).

    - `data`: number of copies; by default as many as fit the processes, so that the same script also runs alone.
    - `timeout`: seconds to wait for another process.

    Raises DeviceError for another number of processes, a failed connection, or differing versions of torch.

    >>> mesh("cpu").mesh is None  # one process
    True
    """
    local = resolve(device)
    if local.type == "cuda" and processes() > 1:
        local = resolve(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
        torch.cuda.set_device(local)
    return evolve(on(local, precision=precision), name="place.mesh", mesh=make(data, shard, local, timeout))


def host(tree: Tree) -> Tree:
    """A copy of a pytree of tensors on the host, with storage of its own."""
    return tree_map(lambda t: t.detach().to("cpu", copy=True) if isinstance(t, Tensor) else t, tree)


def fast_bf16(device: torch.device) -> bool:
    """Whether a device multiplies in bf16 by instructions of its own."""
    if device.type != "cpu":
        return device.type == "cuda"
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def resolve(device: str | torch.device) -> torch.device:
    """The device of a name on this machine."""
    if device == "auto":
        gpu = torch.accelerator.current_accelerator(check_available=True)
        return torch.device(gpu.type, 0) if gpu is not None and _has_float64(gpu) else torch.device("cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        word = {"gpu": "cuda"}.get(str(device), str(device))
        raise DeviceError(f"unknown device {device!r}{did_you_mean(word, KNOWN)}") from None
    if resolved.type == "cpu":
        return resolved
    count = _count(resolved.type)
    if not count:
        if resolved.type == "cuda":
            raise DeviceError(f"device {str(device)!r}: torch sees no CUDA GPU on this machine; use auto or cpu")
        raise DeviceError(f"device {device!r} is not supported; known: {', '.join(KNOWN)}, cuda:N")
    resolved = torch.device(resolved.type, resolved.index or 0)
    if resolved.index >= count:
        raise DeviceError(f"device {str(device)!r}: this machine has {count} GPU(s), numbered from 0")
    if not _has_float64(resolved):
        raise DeviceError(f"device {str(device)!r} has no float64, in which State keeps its numbers; use cpu")
    return resolved


def free_memory(device: torch.device) -> int:
    """Free bytes on an accelerator."""
    free: int = torch.get_device_module(device).mem_get_info(device)[0]
    return free


def _count(kind: str) -> int:
    """Devices of a type on this machine."""
    try:
        count: int = torch.get_device_module(kind).device_count()
    except (AttributeError, RuntimeError):  # a type without devices, such as meta
        return 0
    return count


def _has_float64(device: torch.device) -> bool:
    if device.type == "cuda":
        return True  # without initialising it
    try:
        torch.empty((), dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return False
    return True


@contextmanager
def _tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
