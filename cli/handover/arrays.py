"""Arrays, as the program takes them: a row is {"inputs": numbers in lists}."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch


def read(facts: Mapping[str, Any], path: str) -> list[dict[str, Any]]:
    """The rows of a file of arrays, .npz."""
    with np.load(path, allow_pickle=False) as file:
        names = [name for name in file.files if name != "targets"]
        columns = [_values(facts, file[name]).tolist() for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _values(facts: Mapping[str, Any], array: np.ndarray) -> np.ndarray:
    """Bytes of images as (N, C, H, W) in [0, 1]; other arrays as they are. Raises ValueError for bytes if the model
    learned numbers, and for numbers if it learned bytes."""
    images = array.dtype == np.uint8 and array.ndim in (3, 4)
    if facts["bytes"] not in (None, images):
        raise ValueError(f"{array.dtype} inputs; the model learned {'bytes of images' if not images else 'numbers'}")
    if not images:
        return array
    if array.ndim == 3:
        array = array[:, None]
    elif array.shape[1] not in (1, 3, 4) and array.shape[3] in (1, 3, 4):
        array = array.transpose(0, 3, 1, 2)
    return array.astype(np.float32) / np.float32(255)


def tensors(facts: Mapping[str, Any], rows: Sequence[Any]) -> list[torch.Tensor]:
    """Rows as the inputs of the program. Raises ValueError for one of another shape."""
    found = []
    for given in facts["inputs"]:
        name, dtype, shape = given["name"], getattr(torch, given["dtype"]), given["shape"][1:]
        values = []
        for i, row in enumerate(rows, 1):
            try:
                value = torch.tensor(row[name], dtype=dtype)
                if not dtype.is_floating_point and (value != torch.tensor(row[name])).any():
                    raise ValueError("no whole numbers")
            except (TypeError, KeyError, ValueError, RuntimeError, OverflowError):
                raise ValueError(f"row {i} is not {{{name!r}: numbers in lists of one length}}") from None
            if [*value.shape] != shape or not value.isfinite().all():
                raise ValueError(f"row {i} has {name} of shape {[*value.shape]}; finite ones of {shape} are wanted")
            values.append(value)
        found.append(torch.stack(values))
    return found
