"""Arrays, as the program takes them: a row is {"inputs": numbers in lists}."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch


def read(path: str) -> list[dict[str, Any]]:
    """The rows of a file of arrays, .npz."""
    import numpy as np

    with np.load(path, allow_pickle=False) as file:
        names = [name for name in file.files if name != "targets"]
        columns = [file[name].tolist() for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def tensors(facts: Mapping[str, Any], rows: Sequence[Any]) -> list[torch.Tensor]:
    """Rows as the inputs of the program. Raises ValueError for one of another shape."""
    found = []
    for given in facts["inputs"]:
        name, dtype, shape = given["name"], getattr(torch, given["dtype"]), given["shape"][1:]
        values = []
        for i, row in enumerate(rows, 1):
            try:
                value = torch.tensor(row[name], dtype=dtype)
            except (TypeError, KeyError, ValueError, RuntimeError, OverflowError):
                raise ValueError(f"row {i} is not {{{name!r}: numbers in lists of one length}}") from None
            if [*value.shape] != shape or not value.isfinite().all():
                raise ValueError(f"row {i} has {name} of shape {[*value.shape]}; finite ones of {shape} are wanted")
            values.append(value)
        found.append(torch.stack(values))
    return found
