"""New data, encoded like a run's training data, in order, and in blocks that fit in memory.

With `targets`, these are read too, and must be present.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import evolve

from pipeline.errors import DataError, did_you_mean
from pipeline.sources.arrays import new_rows
from pipeline.sources.chat import samples
from pipeline.sources.columns import Reading
from pipeline.sources.dialect import Dialect
from pipeline.sources.encode import unknown
from pipeline.sources.formats import table_blocks
from pipeline.sources.frame import Frame
from pipeline.sources.idx import idx, idx_images
from pipeline.sources.images import others
from pipeline.sources.learned import Learned
from pipeline.sources.pixels import WHITE, decode
from pipeline.sources.prepared import Rows, Task, check_classes
from pipeline.sources.table import apply, readable, with_targets
from pipeline.sources.tensors import Source
from pipeline.sources.text import Windows, ids_in, ids_of

BLOCK = 1024
"""Samples of a block."""
PIXELS = 1 << 22
"""Pixels of a block of images."""


def of_table(path: Path, fitted: Mapping[str, Any], *, targets: bool, dialect: Dialect | None = None) -> Iterator[Rows]:
    """The rows of a table; with `targets`, only rows that have them."""
    held: dict[str, Reading] = {}
    last: Rows | None = None
    waiting: list[int] = []
    untargeted = 0
    for frame in table_blocks(path, dialect):
        if targets:
            count, frame = len(frame), with_targets(frame, fitted["targets"]["names"])
            untargeted += count - len(frame)
        skipped, lenient = frame.skipped, dialect is not None and dialect.skip_bad
        if lenient:
            frame, skipped = readable(frame, fitted, targets=targets, held=held)
        if targets and not len(frame):
            waiting += skipped
            continue
        if last is not None:
            yield last
        batch, numbers = apply(fitted, frame, targets=targets, held=held), frame.lines if lenient else None
        last = Rows(frame.cells, batch, (*waiting, *skipped), frame.unit, numbers, unknown(frame, fitted["columns"]),
                    untargeted=untargeted)  # fmt: skip
        waiting, untargeted = [], 0
    if last is not None:
        yield evolve(last, skipped=(*last.skipped, *waiting), untargeted=last.untargeted + untargeted)
    elif targets:
        raise DataError(f"{path} has no rows with {' and '.join(fitted['targets']['names'])}")


def of_source(
    name: Any, data: Source, shape: Sequence[int], *, targets: bool, task: Task, classes: Sequence[str] = (),
    vocabulary: int | None = None,
) -> Iterator[Rows]:  # fmt: skip
    """The samples of any Source, with their numbers from 0.

    Raises DataError for inputs of another shape, and for an unknown class or token.
    """
    for wanted in ("inputs", *(["targets"] if targets else [])):
        if wanted not in data.names:
            raise DataError(f"{name} has no {wanted}{did_you_mean(wanted, data.names)}")
    for rows in _blocks(len(data)):
        batch = dict(data[rows])
        if (now := tuple(batch["inputs"].shape[1:])) != tuple(shape):
            raise DataError(f"{name} has inputs of shape {now}; the run was trained on {tuple(shape)}")
        if vocabulary is not None and (most := int(batch["inputs"].max())) >= vocabulary:
            raise DataError(f"{name} has the token {most}, but there are {vocabulary} tokens")
        if not targets:
            batch.pop("targets", None)
        elif task != "language modelling":
            batch["targets"] = batch["targets"].to(torch.int64 if task == "classification" else torch.float32)
            if task == "several labels" and len(wrong := batch["targets"][(batch["targets"] - 0.5).abs() > 0.5]):
                raise DataError(f"{name} has the label {wrong[0]:.4g}; labels are 0 or 1")
        if targets and task == "classification" and classes:
            check_classes(name, batch["targets"], len(classes), int(rows[0]))
        yield Rows({"row": rows}, batch)


def _blocks(count: int) -> Iterator[torch.Tensor]:
    return (torch.arange(begin, min(begin + BLOCK, count)) for begin in range(0, count, BLOCK))


def of_frame(frame: Frame, fitted: Mapping[str, Any], *, targets: bool) -> Iterator[Rows]:
    """The rows of a table in memory, by their numbers."""
    held: dict[str, Reading] = {}
    for rows in _blocks(len(frame)):
        yield Rows({"row": rows}, apply(fitted, frame.take(rows.numpy()), targets=targets, held=held))


def of_arrays(
    path: Path, fitted: Mapping[str, Any], shape: Sequence[int], *, targets: bool, task: Task,
    classes: Sequence[str] = (), vocabulary: int | None = None, names: tuple[str | None, str | None] = (None, None),
) -> Iterator[Rows]:  # fmt: skip
    """Arrays in a file; see `arrays`."""
    known = fitted.get("targets")  # of data that were arrays too
    learned = Learned(**known) if known else Learned(("targets",), task, ("number",), ("",), classes)
    data = new_rows(path, fitted, learned, targets=targets, names=names)
    if isinstance(data, Frame):
        yield from of_frame(data, fitted, targets=targets)
    else:
        yield from of_source(path, data, shape, targets=targets, task=task, classes=classes, vocabulary=vocabulary)


def of_idx(path: Path, shape: Sequence[int], *, targets: bool, classes: Sequence[str]) -> Iterator[Rows]:
    """A file of images in MNIST's format, with its labels beside it if they are wanted."""
    data = idx(path) if targets else idx_images(path)
    yield from of_source(path, data, shape, targets=targets, task="classification", classes=classes)


def of_images(path: Path, fitted: Mapping[str, Any], *, targets: bool, classes: Sequence[str]) -> Iterator[Rows]:
    """Images in a folder, by their paths in it: with `targets`, by class; else in any folders, or one image file. Or
    those of a table or an archive, by its cells."""
    items, beside, codes, untargeted = others(path, fitted, targets=targets, classes=classes)
    if not items:
        raise DataError(f"{path} has no images")
    size, mode, white = tuple(fitted["size"]), fitted["mode"], fitted.get("white", WHITE)
    step = max(PIXELS // (size[0] * size[1]), 1)
    for begin in range(0, len(items), step):
        block = slice(begin, begin + step)
        batch = {"inputs": torch.stack([decode(item, size, mode, white) for item in items[block]]).float().div_(255.0)}
        if codes is not None:
            batch["targets"] = codes[block]
        yield Rows({name: column[block] for name, column in beside.items()}, batch, untargeted=untargeted)
        untargeted = 0


def of_text(path: Path, fitted: Mapping[str, Any], *, dtype: str | None = None) -> Iterator[Rows]:
    """The windows of a text, or of token ids of a `dtype`."""
    context, vocabulary = fitted["context"], fitted["vocabulary"]
    ids = ids_of(path, fitted) if dtype is None else ids_in(path, dtype, vocabulary)
    count = (len(ids) - 1) // context
    if count < 1:
        raise DataError(f"{path} has {len(ids):,} tokens, fewer than a window of {context}")
    windows = Windows(ids, context, 0, count)
    for rows in _blocks(count):
        yield Rows({"row": rows}, windows[rows])


def of_chat(path: Path, fitted: Mapping[str, Any]) -> Iterator[Rows]:
    """Rows of questions and answers."""
    data, notes = samples(path, fitted)
    for rows in _blocks(len(data)):
        yield Rows({"row": rows}, data[rows], notes=tuple(notes if rows[0] == 0 else ()))
