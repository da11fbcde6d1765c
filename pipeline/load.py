"""Load: the source of batches. The only step that knows about data sets, epochs and positions."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from attrs import evolve, field, frozen
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from pipeline import order, random
from pipeline.element import Element, is_count
from pipeline.errors import ConfigError, DataError, did_you_mean
from pipeline.mesh import Rows, Shard
from pipeline.sources import Source, Tensors, source
from pipeline.sources.tensors import in_epoch
from pipeline.state import Batch


@frozen(eq=False, repr=False)
class Load(Element):
    """The first stage of a pipeline: yields the batches of an `epoch`."""

    data: Any = None
    size: int = 0
    order: Any = None
    """The order.Order of a known data set."""
    drop_last: bool = False
    fields: tuple[str, ...] = ()
    """Names for the values of a tuple that an iterable yields."""
    samples: str | None = None
    """The value whose first dimension is the number of samples, if they differ."""
    others: tuple[Load, ...] = ()
    """Loads of further values of a batch, with as many batches in an epoch."""
    known: bool = field(init=False)
    """Whether the data set has names and a length before it is read."""

    @known.default
    def _known(self) -> bool:
        return isinstance(self.data, Source)  # cached, because isinstance of a Protocol takes as long as a step

    def __repr__(self) -> str:
        """`load.batches(1,437 samples of inputs, targets, size=64)`."""
        if not self.known:
            return f"{self.name}({type(self.data).__name__} of {', '.join(self.fields)})"
        options = [
            f"size={self.size}",
            *(["shuffle=False"] * (self.order == order.Whole(self.order.n, shuffle=False))),
            *(["drop_last=True"] * self.drop_last),
            *([f"draws={self.order.n:,}"] * isinstance(self.order, order.Weighted)),
        ]
        own = f"load.batches({len(self.data):,} samples of {', '.join(self.data.names)}, {', '.join(options)})"
        return f"{self.name}({', '.join([own, *map(repr, self.others)])})" if self.others else own

    @property
    def in_memory(self) -> bool:
        """Whether all data are tensors, so that a graph can gather a batch."""
        return all(isinstance(load.data, Tensors) for load in (self, *self.others))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors of data in memory, by name."""
        return {name: t for load in (self, *self.others) for name, t in load.data.tensors.items()}

    @property
    def batches(self) -> int | None:
        """Batches in an epoch, or None for an iterable without a length."""
        if self.known:
            return order.count(self.order.n, self.size, self.drop_last)
        try:
            return len(self.data)
        except TypeError:
            return None

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from batch `start` on, on the host."""
        if not self.known:
            k = -1
            for k, item in enumerate(self.data):
                if k >= start:
                    yield self.batch(item)
            if k < 0:
                raise DataError(
                    "the iterable given to load.loader() yielded nothing: each epoch iterates it anew, so pass a "
                    "DataLoader or a list, not an iterator that is used up"
                )
        elif self.others:
            streams = (evolve(load, others=()).epoch(key, epoch, start) for load, key in self.streams(seed))
            for each in zip(*streams, strict=True):
                yield {name: value for batch in each for name, value in batch.items()}
        else:
            indices = order.batches(self.order, self.size, seed, epoch, drop_last=self.drop_last, start=start)
            yield from map(self._named, in_epoch(self.data, seed, epoch, indices))

    def shards(self, seed: int, epoch: int, start: int, rows: Callable[[int], Rows]) -> Iterator[Shard]:
        """The same on a mesh: this process's samples of each batch. `rows`: size of a batch -> rows of this process."""
        if not self.known:
            own = f"{self.name}() has an order of its own, which processes do not share"
            raise DataError(f"{own}; on a mesh use load.batches(), which takes a torch Dataset too")
        if self.others:
            raise DataError(f"{self.name}() is for one process: place the pipeline by place.on()")
        waiting: deque[Rows] = deque()

        def local() -> Iterator[Tensor]:
            for indices in order.batches(self.order, self.size, seed, epoch, drop_last=self.drop_last, start=start):
                waiting.append(rows(len(indices)))
                yield indices[waiting[-1].taken]

        for batch in in_epoch(self.data, seed, epoch, local()):
            yield Shard(self._named(batch), waiting.popleft())

    def streams(self, seed: int) -> list[tuple[Load, int]]:
        """The Loads of a batch, each with the seed of its order."""
        return [(self, seed), *((load, random.key(seed, i)) for i, load in enumerate(self.others, 1))]

    def at(self, indices: Tensor) -> Batch:
        """The samples at some indices, (B,) int64, of a known data set."""
        others = [load.at(indices % len(load.data)) for load in self.others]
        return {**self._named(self.data[indices]), **{k: v for batch in others for k, v in batch.items()}}

    def _named(self, batch: Any) -> Batch:
        if not isinstance(batch, Mapping):
            raise DataError(
                f"{type(self.data).__name__}[indices] gave {type(batch).__name__}, not a mapping from names to "
                "tensors; a data set of single samples goes through sources.dataset(...)"
            )
        return batch

    def batch(self, item: Any) -> Batch:
        """An item of a loader as a Batch: a mapping as it is, a sequence by the names of `fields`."""
        if isinstance(item, Mapping):
            return item
        if isinstance(item, Tensor):
            item = (item,)
        if not isinstance(item, Sequence) or len(item) != len(self.fields):
            misfit = f"{type(item).__name__}, which does not fit the names {', '.join(self.fields)}"
            raise DataError(f"the loader yielded {misfit}; pass names=(...) to load.loader(), one for each value")
        return dict(zip(self.fields, item, strict=True))

    def over(self, data: Any) -> Load:
        """A Load of other data, such as validation data: each sample once, in order.

        Its batches have this Load's size, because a loss may compare the samples of a batch; a Load given as data keeps
        its own size.
        """
        if isinstance(data, Load):
            if isinstance(data.order, order.Weighted) and data is not self:
                raise DataError("evaluation looks at each sample once; leave out the weights of its load.batches()")
            if not data.known:
                return data
            drop_last, loads = data.drop_last and data is not self, (data, *data.others)
            one, *rest = (batches(load.data, size=load.size, shuffle=False, drop_last=drop_last) for load in loads)
            return together(one, *rest) if rest else one
        pair = isinstance(data, list) and len(data) == 2 and all(isinstance(x, Tensor) for x in data)
        known = isinstance(data, Source | Mapping | tuple | Dataset) and not isinstance(data, IterableDataset)
        if isinstance(data, Iterable) and not known and not pair:
            return loader(data, names=self.fields or ("inputs", "targets"), samples=self.samples)
        size = self.size or getattr(self.data, "batch_size", None) or 256
        return evolve(batches(data, size=size, shuffle=False), samples=self.samples)


def batches(
    data: Any, *, size: int, shuffle: bool = True, drop_last: bool = False, weights: Any = None,
    balanced: str | None = None, replacement: bool = True, draws: int | None = None,
) -> Load:  # fmt: skip
    """Batches of `size` samples from a Source, a mapping of tensors or arrays, a tuple (inputs, targets), or a torch
    Dataset (with workers: sources.dataset()).

    Each epoch is shuffled by a pure function of (seed, epoch, batch) and has every sample once; the last batch is
    shorter, unless `drop_last`. A `size` above N gives one batch of N.

    - `weights`: (N,) numbers from 0 on; an epoch is N samples drawn by them, as by torch's WeightedRandomSampler.
    - `balanced`: the name of classes (N,), each of which is drawn equally often: weights of 1 / its count.
    - `replacement`, `draws`: whether a sample may be drawn twice in an epoch, and the number of draws instead of N.

    Raises ConfigError for a size below 1 and DataError for an empty or uneven data set.

    >>> load = batches((torch.randn(10, 4), torch.zeros(10)), size=4)
    >>> [len(batch["inputs"]) for batch in load.epoch(seed=0, epoch=0)]
    [4, 4, 2]
    >>> [batch] = batches({"a": torch.arange(3)}, size=8, weights=[0, 1, 0], draws=4).epoch(seed=0, epoch=0)
    >>> batch["a"].tolist()
    [1, 1, 1, 1]
    """
    if not is_count(size):
        raise ConfigError(f"batch size {size} is not a positive whole number")
    known = source(data)
    n = len(known)
    sampling: order.Order = order.Whole(n, shuffle)
    if weights is not None or balanced is not None:
        if not shuffle or (weights is not None and balanced is not None):
            raise ConfigError("samples are drawn by weights= or balanced=, one of them, and not with shuffle=False")
        numbers = _weights(n, weights if balanced is None else _balance(known, balanced))
        sampling = order.Weighted(n if draws is None else draws, numbers, replacement)
        possible = np.count_nonzero(numbers)
        if not is_count(sampling.n) or (sampling.n > possible and not replacement):
            raise ConfigError(
                f"draws={sampling.n} is no number of samples from 1 on, without replacement to {possible}"
            )
    elif draws is not None or not replacement:
        raise ConfigError("draws= and replacement= go with weights= or balanced=")
    size = min(operator.index(size), sampling.n)
    return Load("load.batches", writes=known.names, data=known, size=size, order=sampling, drop_last=drop_last)


def _balance(known: Source, name: str) -> np.ndarray:
    """Weights 1 / count of each sample's class."""
    classes = known.tensors.get(name) if isinstance(known, Tensors) else None
    if classes is None or classes.ndim != 1 or classes.is_floating_point():
        near = did_you_mean(name, known.names)
        raise ConfigError(f"balanced={name!r} are no classes (N,) in a data set of tensors{near}; or pass weights=")
    _, codes, counts = np.unique(classes.numpy(force=True), return_inverse=True, return_counts=True)
    return np.asarray(1.0 / counts[codes])


def _weights(n: int, weights: Any) -> np.ndarray:
    numbers = np.asarray(weights, np.float64)
    if numbers.shape != (n,) or not np.isfinite(numbers.sum()) or numbers.min() < 0 or not numbers.any():
        raise ConfigError(f"weights {numbers.shape} are not {n} finite numbers of at least 0, not all of them 0")
    return numbers


def together(first: Load, *others: Load, epoch: str = "first") -> Load:
    """Batches with the values of several data sets, such as labelled and unlabelled ones.

    An epoch has as many batches as the first data set, or with `epoch="longest"` as the longest. The others are read in
    repeated passes, which continue across epochs and within batches, so that all their batches are full; each pass is
    shuffled by a pure function of (seed, pass). Raises DataError if two values have the same name.

    >>> labelled, unlabelled = (torch.randn(6, 4), torch.zeros(6)), {"unlabelled": torch.randn(20, 4)}
    >>> load = together(batches(labelled, size=2), batches(unlabelled, size=8))
    >>> [(len(batch["inputs"]), len(batch["unlabelled"])) for batch in load.epoch(seed=0, epoch=0)]
    [(2, 8), (2, 8), (2, 8)]
    """
    loads = (first, *others)
    if epoch not in ("first", "longest"):
        raise ConfigError(f"epoch={epoch!r} is unknown; use 'first' or 'longest'")
    if any(not isinstance(load, Load) or not load.known or load.others for load in loads):
        raise DataError("load.together() takes one load.batches() for each data set")
    names = [name for load in loads for name in load.writes]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"two data sets of load.together() have values called {', '.join(twice)}; give one other names")
    steps = max(load.batches or 0 for load in (loads if epoch == "longest" else [first]))
    one, *rest = (evolve(load, order=order.Cycled(steps * load.size, load.order)) for load in loads)
    own = first if first.batches == steps else one
    return evolve(own, name="load.together", writes=tuple(names), samples=first.writes[0], others=tuple(rest))


def loader(data: Iterable[Any], *, names: tuple[str, ...] = ("inputs", "targets"), samples: str | None = None) -> Load:
    """Batches from a torch DataLoader or any iterable of batches, iterated again in each epoch, in its own order.

    It yields mappings, or tuples named by `names`, of tensors, arrays, numbers, and nested dicts and lists of them.
    Other values, such as strings, reach only the stages before place. `samples` names the value whose first dimension
    is the number of samples, if tensors differ in it; the default is `targets`, then `inputs`.
    """
    if not isinstance(data, Iterable):
        raise DataError(f"load.loader() takes an iterable of batches, not {type(data).__name__}")
    if isinstance(data, Iterator):
        raise DataError("load.loader() iterates anew in each epoch; pass a DataLoader or a list, not an iterator")
    return Load("load.loader", data=data, fields=tuple(names), samples=samples)


def first(load: Load, samples: int) -> Batch:
    """A small batch to trace by: the first `samples` of the data set, or the first batch of an iterable."""
    if load.known:
        return load.at(torch.arange(min(samples, len(load.data))))
    return next(iter(load.epoch(0, 0)))
