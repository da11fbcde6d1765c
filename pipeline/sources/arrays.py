"""Arrays `inputs` and `targets` in files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.errors import DataError, did_you_mean
from pipeline.sources.formats import read_arrays
from pipeline.sources.memmap import Mapped
from pipeline.sources.prepared import Prepared, Task, check_classes
from pipeline.sources.split import Split, split
from pipeline.sources.tensors import Tensors, as_tensor

FEW = 1000
"""Whole numbers up to this are classes, if there are at most half as many as samples."""
MOST_CLASSES = 1 << 24
"""A class costs a name and an output of the model."""
IN_MEMORY = 1 << 30
"""Bytes of arrays that are read into memory."""


def arrays(
    path: str | Path, *, test: str | Path | None = None, parts: Split | None = None, task: Task | None = None
) -> Prepared:
    """Arrays `inputs` (N, ...) and `targets` (N, ...) as .npz, safetensors, or a folder of .npy files of these names.

    Up to 1 GiB, they are read into memory; of larger .npy files, only the rows of a batch. Targets (N,) of whole
    numbers are classes, (N, L) of 0 and 1 several labels, and of the shape of integer inputs tokens; others are values.
    """
    by_name, held = _read(path), None if test is None else _read(test)
    inputs, targets = by_name["inputs"], by_name["targets"]
    if inputs.ndim == 0 or targets.ndim == 0 or len(targets) == 0:
        raise DataError(f"{path} is empty: it has no samples")
    if len(inputs) != len(targets):
        raise DataError(f"{path} has {len(inputs):,} inputs and {len(targets):,} targets; they have to be as many")
    task = task or _task(inputs, targets)
    classes, sizes = _classes(task, targets), _vocabulary(task, inputs, targets)
    if (size := sum(a.nbytes for a in by_name.values())) > IN_MEMORY:
        mapped = Mapped(by_name)
        sides = mapped.split(parts or Split()) if held is None else (mapped, Mapped(held))
        return Prepared(sides[0], sides[1], task, classes, sizes, (f"{size / 1e9:.1f} GB, read as it is needed",))
    data = _tensors(by_name, task, classes)
    if held is None:
        data, held_out = split(data, parts=parts)
        return Prepared(data, held_out, task, classes, sizes)
    test_data = _tensors(held, task, classes)
    if classes:
        check_classes(test, test_data.tensors["targets"], len(classes))
    return Prepared(data, test_data, task, classes, sizes)


def _read(path: str | Path) -> Mapping[str, Any]:
    by_name = read_arrays(Path(path))
    for name in ("inputs", "targets"):
        if name not in by_name:
            raise DataError(f"{path} holds no array {name!r}{did_you_mean(name, by_name)}")
    return by_name


def _tensors(arrays: Mapping[str, Any], task: Task, classes: tuple[str, ...]) -> Tensors:
    tensors = {name: as_tensor(name, np.array(array)) for name, array in arrays.items()}
    dtype = torch.float32 if task in ("regression", "several labels") else torch.int64
    return Tensors({**tensors, "targets": tensors["targets"].to(dtype)}, classes)


def _task(inputs: Any, targets: Any) -> Task:
    if targets.ndim == 1:
        seen = np.asarray(targets[: 1 << 20])
        few = len(np.unique(seen)) <= max(min(FEW, len(seen) // 2), 2)
        return "classification" if few and np.array_equal(seen, np.round(seen)) else "regression"
    if targets.dtype.kind not in "iub":
        return "regression"
    if targets.shape == inputs.shape and inputs.dtype.kind in "iu":
        return "language modelling"
    return "several labels" if np.isin(np.asarray(targets[: 1 << 16]), (0, 1)).all() else "regression"


def _vocabulary(task: Task, inputs: Any, targets: Any) -> dict[str, Any]:
    """The number of tokens, if inputs are token ids."""
    if inputs.dtype.kind not in "iu" or inputs.ndim != 2:
        return {}
    ids = (inputs, targets) if task == "language modelling" else (inputs,)
    if min(int(a.min()) for a in ids) < 0:
        raise DataError("inputs hold negative ids; token ids begin at 0")
    return {"vocabulary": max(int(a.max()) for a in ids) + 1}


def _classes(task: Task, targets: Any) -> tuple[str, ...]:
    if task != "classification":
        return ()
    if int(targets.min()) < 0:
        raise DataError(f"targets hold the class {int(targets.min())}; classes begin at 0")
    return class_names(int(targets.max()))


def class_names(most: int) -> tuple[str, ...]:
    """Names of the classes 0 to `most`."""
    if most >= MOST_CLASSES:
        raise DataError(f"class {most} would make {most + 1:,} classes; number them from 0 without gaps")
    return tuple(map(str, range(most + 1)))
