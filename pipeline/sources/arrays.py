"""Arrays in files: .npz, .npy, safetensors. Nothing here can run code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline import files, memory
from pipeline.errors import DataError, did_you_mean
from pipeline.sources.files import archive, numbered, reading
from pipeline.sources.memmap import Mapped, loaded, small
from pipeline.sources.prepared import Prepared, Task
from pipeline.sources.split import Split, split
from pipeline.sources.tensors import Tensors

FEW = 1000
"""Targets that are whole numbers up to this are classes, where there are at most half as many as samples."""


def arrays(
    path: str | Path, *, test: str | Path | None = None, parts: Split | None = None, task: Task | None = None
) -> Prepared:
    """Arrays `inputs` (N, ...) and `targets` (N, ...) as .npz, as safetensors, or as .npy of these names in a folder.

    Up to 1 GiB they are read into memory; of larger .npy files only the rows of a batch are. Whole numbers (N,) are
    classes, (N, L) of 0 and 1 several labels, and of the shape of whole-number inputs tokens; others are values.
    """
    found = read(Path(path))
    held = None if test is None else read(Path(test))
    for file, there in ((path, found), (test, held)):
        for name in ("inputs", "targets") if there is not None else ():
            if name not in there:  # type: ignore[operator]  # it is there
                raise DataError(f"{file} holds no array {name!r}{did_you_mean(name, there)}")  # type: ignore[arg-type]  # as above
    inputs, targets = found["inputs"], found["targets"]
    if inputs.ndim == 0 or targets.ndim == 0 or len(targets) == 0:
        raise DataError(f"{path} is empty: it has no samples")
    if len(inputs) != len(targets):
        raise DataError(f"{path} has {len(inputs):,} inputs and {len(targets):,} targets; they have to be as many")
    task = task or _task(inputs, targets)
    if not small(found):
        whole = Mapped(found)
        train, held_out = (whole, Mapped(held)) if held is not None else whole.parted(parts or Split())
        classes, sizes = _known(task, inputs, targets)
        gigabytes = sum(a.nbytes for a in found.values()) / 1e9
        return Prepared(train, held_out, task, classes, sizes, (f"{gigabytes:.1f} GB, read as it is needed",))
    tensors = _as(task, loaded(found))
    classes, sizes = _known(task, tensors["inputs"].numpy(), tensors["targets"].numpy())
    data = Tensors(tensors, classes)
    pair = (data, Tensors(_as(task, loaded(held)), classes)) if held is not None else split(data, parts=parts)
    _check(test, pair[1], classes)
    return Prepared(*pair, task, classes, sizes)


def _as(task: Task, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    kind = torch.float32 if task in ("regression", "several labels") else torch.int64
    return {**tensors, "targets": tensors["targets"].to(kind)}


def _task(inputs: Any, targets: Any) -> Task:
    whole = np.issubdtype(targets.dtype, np.integer) or targets.dtype == bool
    if targets.ndim == 1:
        looked = np.asarray(targets[: 1 << 20])
        few = len(np.unique(looked)) <= max(min(FEW, len(looked) // 2), 2)
        return "classification" if few and np.array_equal(looked, np.round(looked)) else "regression"
    if whole and targets.shape == inputs.shape and np.issubdtype(inputs.dtype, np.integer):
        return "language modelling"
    return "several labels" if whole and np.isin(np.asarray(targets[: 1 << 16]), (0, 1)).all() else "regression"


def _known(task: Task, inputs: Any, targets: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The names of classes, and how many tokens there are."""
    sizes: dict[str, Any] = {}
    if np.issubdtype(inputs.dtype, np.integer) and inputs.ndim == 2:
        both = (inputs, targets) if task == "language modelling" else (inputs,)
        if min(int(a.min()) for a in both) < 0:
            raise DataError("inputs hold negative ids; token ids begin at 0")
        sizes = {"vocabulary": max(int(a.max()) for a in both) + 1}
    if task != "classification":
        return (), sizes
    if int(targets.min()) < 0:
        raise DataError(f"targets hold the class {int(targets.min())}; classes begin at 0")
    return numbered(int(targets.max())), sizes


def _check(path: Any, held_out: Tensors, classes: tuple[str, ...]) -> None:
    targets = held_out.tensors["targets"]
    if classes and path is not None and int(targets.max()) >= len(classes):
        row = int((targets >= len(classes)).nonzero()[0])
        raise DataError(f"{path}: target {int(targets[row])} in sample {row} is no class that the training data have")


def read(path: Path) -> Mapping[str, Any]:
    """Arrays by name; those of .npy files stay on disk. Raises DataError for what can't be read."""
    if path.is_dir():
        return {p.stem: _npy(p) for p in sorted(path.glob("*.npy"))}
    if path.suffix == ".safetensors":
        return _safetensors(path)
    if path.suffix == ".npy":
        beside = path.with_name("targets.npy")
        return {"inputs": _npy(path), **({"targets": _npy(beside)} if beside.exists() else {})}
    return archive(path)


def _npy(path: Path) -> Any:
    with reading(path, "is no .npy file of a plain array, or cut short"):
        return np.load(files.plain(path), mmap_mode="r", allow_pickle=False)


def _safetensors(path: Path) -> Mapping[str, Any]:
    from safetensors.torch import load_file

    with reading(path, "is no safetensors file, or cut short"):
        memory.check(2 * files.plain(path).stat().st_size, str(path))
        found = load_file(path)
    return {name: t.float().numpy() if t.dtype == torch.bfloat16 else t.numpy() for name, t in found.items()}
