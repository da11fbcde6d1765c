"""File formats by suffix. To add one, write a file with its reader, and a line in TABLES or in ARRAYS; for the command,
also its ending in `Table.ends` or `Arrays.ends` of `cli/recipes/data/files.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from pipeline import files, memory
from pipeline.errors import DataError
from pipeline.sources import csv, parquet
from pipeline.sources.files import archive, reading
from pipeline.sources.frame import Frame, floats


class TableReader(Protocol):
    """Yields a table as one Frame, if `at_once`, or in blocks, so that a file of any size fits in memory.

    All blocks have the same columns, of text, numbers, booleans, dates or times, no lists; an empty file gives none.
    `header` says whether the first row has the names, in a format that does not.
    """

    def __call__(self, path: Path, header: bool | None, /, *, at_once: bool) -> Iterator[Frame]: ...


def read_table(path: str | Path, header: bool | None = None) -> Frame:
    """All rows of a table, without the index that pandas writes. Raises DataError for a file that is no table."""
    frame = next(_table(path)(Path(path), header, at_once=True), None)
    if frame is None:
        raise _empty(path)
    if len(frame.data.columns) < 2:
        raise DataError(f"{path} has one column, but needs at least one of inputs and one of targets")
    return _without_index(frame)


def table_blocks(path: str | Path, header: bool | None = None) -> Iterator[Frame]:
    """The rows of a table in blocks. Raises DataError for a file that is no table."""
    rows = 0
    for frame in _table(path)(Path(path), header, at_once=False):
        rows += len(frame)
        yield frame
    if not rows:
        raise _empty(path)


def read_arrays(path: Path) -> Mapping[str, Any]:
    """Arrays by name; of .npy files, as memory maps. Raises DataError for a file that can't be read."""
    if path.is_dir():
        return {file.stem: _npy(file) for file in sorted(path.glob("*.npy"))}
    return ARRAYS[path.suffix](path) if path.suffix in ARRAYS else archive(path)


def _table(path: str | Path) -> TableReader:
    return TABLES.get(Path(path).suffix, csv.blocks)


def _empty(path: str | Path) -> DataError:
    return DataError(f"{path} is empty: a table needs a header row and at least one sample")


def _without_index(frame: Frame) -> Frame:
    name = frame.data.columns[0]
    if name not in ("", "Unnamed: 0", "__index_level_0__"):
        return frame
    numbers = floats(frame.data[name]).to_numpy()
    if np.array_equal(numbers - numbers[0], np.arange(len(numbers))):
        return frame.without([name], f"column {name!r} is left out: it numbers the rows")
    return frame if name else frame.renamed({"": "column_1"})


def _npy(path: Path) -> np.ndarray:
    with reading(path, "is no .npy file of a plain array, or cut short"):
        array: np.ndarray = np.load(files.plain(path), mmap_mode="r", allow_pickle=False)
        return array


def _npy_pair(path: Path) -> Mapping[str, Any]:
    """An array, and the file `targets.npy` beside it."""
    targets = path.with_name("targets.npy")
    return {"inputs": _npy(path), **({"targets": _npy(targets)} if targets.exists() else {})}


def _safetensors(path: Path) -> Mapping[str, Any]:
    from safetensors.torch import load_file

    with reading(path, "is no safetensors file, or cut short"):
        memory.check(2 * files.plain(path).stat().st_size, str(path))
        tensors = load_file(path)
    return {name: (t.float() if t.dtype == torch.bfloat16 else t).numpy() for name, t in tensors.items()}


TABLES: Mapping[str, TableReader] = {".parquet": parquet.blocks}
"""Readers of tables by suffix; all other files are CSV."""
ARRAYS: Mapping[str, Callable[[Path], Mapping[str, Any]]] = {".npy": _npy_pair, ".safetensors": _safetensors}
"""Readers of arrays by suffix; all other files are .npz, and folders hold .npy files."""
