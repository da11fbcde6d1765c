"""The Source protocol, and data sets that are tensors in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from attrs import evolve, field, frozen
from torch import Tensor
from torch.utils import _pytree as pytree

from pipeline.errors import DataError
from pipeline.state import Batch
from pipeline.tree import named

EMPTY = "the data set is empty: it has no samples"


@runtime_checkable
class Source(Protocol):
    """A data set: its length, the names of its values, and the batch at any indices."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Tensor) -> Batch:
        """The samples at `indices` (int64, (B,)): a tensor of shape (B, ...) for each name."""
        ...


@runtime_checkable
class Drawn(Source, Protocol):
    """A Source that reads the batches of an epoch itself, for new draws in each epoch or to prefetch."""

    def epoch(self, seed: int, epoch: int, batches: Iterable[Tensor]) -> Iterator[Batch]:
        """The batches at these indices, each (B,) int64; `source[indices]` is a batch of epoch (0, 0)."""
        ...


def in_epoch(source: Source, seed: int, epoch: int, batches: Iterable[Tensor]) -> Iterator[Batch]:
    """The batches of any Source at these indices, in an epoch of a run."""
    if isinstance(source, Drawn):
        return source.epoch(seed, epoch, batches)
    return (source[indices] for indices in batches)


def length(arrays: Mapping[str, Any]) -> int:
    """The number of samples in arrays by name. Raises DataError if there are none, or the arrays differ."""
    lengths = {name: len(a) if a.ndim else 0 for name, a in arrays.items()}
    if not lengths or min(lengths.values()) == 0:
        raise DataError(EMPTY)
    if len(set(lengths.values())) > 1:
        each = ", ".join(f"{k} {n}" for k, n in lengths.items())
        raise DataError(f"the values of the data set differ in length: {each}")
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
    """Names of the classes, if targets are classes."""
    spec: Any = field(default=None, repr=False)
    """Nesting of a batch, if it is nested."""

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> Tensors:
        """A Source over arrays by name, which may be nested in dicts and tuples."""
        arrays = {name: value if _nested(value) else as_tensor(name, value) for name, value in tree.items()}
        flat = {path: as_tensor(path, value) for path, value in named(arrays).items()}
        return cls(flat, spec=None if flat.keys() == arrays.keys() else pytree.tree_structure(arrays))

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

    def batch(self, values: Sequence[Tensor]) -> Batch:
        """A batch from its rows of each tensor."""
        flat = dict(zip(self.tensors, values, strict=True))
        batch: Batch = pytree.tree_unflatten(list(flat.values()), self.spec) if self.spec else flat
        return batch

    def take(self, rows: Tensor) -> Tensors:
        """A data set of the samples at these indices."""
        return evolve(self, tensors={name: t.index_select(0, rows) for name, t in self.tensors.items()})


def _nested(value: Any) -> bool:
    """Whether a value holds arrays; a list, of numbers or of rows, is one array."""
    return isinstance(value, Mapping) or (
        isinstance(value, tuple) and bool(value) and all(isinstance(x, Mapping | Tensor | np.ndarray) for x in value)
    )


def _refuse_non_finite(name: str, tensor: Tensor) -> None:
    """Raise DataError for NaN and infinite values; a finite tensor's sum may overflow."""
    bad = (~torch.isfinite(tensor)).reshape(len(tensor), -1)
    rows = bad.any(1).nonzero().flatten()
    if len(rows):
        value, share = tensor.reshape(len(tensor), -1)[bad][0].item(), f"{len(rows)} of {len(tensor)}"
        raise DataError(
            f"{name} holds {value} in sample {rows[0].item()} ({share} samples have NaN or infinite values); remove or "
            "fill them first"
        )


def source(data: Any) -> Source:
    """A Source from a Source, a mapping of arrays, inputs alone, an (inputs, targets) pair, or a torch Dataset."""
    if type(data) is torch.utils.data.TensorDataset:  # a subclass may have a __getitem__ of its own
        data = data.tensors
    if isinstance(data, Tensor | np.ndarray):
        data = {"inputs": data}
    elif isinstance(data, tuple | list) and len(data) == 2:
        data = {"inputs": data[0], "targets": data[1]}
    if isinstance(data, Mapping):
        return Tensors.of(data)
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
    """An array as a tensor: float64 as float32, integers as int64. It shares memory if nothing changes."""
    if isinstance(value, Tensor):
        return value
    try:
        array = np.asarray(value)
    except ValueError:
        raise DataError(f"{name} has rows of different lengths; pad or cut them to one length") from None
    try:
        # torch knows neither foreign byte orders nor negative strides.
        tensor = torch.from_numpy(np.asarray(array, array.dtype.newbyteorder("="), order="C"))
    except TypeError:
        raise DataError(f"{name} holds {array.dtype} values, which can't be a tensor; encode them as numbers") from None
    if tensor.dtype == torch.float64:
        return tensor.float()
    unchanged = tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool
    return tensor if unchanged else tensor.long()
