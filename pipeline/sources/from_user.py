"""Data of a user's own, prepared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.errors import DataError
from pipeline.sources.dataset import Subset, dataset
from pipeline.sources.learned import scale, task_of
from pipeline.sources.prepared import Prepared, Task
from pipeline.sources.split import Split, split
from pipeline.sources.tensors import Source, Tensors, source

SAMPLES = 1000
"""Number of samples on each side to find the classes and the vocabulary in."""
FAR = 10
"""Factor from which the mean and the deviation of targets are far from 0 and 1."""


def given(data: Any, parts: Split | None = None, task: Task | None = None, *, workers: int = 0) -> Prepared:
    """A Prepared, which is returned; a pair (training, held out) of data sets; or one data set, which is split.

    A data set is anything that `source` takes; `workers` processes read a torch Dataset. By default, the targets
    determine the task: whole numbers (N,) are classes, their number 1 + the largest in the first samples; (N, L) of the
    shape of whole inputs are the next tokens, (N, L) of 0 and 1 several labels, and others values.

    >>> prepared = given((torch.zeros(10, 2), torch.arange(10) % 2), Split(0.5))
    >>> prepared.task, len(prepared.train)
    ('classification', 5)
    """
    pair = isinstance(data, tuple) and len(data) == 2 and not all(isinstance(x, Tensor) for x in data)
    (parts or Split()).check(pair or isinstance(data, Prepared))
    if isinstance(data, Prepared):
        return data
    if pair:
        train, held_out = (samples_of(x, workers) for x in data)
    elif isinstance(samples := samples_of(data, workers), Tensors):
        train, held_out = split(samples, parts=parts)
    else:
        train, held_out = (Subset(samples, rows) for rows in (parts or Split()).rows(len(samples)))
    for name in ("inputs", "targets"):
        if name not in train.names:
            raise DataError(f"the data set has no {name!r} among {', '.join(train.names)}; name its values so")
    seen = [side[torch.linspace(0, len(side) - 1, min(SAMPLES, len(side))).long()] for side in (train, held_out)]
    targets, inputs = seen[0]["targets"], seen[0]["inputs"]
    task = task or _task(inputs, targets)
    if task == "classification":
        count = max(int(batch["targets"].max()) for batch in seen) + 1
        return Prepared(train, held_out, task, tuple(map(str, range(count))))
    sizes = {}
    if not inputs.is_floating_point():
        sizes = {"vocabulary": max(int(batch[n].max()) for batch in seen for n in ("inputs", "targets")) + 1}
    fitted: dict[str, Any] = {}
    notes: tuple[str, ...] = ()
    if task == "regression" and isinstance(train, Tensors):
        fitted = scale(train.tensors["targets"].numpy())
    elif task == "regression":
        std, mean = torch.std_mean(targets.double())
        if not (std / FAR < 1 < std * FAR and abs(mean) < FAR):
            notes = (f"targets have mean {mean:.4g} and deviation {std:.4g}, and a Dataset's are learned as they are: "
                     "scale them in it",)  # fmt: skip
    return Prepared(train, held_out, task, sizes=sizes, notes=notes, fitted=fitted)


def samples_of(data: Any, workers: int) -> Source:
    """Anything that `source` takes, a Dataset with workers."""
    single = isinstance(data, Dataset) and not isinstance(data, Source)
    return dataset(data, workers=workers) if single else source(data)


def _task(inputs: Tensor, targets: Tensor) -> Task:
    floats = targets.is_floating_point()
    if targets.ndim == 1:
        return "regression" if floats else "classification"
    if inputs.shape == targets.shape and not (floats or inputs.is_floating_point()):
        return "language modelling"
    task = task_of(targets.double().numpy()) if targets.ndim == 2 or not floats else "regression"
    if task == "regression" and targets.shape[1:] == (1,) and not floats:
        raise DataError("targets are whole numbers of shape (N, 1); give (N,) for classes, or floats for values")
    return task
