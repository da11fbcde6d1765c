"""File formats by suffix. To add one, write a file with its reader, and a line in TABLES or in ARRAYS."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from attrs import evolve

from pipeline import files, memory
from pipeline.errors import DataError
from pipeline.sources import csv, parquet
from pipeline.sources.dialect import Dialect
from pipeline.sources.files import archive, reading
from pipeline.sources.frame import Frame, floats, package


class TableReader(Protocol):
    """Yields a table in blocks of rows, so that a file of any size fits in memory.

    All blocks have the same columns; without rows, one empty block has them. `dialect` is how texts are written.
    """

    def __call__(self, path: Path, dialect: Dialect, /) -> Iterator[Frame]: ...


def read_table(path: str | Path, dialect: Dialect | None = None) -> Frame:
    """All rows of a table, without the index that pandas writes. Raises DataError for a file that is no table."""
    frames = [*_narrowed(table_blocks(path, dialect))]
    frame = _joined(frames, path, dialect or Dialect())
    if not len(frame):
        raise DataError(f"{path} is empty: a table needs a header row and at least one sample")
    if len(frame.data.columns) < 2:
        raise DataError(f"{path} has one column, but needs at least one of inputs and one of targets")
    return _without_index(frame)


def table_blocks(path: str | Path, dialect: Dialect | None = None) -> Iterator[Frame]:
    """The rows of a table in blocks. Raises DataError for a file that is no table."""
    yield from TABLES.get(Path(path).suffix.lower(), csv.blocks)(Path(path), dialect or Dialect())


PLAIN = r"^[-+]?(?:0|[1-9]\d*)(?:\.\d*)?(?:[eE][-+]?\d+)?$"
THOUSANDS = r"^[-+]?[1-9]\d{0,2}\.\d{3}$"
"""A number with a decimal point, or with a mark of thousands."""


def _narrowed(frames: Iterator[Frame]) -> Iterator[Frame]:
    """The blocks of a large file, with columns of plain numbers as float64: texts need several times their memory."""
    first = next(frames, None)
    second = next(frames, None)
    if first is None:
        return
    if second is None:
        yield first
        return
    pl = package()
    for frame in chain([first, second], frames):
        data = frame.data
        for name in data.columns:
            column = data[name]
            if column.dtype == pl.String:
                known = frame.column(name).drop_nulls()
                if known.str.contains(PLAIN).all() and not (known.str.contains(THOUSANDS).all() and len(known)):
                    data = data.with_columns(floats(frame.column(name)))
        yield evolve(frame, data=data)


def _joined(frames: list[Frame], path: str | Path, dialect: Dialect) -> Frame:
    """One Frame of all blocks. A column that is text in any of them is read again as text."""
    if not frames:
        return Frame(str(path), package().DataFrame(), np.empty(0, np.int64))
    if len(frames) == 1:
        return frames[0]
    pl = package()
    mixed = [n for n, kinds in _types(frames).items() if len(kinds) > 1 and pl.String in kinds]
    if mixed:
        texts = [frame.data.select(mixed) for frame in table_blocks(path, dialect)]
        frames = [evolve(f, data=f.data.with_columns(t)) for f, t in zip(frames, texts, strict=True)]
    data = pl.concat([frame.data for frame in frames], rechunk=True)
    return evolve(frames[0], data=data, lines=np.concatenate([frame.lines for frame in frames]))


def _types(frames: list[Frame]) -> dict[str, set[Any]]:
    return {name: {frame.data[name].dtype for frame in frames} for name in frames[0].data.columns}


INDEX = re.compile(r"|Unnamed: 0|__index_level_\d+__")
"""Names of columns that pandas writes for an index."""


def _without_index(frame: Frame) -> Frame:
    """Without columns that number the rows."""
    for name in [n for n in frame.data.columns if INDEX.fullmatch(n)]:
        numbers = floats(frame.data[name])
        if name.startswith("__") or (numbers.is_not_null().all() and numbers.n_unique() == len(frame)):
            frame = frame.without([name], f"column {name!r} is left out: it numbers the rows")
        elif not name:
            frame = frame.renamed({"": "column_1"})
    return frame


def read_arrays(path: Path) -> Mapping[str, Any]:
    """Arrays by name; of .npy files, as memory maps. Raises DataError for a file that can't be read."""
    if path.is_dir():
        return {file.stem: _npy(file) for file in sorted(path.glob("*.npy"))}
    return ARRAYS[path.suffix.lower()](path) if path.suffix.lower() in ARRAYS else archive(path)


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
