"""Parts: which samples are trained on and which are held out, as a pure function of a seed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from attrs import evolve, frozen
from torch import Tensor

from pipeline.errors import ConfigError, DataError
from pipeline.sources.tensors import Tensors


@frozen
class Split:
    """How samples are parted: a share held out, or one of some folds; the same for the same seed.

    >>> train, held_out = Split(share=0.25).rows(8)
    >>> len(train), len(held_out), len({*train.tolist(), *held_out.tolist()})
    (6, 2, 8)
    """

    share: float = 0.2
    """Of all samples, held out; with `folds`, 1 / folds of them."""
    seed: int = 0
    folds: int | None = None
    fold: int = 0
    """Which of them is held out, from 0."""

    def rows(self, n: int, *, labels: Any = None, groups: Any = None, time: Any = None) -> tuple[Tensor, Tensor]:
        """Indices of n samples (training, held out), each int64 and rising.

        Classes, `labels` (n,), keep their shares in both. Samples of one of the `groups` (n,) are all in one part. By
        `time` (n,), the last ones are held out, of what folds leave: fold 0 is the earliest stretch, and each is
        trained on what lies before it.
        Raises DataError where a part would be empty, and ConfigError for folds that are none.
        """
        if self.folds is not None and not (self.folds >= 2 and 0 <= self.fold < self.folds):
            raise ConfigError(f"fold {self.fold} of {self.folds} is none: there are at least 2, counted from 0")
        if time is not None:
            return self._later(n, np.asarray(time))
        if groups is not None:
            names, codes = np.unique(np.asarray(groups), return_inverse=True)
            _, held = self.rows(len(names))
            return _as_rows(np.isin(codes, held.numpy()))
        return _as_rows(self._spread(n, labels))

    def _spread(self, n: int, labels: Any) -> Any:
        held = self._count(n)
        # By classes, where they have a share in both parts, and shuffled in each: the samples to hold out are then
        # spread evenly over this order. One shuffle where there are no classes.
        order = np.random.default_rng(self.seed).permutation(n)
        if labels is not None:
            labels = np.asarray(labels)
            counts = np.unique(labels, return_counts=True)[1]
            if counts.min() >= 2 and len(counts) <= min(held, n - held):
                order = order[np.argsort(labels[order], kind="stable")]
        chosen = np.zeros(n, dtype=bool)
        if self.folds is not None:
            chosen[order[self.fold :: self.folds]] = True
        else:
            chosen[order[(np.arange(held) * n + n // 2) // held]] = True
        return chosen

    def _later(self, n: int, time: Any) -> tuple[Tensor, Tensor]:
        order = np.argsort(time, kind="stable")
        first, end = n - self._count(n), n
        if self.folds is not None:
            first, end = ((self.fold + k) * n // (self.folds + 1) for k in (1, 2))
        train, held = np.sort(order[:first]), np.sort(order[first:end])
        return torch.from_numpy(train), torch.from_numpy(held)

    def _count(self, n: int) -> int:
        """How many are held out."""
        if self.folds is not None:
            if n < self.folds:
                raise DataError(f"{n} samples can't be split into {self.folds} folds; give more samples")
            return n // self.folds
        held = math.ceil(self.share * n)
        if not 0 < held < n:
            parts = f"two parts with {self.share:.0%} held out"
            raise DataError(f"{n} samples can't be split into {parts}; give more samples")
        return held


def _as_rows(chosen: Any) -> tuple[Tensor, Tensor]:
    train, held = (torch.from_numpy(np.flatnonzero(part)) for part in (~chosen, chosen))
    return train, held


def split(data: Tensors, held_out: float = 0.2, seed: int = 0, parts: Split | None = None) -> tuple[Tensors, Tensors]:
    """Two disjoint parts (training, held out), shuffled by the seed; integer targets keep their shares in both.

    >>> train, test = split(Tensors({"targets": torch.arange(10) % 2}), held_out=0.2)
    >>> len(train), len(test), test.tensors["targets"].sum().item()
    (8, 2, 1)
    """
    targets = data.tensors.get("targets")
    classes = targets is not None and targets.ndim == 1 and not targets.is_floating_point()
    rows = (parts or Split(held_out, seed)).rows(len(data), labels=targets if classes else None)
    train, test = (evolve(data, tensors={k: t.index_select(0, i) for k, t in data.tensors.items()}) for i in rows)
    return train, test
