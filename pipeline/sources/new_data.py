"""Other data, prepared as those that a run was trained on: in stretches, and in their order.

With `targets`, those are read as well, and have to be there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import DataError, did_you_mean
from pipeline.sources.arrays import read
from pipeline.sources.files import idx, idx_images
from pipeline.sources.images import by_class, files_in
from pipeline.sources.memmap import Mapped
from pipeline.sources.pixels import decode
from pipeline.sources.prepared import Rows, Task
from pipeline.sources.table import stream
from pipeline.sources.tensors import Source
from pipeline.sources.text import Windows, ids_in, ids_of
from pipeline.text import shown

COUNT = 1024
"""Samples in a stretch, and PIXELS / H / W of images."""
PIXELS = 1 << 22


def of_table(path: Path, fitted: Mapping[str, Any], *, targets: bool, header: bool | None) -> Iterator[Rows]:
    """The rows of a table; without `targets`, all of them."""
    for cells, data in stream(path, fitted, targets=targets, header=header):
        yield Rows(cells.columns, dict(data.tensors))


def of_source(
    name: Any, data: Source, shape: Sequence[int], *, targets: bool, task: Task, classes: Sequence[str] = (),
    vocabulary: int | None = None,
) -> Iterator[Rows]:  # fmt: skip
    """The samples of any Source, by their number from 0. Raises DataError for inputs of another shape, and for a class
    or a token that is not known."""
    for wanted in ("inputs", *(["targets"] if targets else [])):
        if wanted not in data.names:
            raise DataError(f"{name} has no {wanted}{did_you_mean(wanted, data.names)}")
    for begin in range(0, len(data), COUNT):
        rows = torch.arange(begin, min(begin + COUNT, len(data)))
        batch = dict(data[rows])
        found = tuple(batch["inputs"].shape[1:])
        if found != tuple(shape):
            raise DataError(f"{name} has inputs of shape {found}, but those that were learned have {tuple(shape)}")
        if vocabulary is not None and int(batch["inputs"].max()) >= vocabulary:
            raise DataError(f"{name} has the token {int(batch['inputs'].max())}, but there are {vocabulary} tokens")
        if targets and task == "classification":
            batch["targets"] = batch["targets"].long()
            _check_classes(name, batch["targets"], begin, len(classes))
        elif targets and task in ("regression", "several labels"):
            batch["targets"] = batch["targets"].float()
        elif not targets:
            batch.pop("targets", None)
        yield Rows({"row": rows}, batch)


def _check_classes(name: Any, targets: Tensor, begin: int, count: int) -> None:
    wrong = ((targets < 0) | (targets >= count)).nonzero().flatten()
    if count and len(wrong):
        at = f"target {int(targets[wrong[0]])} in sample {begin + int(wrong[0])}"
        raise DataError(f"{name}: {at} is no class that the training data have")


def of_arrays(
    path: Path, shape: Sequence[int], *, targets: bool, task: Task, classes: Sequence[str] = (),
    vocabulary: int | None = None,
) -> Iterator[Rows]:  # fmt: skip
    """Arrays in a file."""
    found = read(path)
    wanted = {k: v for k, v in found.items() if k == "inputs" or (targets and k == "targets")}
    if not wanted:
        raise DataError(f"{path} holds no array 'inputs'{did_you_mean('inputs', found)}")
    options = {"targets": targets, "task": task, "classes": classes, "vocabulary": vocabulary}
    yield from of_source(path, Mapped(wanted), shape, **options)  # type: ignore[arg-type]  # mixed option types


def of_idx(path: Path, shape: Sequence[int], *, targets: bool, classes: Sequence[str]) -> Iterator[Rows]:
    """A file of images of the MNIST family; its labels, if they are wanted, lie beside it."""
    data = idx(path) if targets else idx_images(path)
    yield from of_source(path, data, shape, targets=targets, task="classification", classes=classes)


def of_images(path: Path, fitted: Mapping[str, Any], *, targets: bool, classes: Sequence[str]) -> Iterator[Rows]:
    """Images in a folder, by the paths in it: with `targets`, by class; else any, and a file may be one alone."""
    if targets:
        there, _ = by_class(path)
        for name in there:
            if name not in classes:
                raise DataError(f"{path / name} is of a class that was not learned{did_you_mean(name, classes)}")
        items = [(file, classes.index(name)) for name, found in there.items() for file in found]
    else:
        items = [(file, -1) for file in ([path] if path.is_file() else files_in(path))]
    if not items:
        raise DataError(f"{path} has no images")
    size, mode = tuple(fitted["size"]), fitted["mode"]
    step = max(PIXELS // (size[0] * size[1]), 1)
    for begin in range(0, len(items), step):
        part = items[begin : begin + step]
        batch = {"inputs": torch.stack([decode(file, size, mode) for file, _ in part]).float().div_(255.0)}
        if targets:
            batch["targets"] = torch.tensor([code for _, code in part])
        names = [shown(os.path.relpath(file, path) if path.is_dir() else str(file)) for file, _ in part]
        yield Rows({"file": names}, batch)


def of_text(path: Path, fitted: Mapping[str, Any], *, dtype: str | None = None) -> Iterator[Rows]:
    """The windows of a text, or of token ids of a `dtype`."""
    context, vocabulary = fitted["context"], fitted["vocabulary"]
    ids = ids_of(path, fitted) if dtype is None else ids_in(path, dtype, vocabulary)
    count = (len(ids) - 1) // context
    if count < 1:
        raise DataError(f"{path} has {len(ids):,} tokens, fewer than a window of {context}")
    windows = Windows(ids, context, 0, count)
    for begin in range(0, count, COUNT):
        rows = torch.arange(begin, min(begin + COUNT, count))
        yield Rows({"row": rows}, windows[rows])
