"""Arrays in files: inputs and targets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import evolve, frozen
from torch import Tensor

from pipeline.errors import DataError, did_you_mean
from pipeline.sources.columns import readings
from pipeline.sources.formats import read_arrays
from pipeline.sources.frame import Frame, package
from pipeline.sources.learned import Learned, scale, task_of
from pipeline.sources.memmap import Mapped
from pipeline.sources.prepared import Prepared, Task
from pipeline.sources.split import HELD_OUT, Split
from pipeline.sources.table import prepare
from pipeline.sources.tensors import Source, Tensors, as_tensor
from pipeline.text import some

PAIRS = (("inputs", "targets"), ("X", "y"), ("x", "y"), ("images", "labels"), ("data", "labels"), ("data", "target"))
"""Usual names of inputs and targets; also with `_train` after them, or `train_` before. Others with a name of
HELD_OUT in the same place are held out."""
COLUMNS = 256
"""Inputs (N, D) of floats are the columns of a table, up to this many."""
IN_MEMORY = 1 << 30
"""Bytes of arrays that are read into memory."""


@frozen(eq=False)
class Pair:
    """Inputs (N, ...) and targets (N, ...), or none, of a file."""

    path: str
    inputs: np.ndarray
    targets: np.ndarray | None
    classes: tuple[str, ...] = ()
    """Names of classes, if the targets are declared as such."""

    @property
    def are_columns(self) -> bool:
        """Whether they are a table's rows."""
        x, y = self.inputs, self.targets
        flat = x.ndim == 2 and x.dtype.kind == "f" and x.shape[1] <= COLUMNS and x.nbytes <= IN_MEMORY
        return flat and (y is None or y.ndim == 1 or (y.ndim == 2 and y.shape[1] <= COLUMNS))

    @property
    def target_names(self) -> list[str]:
        y = self.targets
        if y is None or y.ndim == 1:
            return ["targets"]
        return [f"targets_{i}" for i in range(1, y.shape[1] + 1)]

    @property
    def column(self) -> Frame | None:
        """The table of targets (N,) or (N, 1) alone."""
        if self.targets is None or self.targets.size != len(self.targets):
            return None
        return evolve(self, inputs=np.empty((0, 0)), targets=self.targets.reshape(-1)).frame()

    def frame(self) -> Frame:
        """The table of the inputs and the targets."""
        columns: dict[str, Any] = {f"inputs_{i}": column for i, column in enumerate(self.inputs.T, 1)}
        if self.targets is not None:
            targets = self.targets if self.targets.ndim > 1 else self.targets[:, None]
            columns |= dict(zip(self.target_names, targets.T, strict=True))
        data = package().DataFrame({name: _cells(column) for name, column in columns.items()})
        if self.classes and self.targets is not None:
            data = data.with_columns(data["targets"].cast(package().Enum(self.classes)))
        return Frame(self.path, data, np.arange(len(data)), "sample")


def arrays(
    path: str | Path, *, inputs: str | None = None, targets: str | None = None, test: str | Path | None = None,
    parts: Split | None = None, task: Task | None = None,
) -> Prepared:  # fmt: skip
    """Inputs (N, ...) and targets (N, ...) as .npz, safetensors, or a folder of .npy files, named like one of PAIRS.

    Inputs (N, D) or (N,) of floats are prepared as columns of a table. Bytes (N, H, W), (N, C, H, W) or (N, H, W, C)
    are images, (N, C, H, W) float32 in [0, 1]; other floats are float32, other numbers int64. Targets (N,), and classes
    (N, 1), are learned as a table's column is; (N, L) of 0 and 1 are several labels, and of the shape of integer inputs
    the next tokens; others are values. Up to 1 GiB, arrays are read into memory; of larger .npy files, only the rows of
    a batch.

    - `inputs` and `targets`: names of the arrays; `test`: a file of the held-out samples; by default those of
      `path` itself, such as X_test and y_test, else a split. `notes` name arrays that are not read.
    """
    names = (inputs, targets)
    (pair, *held), notes = _sides(path, names, held_out=test is None)
    other = next(iter(held), None) if test is None else _side(test, names)
    made = of_pair(pair, other, parts, task)
    return evolve(made, notes=(*made.notes, *notes))


def of_pair(pair: Pair, other: Pair | None = None, parts: Split | None = None, task: Task | None = None) -> Prepared:
    """Arrays, prepared: a pair that is split, or two for both sides."""
    assert pair.targets is not None
    parts = parts or Split()
    parts.check(other is not None)
    if other is not None and (now := _shape(other.inputs)) != (shape := _shape(pair.inputs)):
        raise DataError(f"{other.path} has inputs of shape {now} to hold out, but {shape} to train on")
    if other is not None and _are_pixels(other.inputs) != _are_pixels(pair.inputs):
        dtypes = f"{other.inputs.dtype} to hold out, but {pair.inputs.dtype} to train on"
        raise DataError(f"{other.path} has inputs of {dtypes}: bytes are divided by 255, and others are not; give one")
    if pair.are_columns:
        read_test = None if other is None else other.frame
        return prepare(pair.frame, ",".join(pair.target_names), parts, task, read_test=read_test)
    learned = _learned(pair, task)
    sizes = _vocabulary(learned.task, pair)
    notes = (learned.note(pair.targets),) if learned.task in ("classification", "regression") else ()
    train: Source = _source(pair, learned)
    if other is not None:
        held_out = _source(other, learned)
    elif isinstance(train, Mapped):
        train, held_out = train.split(parts)
    else:
        assert isinstance(train, Tensors)
        rows = parts.rows(len(train), labels=train.tensors["targets"] if learned.classes else None)
        train, held_out = train.take(rows[0]), train.take(rows[1])
    if isinstance(train, Mapped):
        notes = (*notes, f"{(pair.inputs.nbytes + pair.targets.nbytes) / 1e9:.1f} GB, read as they are needed")
    fitted: dict[str, Any] = {"targets": learned.json, "bytes": _are_pixels(pair.inputs)}
    if learned.task == "regression":
        fitted |= scale(train.tensors["targets"].numpy() if isinstance(train, Tensors) else np.asarray(pair.targets))
    return Prepared(train, held_out, learned.task, tuple(learned.classes), sizes, notes, fitted)


def new_rows(
    path: Path,
    fitted: Mapping[str, Any],
    learned: Learned,
    *,
    targets: bool,
    names: tuple[str | None, str | None] = (None, None),
) -> Frame | Source:
    """The samples of a file, prepared by `fitted`: a table's rows, or a Source.

    Raises DataError for an unknown class.
    """
    pair = _side(path, names, need_targets=targets)
    if not targets:
        pair = evolve(pair, targets=None)
    if "columns" in fitted:
        return pair.frame()
    if fitted.get("bytes", here := _are_pixels(pair.inputs)) != here:
        was = "numbers, not bytes" if here else "bytes of images, divided by 255"
        raise DataError(f"{path} has inputs of {pair.inputs.dtype}, and the run's were {was}; give them as those were")
    return _source(pair, learned)


def _side(path: str | Path, names: tuple[str | None, str | None], need_targets: bool = True) -> Pair:
    """All samples of a file. Raises DataError for one of both training and held-out samples."""
    (pair, *held), _ = _sides(path, names, need_targets)
    if held:
        raise DataError(f"{path} has samples to train on and others to hold out; give a file with one of the two")
    return pair


def _sides(
    path: str | Path, names: tuple[str | None, str | None], need_targets: bool = True, held_out: bool = True
) -> tuple[list[Pair], list[str]]:
    """The training samples, or all, and the held-out ones if the file has both; notes of arrays that are not read."""
    by_name = read_arrays(Path(path))
    if names != (None, None):
        pairs = [(names[0] or "inputs", names[1] or "targets")]
    else:
        pairs = [(x + end, y + end) for x, y in PAIRS for end in ("", "_train")]
        pairs += [(f"train_{x}", f"train_{y}") for x, y in PAIRS]

    def there(pair: tuple[str, str]) -> bool:
        return pair[0] in by_name and (pair[1] in by_name or not need_targets)

    found = next(filter(there, pairs), None)
    if found is None:
        wanted = next((n for n in pairs[0] if n not in by_name), "inputs")
        near = did_you_mean(wanted, by_name) or f"; it has {', '.join(by_name)}"
        raise DataError(f"{path} holds no array {wanted!r}{near}; name others by inputs= and targets=")
    beside = [pair for word in HELD_OUT for pair in zip(*(_beside(n, word) for n in found), strict=False)]
    used = [found, *[*filter(there, beside)][:held_out]]
    made = [Pair(str(path), by_name[x], by_name.get(y)) for x, y in used]
    for side in made:
        if any(a is not None and (a.ndim == 0 or len(a) == 0) for a in (side.inputs, side.targets)):
            raise DataError(f"{path} is empty: it has no samples")
        if side.targets is not None and (count := len(side.inputs)) != len(side.targets):
            raise DataError(f"{path} has {count:,} inputs and {len(side.targets):,} targets; give as many")
    unread = [name for name in by_name if not any(name in pair for pair in used)]
    notes = [f"{some(unread)} {'is' if len(unread) == 1 else 'are'} not read"] if unread else []
    return [evolve(side, inputs=side.inputs[:, None]) if _is_column(side.inputs) else side for side in made], notes


def _beside(name: str, word: str) -> list[str]:
    """Names of the held-out samples of an array, by a word of HELD_OUT."""
    return [name.replace("train", word)] if "train" in name else [f"{name}_{word}", f"{word}_{name}"]


def _is_column(inputs: np.ndarray) -> bool:
    """Whether inputs are a single column of a table."""
    return inputs.ndim == 1 and inputs.dtype.kind == "f"


def _cells(array: np.ndarray) -> Any:
    """A column that polars takes."""
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8")
    return array.tolist() if array.dtype.kind in "UO" else np.ascontiguousarray(array, array.dtype.newbyteorder("="))


def _learned(pair: Pair, task: Task | None) -> Learned:
    x, y = pair.inputs, pair.targets
    assert y is not None
    if task is None and y.ndim > 1 and y.shape == x.shape and x.dtype.kind in "iu" and y.dtype.kind in "iu":
        task = "language modelling"
    elif (frame := pair.column) is not None:
        learned = Learned.of(frame, ["targets"], readings(frame), task)
        if y.ndim == 1 or learned.task == "classification":
            return learned
    if y.dtype.kind not in "iubf":
        raise DataError(f"{pair.path}: targets of shape {y.shape} hold {y.dtype} values, which are no numbers")
    return Learned(("targets",), task or task_of(y), ("number",), ("",))


def _source(pair: Pair, learned: Learned) -> Source:
    """The samples, in memory, or, of large files, read as they are needed."""
    values: dict[str, Any] = {"inputs": pair.inputs}
    if pair.targets is not None:
        y = pair.targets
        if (column := pair.column) is not None and (y.ndim == 1 or learned.task == "classification"):
            y = learned.targets(column)
        elif learned.task in ("regression", "several labels"):
            y = y.astype(np.float32)
        values["targets"] = y
    if sum(a.nbytes for a in values.values()) > IN_MEMORY:
        return Mapped(values, {"inputs": tensor})
    return Tensors({n: tensor(np.array(a)) if n == "inputs" else as_tensor(n, a) for n, a in values.items()},
                   tuple(learned.classes))  # fmt: skip


def _shape(inputs: np.ndarray) -> tuple[int, ...]:
    """Of a sample, as a model takes it."""
    return tuple(tensor(np.array(inputs[:1])).shape[1:])


def _are_pixels(array: np.ndarray) -> bool:
    return array.dtype == np.uint8 and array.ndim in (3, 4)


def tensor(array: np.ndarray) -> Tensor:
    """Inputs as a model takes them: images (N, C, H, W) float32 in [0, 1], float32, or int64."""
    if _are_pixels(array):
        pixels = torch.from_numpy(array)
        if array.ndim == 3:
            pixels = pixels.unsqueeze(1)
        elif array.shape[1] not in (1, 3, 4) and array.shape[3] in (1, 3, 4):
            pixels = pixels.permute(0, 3, 1, 2)
        return pixels.float().div_(255.0)
    tensor = as_tensor("inputs", array)
    return tensor.float() if tensor.is_floating_point() or tensor.dtype == torch.bool else tensor


def _vocabulary(task: Task, pair: Pair) -> dict[str, Any]:
    """The number of tokens, if inputs are token ids."""
    inputs, targets = pair.inputs, pair.targets
    if inputs.dtype.kind not in "iu" or inputs.ndim != 2:
        return {}
    ids = [a for a in (inputs, targets if task == "language modelling" else None) if a is not None]
    if min(int(a.min()) for a in ids) < 0:
        raise DataError("inputs hold negative ids; token ids begin at 0")
    return {"vocabulary": max(int(a.max()) for a in ids) + 1}
