"""Data sets of Hugging Face's `datasets` on this machine: nothing is downloaded, and no code of theirs runs."""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import evolve, frozen
from torch import Tensor

from pipeline.errors import ConfigError, DataError, did_you_mean
from pipeline.sources.arrays import Pair, of_pair
from pipeline.sources.columns import readings
from pipeline.sources.files import reading
from pipeline.sources.frame import Frame, package
from pipeline.sources.images import prepared
from pipeline.sources.learned import Learned
from pipeline.sources.pixels import Item
from pipeline.sources.prepared import Prepared
from pipeline.sources.split import HELD_OUT, Split
from pipeline.sources.table import prepare
from pipeline.text import some

READERS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}
NUMBERS = ("int", "uint", "float", "bool")
"""Beginnings of the dtypes of numbers."""
TARGETS = ("targets", "target", "labels", "label", "y")
"""Default names of the column to learn; without them, the column of classes."""


def huggingface(
    path_or_dataset: Any, *, inputs: str | None = None, targets: str | None = None, parts: Split | None = None,
    workers: int = 0,
) -> Prepared:  # fmt: skip
    """A datasets.Dataset or DatasetDict, or the path of one that save_to_disk() wrote, of a .parquet, .csv, .json or
    .jsonl file, or of a folder of such files, whose names begin with their splits: train-0.parquet, test-0.parquet.

    - `inputs`: a column of images, (N, C, H, W) float32 in [0, 1], or of numbers or arrays, (N, ...); by default the
      column of images, else all columns except the targets, side by side, (N, D) float32.
    - `targets`: by default a column of TARGETS, else the column of classes. Classes, words and whole numbers are int64
      (N,), other numbers float32.
    - `parts`: used without a `train` and a `validation` or `test` split.

    Raises ConfigError without `datasets`, and DataError for a path that does not exist, and for columns that are
    missing, unknown, or can't be trained on.
    """
    try:
        datasets: Any = import_module("datasets")  # the library has no types
    except ImportError:
        raise ConfigError("this needs Hugging Face's datasets, which is not here: pip install datasets") from None
    data = path_or_dataset
    if isinstance(data, str | Path):
        data = _read(datasets, Path(data))
    train, held, notes = _splits(datasets, data)
    (parts or Split()).check(held is not None)
    columns = train.features
    target = targets if targets is not None else _target(datasets, columns)
    for name in (inputs, target):
        if name is not None and name not in columns:
            raise DataError(f"the data set has no column {name!r}{did_you_mean(name, columns)}")
    pictures = [name for name, feature in columns.items() if isinstance(feature, datasets.Image)]
    used = [inputs] if inputs is not None else pictures[:1] or [name for name in columns if name != target]
    if not used:
        raise DataError(f"the data set has the column {target!r} alone: nothing to learn it from")
    try:
        whole = train if held is None else datasets.concatenate_datasets([train, held])
    except ValueError as e:
        raise DataError(f"the splits differ in their columns: {e}") from e
    name = str(path_or_dataset) if isinstance(path_or_dataset, str | Path) else "the data set"
    if used[0] in pictures:
        frame = _frame(whole, [target], name)
        learned = Learned.of(frame, [target], readings(frame), "classification")
        classes, codes = tuple(learned.classes), torch.from_numpy(learned.targets(frame))
        rows = torch.arange(len(train)), torch.arange(len(train), len(whole))
        if held is None:
            rows = (parts or Split()).rows(len(whole), labels=codes)
        encoded = whole.cast_column(used[0], datasets.Image(decode=False))
        sides = [(Encoded(encoded, used[0], r), codes[r]) for r in rows]
        return prepared(sides, classes, size=None, mode=None, augment="none", workers=workers, notes=notes)
    if all(isinstance(columns[n], datasets.Value | datasets.ClassLabel) for n in (*used, target)):
        read_test = None if held is None else partial(_frame, held, [*used, target], name)
        made = prepare(partial(_frame, train, [*used, target], name), target, parts or Split(), read_test=read_test)
        return evolve(made, notes=(*made.notes, *notes))
    classes = tuple(getattr(columns[target], "names", None) or ())
    pair, other = (
        None if side is None else
        Pair(name, _inputs([_values(side, n, NUMBERS) for n in used]), _targets(side, target), classes)
        for side in (train, held)
    )  # fmt: skip
    assert pair is not None
    made = of_pair(pair, other, parts)
    return evolve(made, notes=(*made.notes, *notes))


def single(path: Path) -> Any:
    """The data set of a path that has one split. Raises DataError for several."""
    data = _read(import_module("datasets"), path)
    if not isinstance(data, Mapping):
        return data
    if len(data) > 1:
        raise DataError(f"{path} has the splits {', '.join(data)}; give the file or the folder of one")
    return next(iter(data.values()))


def rows(path: Path, fitted: Mapping[str, Any]) -> Frame:
    """All rows of a data set whose columns are a table's, as `fitted` has them."""
    whole = single(path)
    wanted = [*(f["name"] for f in fitted["columns"]), *fitted["targets"]["names"]]
    return _frame(whole, [name for name in wanted if name in whole.features], path)


@frozen(eq=False)
class Encoded(Sequence[Item]):
    """The encoded images of a column, each read when it is asked for."""

    data: Any
    column: str
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: Any) -> Any:
        row = int(self.rows[i])
        value = self.data[row][self.column]
        name = f"row {row}, column {self.column!r}"
        if value is None:
            raise DataError(f"{name} holds no image; remove such rows")
        # Opened here, because the library would also open an address.
        return (name, value["bytes"]) if value["bytes"] is not None else Path(value["path"])


def _read(datasets: Any, path: Path) -> Any:
    if not path.exists():
        instead = "write datasets.load_dataset(...).save_to_disk(path), and give that path"
        raise DataError(f"{path} is no path here, and nothing is downloaded: {instead}")
    bars = not datasets.utils.are_progress_bars_disabled()
    datasets.utils.disable_progress_bars()
    try:
        with reading(path):
            if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
                return datasets.load_from_disk(str(path))
            return datasets.DatasetDict(_files(datasets, path))
    finally:
        if bars:
            datasets.utils.enable_progress_bars()


def _files(datasets: Any, path: Path) -> dict[str, Any]:
    """Data sets by split. load_dataset() would ask the network, if only to be counted."""
    splits: dict[str, list[Path]] = {}
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.suffix in READERS and not any(part.startswith(".") for part in file.relative_to(path).parts):
            splits.setdefault(re.split(r"[-.]", file.name)[0], []).append(file)
    suffixes = {file.suffix for files in splits.values() for file in files}
    if len(suffixes) != 1:
        raise DataError(
            f"{path} is no data set: known are what save_to_disk() writes, and files of one kind of "
            f"{', '.join(READERS)}; a folder of images goes to sources.images()"
        )
    for name, found in splits.items():
        if len(folders := {str(file.parent) for file in found}) > 1:
            raise DataError(f"{path} has {name!r} in several folders, {some(sorted(folders))}; give one of them")
    read = getattr(datasets.Dataset, f"from_{READERS[suffixes.pop()]}")
    return {name: read([glob.escape(str(f.resolve())) for f in files]) for name, files in splits.items()}


def _splits(datasets: Any, data: Any) -> tuple[Any, Any, tuple[str, ...]]:
    """Training rows, held-out rows or None, and notes."""
    if isinstance(data, datasets.Dataset):
        return data, None, ()
    if not isinstance(data, datasets.DatasetDict):
        raise DataError(f"{type(data).__name__} is no datasets.Dataset, DatasetDict, or path of one")
    if len(data) == 1:
        return next(iter(data.values())), None, ()
    held = next((name for name in HELD_OUT if name in data), None)
    if "train" not in data or held is None:
        raise DataError(f"the splits are {', '.join(data)}; give one of them, or name them train and test")
    unread = [name for name in data if name not in ("train", held)]
    return data["train"], data[held], (f"split {held!r} is held out", *(f"split {n!r} is not read" for n in unread))


def _target(datasets: Any, columns: Mapping[str, Any]) -> str:
    classes = [name for name, feature in columns.items() if isinstance(feature, datasets.ClassLabel)]
    for name in (*TARGETS, *classes[: len(classes) == 1]):
        if name in columns:
            return name
    raise DataError(f"which column is learned? pass targets=, one of {', '.join(columns)}")


def _frame(data: Any, columns: Sequence[str], path: Any) -> Frame:
    """Columns of cells as a table."""
    pl = package()
    cells: dict[str, Any] = {}
    for name in columns:
        values = data.with_format(None)[name][:]
        if (names := getattr(data.features[name], "names", None)) is not None:
            texts = [names[v] if v is not None and v >= 0 else None for v in values]
            cells[name] = pl.Series(texts, dtype=pl.Enum(names))
        else:
            cells[name] = pl.Series(values, strict=False)
    return Frame(str(path), pl.DataFrame(cells), np.arange(len(data)) + 1)


def _targets(data: Any, column: str) -> np.ndarray:
    array: np.ndarray = _values(data, column, (*NUMBERS, "string", "large_string"))
    names = getattr(data.features[column], "names", None)
    if names is None:
        return array
    if (array < 0).any():
        raise DataError(f"column {column!r} has no class in row {int((array < 0).argmax())}; remove such rows")
    found: np.ndarray = np.array(names)[array]
    return found


def _values(data: Any, name: str, dtypes: tuple[str, ...]) -> Any:
    """A column, (N, ...), of plain values: to decode others, such as sound, could open an address."""
    feature = inner = data.features[name]
    while isinstance(inner, list) or getattr(inner, "feature", None) is not None:
        inner = inner[0] if isinstance(inner, list) else inner.feature
    if not str(getattr(inner, "dtype", None)).startswith(dtypes):
        raise DataError(f"column {name!r} holds {feature}, which is not learned from here; name others by inputs=")
    values = data.with_format(None)[name][:]
    for row, value in enumerate(values):
        if value is None:
            raise DataError(f"column {name!r} has no value in row {row}; remove or fill such rows")
    try:
        array = np.asarray(values)
    except ValueError:
        raise DataError(f"column {name!r} has rows of different lengths; pad or cut them to one length") from None
    if array.dtype == object:
        raise DataError(f"column {name!r} has rows in which a value is missing; remove or fill them")
    return array


def _inputs(arrays: Sequence[Any]) -> np.ndarray:
    """One array as it is; several side by side, (N, D) float64."""
    if len(arrays) == 1:
        array: np.ndarray = arrays[0]
        return array
    return np.concatenate([array.reshape(len(array), -1).astype(np.float64) for array in arrays], 1)
