"""The Source protocol, and data sets that are tensors in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from attrs import field, frozen
from torch import Tensor
from torch.utils import _pytree as pytree

from pipeline.errors import DataError
from pipeline.state import Batch
from pipeline.tree import named


@runtime_checkable
class Source(Protocol):
    """A data set: how many samples it has, what their parts are called, and the batch at some indices."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Tensor) -> Batch:
        """The samples at `indices` (int64, (B,)): each part as a tensor of shape (B, ...)."""
        ...


@runtime_checkable
class Drawn(Source, Protocol):
    """A Source that reads the batches of an epoch itself: because its samples are drawn anew in each, or to read
    ahead."""

    def epoch(self, seed: int, epoch: int, batches: Iterable[Tensor]) -> Iterator[Batch]:
        """The batches at some indices, each (B,) int64, in their order; `source[indices]` is that of (0, 0)."""
        ...


def in_epoch(source: Source, seed: int, epoch: int, batches: Iterable[Tensor]) -> Iterator[Batch]:
    """The batches of a Source at some indices, as they are in an epoch of a run."""
    if isinstance(source, Drawn):
        return source.epoch(seed, epoch, batches)
    return (source[indices] for indices in batches)


def length(arrays: Mapping[str, Any]) -> int:
    """How many samples arrays by name have. Raises DataError where there are none, or not as many in each."""
    lengths = {name: len(a) if a.ndim else 0 for name, a in arrays.items()}
    if not lengths or min(lengths.values()) == 0:
        raise DataError("the data set is empty: it has no samples")
    if len(set(lengths.values())) > 1:
        each = ", ".join(f"{k} {n}" for k, n in lengths.items())
        raise DataError(f"the parts of the data set differ in length: {each}")
    return next(iter(lengths.values()))


@frozen(eq=False)
class Tensors:
    """A Source over tensors of N rows each; a batch is one gather per tensor.

    >>> data = Tensors({"inputs": torch.arange(8.0).reshape(4, 2), "targets": torch.arange(4)})
    >>> data[torch.tensor([2, 0])]["targets"]
    tensor([2, 0])
    """

    tensors: Mapping[str, Tensor] = field(repr=lambda t: ", ".join(f"{k} {tuple(v.shape)}" for k, v in t.items()))
    classes: tuple[str, ...] = ()
    """Names of the classes, where targets are classes."""
    spec: Any = field(default=None, repr=False)
    """How a batch is nested, where it is."""

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> Tensors:
        """A Source over arrays by name, which may be nested in dicts and tuples."""
        arrays = {name: value if _nested(value) else as_tensor(name, value) for name, value in tree.items()}
        found = {path: as_tensor(path, value) for path, value in named(arrays).items()}
        return cls(found, spec=None if found.keys() == arrays.keys() else pytree.tree_structure(arrays))

    def __attrs_post_init__(self) -> None:
        length(self.tensors)
        for name, tensor in self.tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor.sum())):
                _refuse_non_finite(name, tensor)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name.split("/")[0] for name in self.tensors) if self.spec else self.tensors)

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, indices: Tensor) -> Batch:
        return self.batch([tensor.index_select(0, indices) for tensor in self.tensors.values()])

    def batch(self, parts: Sequence[Tensor]) -> Batch:
        """The samples as a batch, of what they have of each tensor."""
        flat = dict(zip(self.tensors, parts, strict=True))
        made: Batch = pytree.tree_unflatten(list(flat.values()), self.spec) if self.spec else flat
        return made


def _nested(value: Any) -> bool:
    """Whether it has parts that are arrays: a list, of numbers or of rows, is one array."""
    return isinstance(value, Mapping) or (
        isinstance(value, tuple) and bool(value) and all(isinstance(x, Mapping | Tensor | np.ndarray) for x in value)
    )


def _refuse_non_finite(name: str, tensor: Tensor) -> None:
    # The sum overflowed or met a NaN: only now is it worth looking at every number.
    bad = (~torch.isfinite(tensor)).reshape(len(tensor), -1)
    rows = bad.any(1).nonzero().flatten()
    if len(rows):
        value, share = tensor.reshape(len(tensor), -1)[bad][0].item(), f"{len(rows)} of {len(tensor)}"
        raise DataError(
            f"{name} holds {value} in sample {rows[0].item()} ({share} samples have NaN or infinite values); remove or "
            "fill them first"
        )


def source(data: Any) -> Source:
    """A Source from what people have: a Source, a mapping of arrays, inputs, an (inputs, targets) pair, or a torch
    Dataset."""
    if isinstance(data, Tensor | np.ndarray):
        return Tensors.of({"inputs": data})
    if isinstance(data, Mapping):
        return Tensors.of(data)
    if isinstance(data, torch.utils.data.TensorDataset):
        data = data.tensors
    if isinstance(data, tuple | list) and len(data) == 2:
        return source({"inputs": data[0], "targets": data[1]})
    if isinstance(data, Source):
        return data
    if isinstance(data, torch.utils.data.Dataset):
        from pipeline.sources.dataset import dataset

        return dataset(data)
    raise DataError(
        f"{type(data).__name__} is no data set: pass a Source, a mapping of tensors, an (inputs, targets) pair or a "
        "torch Dataset to load.batches(), and a DataLoader or another iterable to load.loader()"
    )


def as_tensor(name: str, value: Any) -> Tensor:
    """An array as a tensor: float64 as float32, narrow integers as int64; shares memory where nothing changes."""
    if isinstance(value, Tensor):
        return value
    try:
        array = np.asarray(value)
    except ValueError:
        raise DataError(f"{name} has rows of different lengths; make them alike, by padding or cutting") from None
    try:
        # In native byte order and without negative strides, which torch does not know.
        tensor = torch.from_numpy(np.asarray(array, array.dtype.newbyteorder("="), order="C"))
    except TypeError:
        raise DataError(f"{name} holds {array.dtype} values, which can't be a tensor; encode them as numbers") from None
    if tensor.dtype == torch.float64:
        return tensor.float()
    kept = tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool
    return tensor if kept else tensor.long()
