"""Given: whatever data a user has, prepared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.errors import DataError
from pipeline.sources.dataset import Part, dataset
from pipeline.sources.prepared import Prepared, Task
from pipeline.sources.split import Split, split
from pipeline.sources.tensors import Source, Tensors, source


def given(data: Any, parts: Split | None = None, task: Task | None = None, *, workers: int = 0) -> Prepared:
    """A Prepared as it is; a pair of data sets to train on and to hold out; or one, which is parted.

    A data set is what `source` takes: a torch Dataset is read by so many `workers`. The task is that of the first
    targets: whole numbers are classes, as many as there are up to the largest of those looked at.

    >>> prepared = given((torch.zeros(10, 2), torch.arange(10) % 2), Split(0.5))
    >>> prepared.task, len(prepared.train)
    ('classification', 5)
    """
    if isinstance(data, Prepared):
        return data
    pair = isinstance(data, tuple) and len(data) == 2 and not all(isinstance(x, Tensor) for x in data)
    train, held_out = (_source(x, workers) for x in data) if pair else (_source(data, workers), None)
    if held_out is None:
        if isinstance(train, Tensors):
            train, held_out = split(train, parts=parts)
        else:
            rows = (parts or Split()).rows(len(train))
            train, held_out = (Part(train, r) for r in rows)
    for name in ("inputs", "targets"):
        if name not in train.names:
            raise DataError(f"the data set has no {name!r} among {', '.join(train.names)}; name its parts so")
    seen = [part[torch.linspace(0, len(part) - 1, min(_LOOKED, len(part))).long()] for part in (train, held_out)]
    targets, inputs = seen[0]["targets"], seen[0]["inputs"]
    task = task or _task(inputs, targets)
    if task == "classification":
        count = max(int(batch["targets"].max()) for batch in seen) + 1
        return Prepared(train, held_out, task, tuple(map(str, range(count))))
    sizes = {}
    if not inputs.is_floating_point():
        sizes = {"vocabulary": max(int(batch[n].max()) for batch in seen for n in ("inputs", "targets")) + 1}
    return Prepared(train, held_out, task, sizes=sizes)


_LOOKED = 1000
"""Samples of each part."""


def _source(data: Any, workers: int) -> Source:
    single = isinstance(data, Dataset) and not isinstance(data, Source)
    return dataset(data, workers=workers) if single else source(data)


def _task(inputs: Tensor, targets: Tensor) -> Task:
    if targets.is_floating_point():
        return "regression"
    if targets.ndim == 1:
        return "classification"
    return "several labels" if inputs.shape != targets.shape else "language modelling"
