"""Split: indices of training and held-out samples, as a pure function of a seed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from attrs import frozen
from torch import Tensor

from pipeline.errors import ConfigError, DataError
from pipeline.sources.tensors import Tensors

TRAIN = ("train", "training")
HELD_OUT = ("val", "valid", "validation", "dev", "eval", "evaluation", "test", "testing")
"""Names of what is beside one of TRAIN, in any case; the first of them is held out."""


@frozen
class Split:
    """A share to hold out, or one of several folds.

    >>> train, held_out = Split(share=0.25).rows(8)
    >>> len(train), len(held_out), len({*train.tolist(), *held_out.tolist()})
    (6, 2, 8)
    """

    share: float = 0.2
    """Held-out share of all samples; with `folds`, 1 / folds instead."""
    seed: int = 0
    folds: int | None = None
    fold: int = 0
    """The fold to hold out, from 0."""

    def check(self, held: bool) -> None:
        """Raise ConfigError for folds of data of which samples are `held` out already."""
        if held and self.folds is not None:
            raise ConfigError("folds hold out each sample once, but the data hold some out already; leave those out")

    def rows(self, n: int, *, labels: Any = None, groups: Any = None, time: Any = None) -> tuple[Tensor, Tensor]:
        """Indices of n samples (training, held out), each int64 and rising.

        - `labels` (n,): classes, which keep their shares on both sides.
        - `groups` (n,): equal values stay on one side.
        - `time` (n,): the last samples are held out. With folds, fold k is the stretch k + 1 of folds + 1, and is
          trained on all samples before it; the first stretch is held out by none.

        Raises DataError if a side would be empty, and ConfigError for a fold that does not exist, and for both `groups`
        and `time`.
        """
        if groups is not None and time is not None:
            raise ConfigError("groups= and time= both say what is held out; give one of them")
        if time is not None:
            return self._by_time(n, time)
        held = np.zeros(n, dtype=bool)
        if groups is not None:
            names, codes = np.unique(np.asarray(groups), return_inverse=True)
            held = np.isin(codes, self.rows(len(names))[1].numpy())
        else:
            held[self._spread(n, labels)] = True
        return torch.from_numpy(np.flatnonzero(~held)), torch.from_numpy(np.flatnonzero(held))

    def stretch(self, n: int) -> tuple[int, int]:
        """Begin and end of the samples to hold out, of n in sequence: the last, or fold k of equal stretches.

        >>> Split(0.25).stretch(8), [Split(folds=3, fold=k).stretch(8) for k in range(3)]
        ((6, 8), [(0, 2), (2, 5), (5, 8)])

        Raises as `rows`.
        """
        held = self._count(n)
        if self.folds is None:
            return n - held, n
        return self.fold * n // self.folds, (self.fold + 1) * n // self.folds

    def _spread(self, n: int, labels: Any) -> Any:
        """Held-out samples: evenly spread over a shuffle that is sorted by class, if each class can have some."""
        held = self._count(n)
        order = np.random.default_rng(self.seed).permutation(n)
        if labels is not None:
            labels = np.asarray(labels)
            counts = np.unique(labels, return_counts=True)[1]
            if counts.min() >= 2 and len(counts) <= min(held, n - held):
                order = order[np.argsort(labels[order], kind="stable")]
        if self.folds is not None:
            return order[self.fold :: self.folds]
        return order[(np.arange(held) * n + n // 2) // held]

    def _by_time(self, n: int, time: Any) -> tuple[Tensor, Tensor]:
        order = np.argsort(time, kind="stable")
        first, end = n - self._count(n), n
        if self.folds is not None:
            first, end = ((self.fold + k) * n // (self.folds + 1) for k in (1, 2))
        return torch.from_numpy(np.sort(order[:first])), torch.from_numpy(np.sort(order[first:end]))

    def _count(self, n: int) -> int:
        """Samples to hold out."""
        if self.folds is not None:
            if not (self.folds >= 2 and 0 <= self.fold < self.folds):
                raise ConfigError(f"fold {self.fold} of {self.folds} is none: there are at least 2, counted from 0")
            if n < self.folds:
                raise DataError(f"{n} samples can't be split into {self.folds} folds; give more samples")
            return n // self.folds
        held = math.ceil(self.share * n)
        if not 0 < held < n:
            raise DataError(f"{n} samples can't be split with {self.share:.0%} held out; give more samples")
        return held


def split(data: Tensors, held_out: float = 0.2, seed: int = 0, parts: Split | None = None) -> tuple[Tensors, Tensors]:
    """Two disjoint sets (training, held out), shuffled by the seed; integer targets keep their shares in both.

    >>> train, test = split(Tensors({"targets": torch.arange(10) % 2}), held_out=0.2)
    >>> len(train), len(test), test.tensors["targets"].sum().item()
    (8, 2, 1)
    """
    targets = data.tensors.get("targets")
    classes = targets is not None and targets.ndim == 1 and not targets.is_floating_point()
    train, held = (parts or Split(held_out, seed)).rows(len(data), labels=targets if classes else None)
    return data.take(train), data.take(held)
