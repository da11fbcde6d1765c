"""File formats by suffix. To add one, write a file with its reader, and a line in TABLES or in ARRAYS.

A table's source is a file, several as `a.csv,b.csv`, `part-*.csv` or a folder, or a part of a file, as
`sqlite:shop.db?orders`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from attrs import evolve

from pipeline import files, memory
from pipeline.errors import ConfigError, DataError
from pipeline.sources import arrow, csv, database, excel, jsonlines, parquet
from pipeline.sources.dialect import Dialect
from pipeline.sources.files import OPENERS, archive, in_archive, members, reading
from pipeline.sources.frame import Frame, floats, package, plain
from pipeline.sources.grid import PLAIN, SAMPLE, THOUSANDS
from pipeline.sources.numbers import LONG
from pipeline.sources.parts import expand, joined


class TableReader(Protocol):
    """Yields a table in blocks of rows, so that a file of any size fits in memory.

    All blocks have the same columns; without rows, one empty block has them. `dialect` is how texts are written.
    """

    def __call__(self, path: Path, dialect: Dialect, /) -> Iterator[Frame]: ...


class PartReader(Protocol):
    """A TableReader of one of several tables in a file: of the only one, if `part` is ""."""

    def __call__(self, path: Path, dialect: Dialect, /, part: str = "") -> Iterator[Frame]: ...


def read_table(path: str | Path, dialect: Dialect | None = None) -> Frame:
    """All rows of a table, without the index that pandas writes. Raises DataError for a file that is no table."""
    frames: list[Frame] = []
    size, free = 0, memory.free()
    for frame in _narrowed(table_blocks(path, dialect, numbers=True)):
        frames.append(frame)
        size += int(frame.data.estimated_size())
        if 2 * size > free:  # with the copy as one
            memory.check(2 * size, f"{path}, of at least {memory.size(size)},")
    frame = _joined(frames, path, dialect or Dialect())
    if not len(frame):
        raise DataError(f"{path} is empty: a table needs a header row and at least one sample")
    if len(frame.data.columns) < 2:
        separator = "; if another mark separates them, name it by separator=" * (_readers(path)[0][1] is csv.blocks)
        raise DataError(f"{path} has one column, but needs at least one of inputs and one of targets{separator}")
    return _without_index(_without_blank(frame))


def table_blocks(path: str | Path, dialect: Dialect | None = None, *, numbers: bool = False) -> Iterator[Frame]:
    """The rows of a table in blocks. Raises DataError for a file that is no table. `numbers` is as for `csv.blocks`."""
    parts = _readers(path)
    if numbers:
        parts = [(file, partial(csv.blocks, numbers=True) if read is csv.blocks else read) for file, read in parts]
    first: Frame | None = None
    for file, read in parts:
        for frame in read(file, dialect or Dialect()):
            if dialect is not None and dialect.missing is not None:
                frame = evolve(frame, missing=dialect.missing)
            if len(parts) > 1 and not frame.data.columns:  # an empty file
                continue
            first = first or frame
            if frame.data.columns != first.data.columns:
                frame = evolve(frame, data=_ordered(frame, first))
            yield frame


def _ordered(frame: Frame, first: Frame) -> Any:
    """The columns of a frame in the order of the first one."""
    names = first.data.columns
    for one, other in ((frame, first), (first, frame)):
        if more := [name for name in one.data.columns if name not in other.data.columns]:
            raise DataError(f"{one.path} has the column {more[0]!r}, but {other.path} does not; give all the same")
    return frame.data.select(names)


def check_dialect(source: str | Path, dialect: Dialect | None) -> None:
    """Raise ConfigError for an option that the format of a table does not have."""
    for file, read in _readers(source)[:1] if dialect is not None else ():
        for name in WITHOUT.get(getattr(read, "func", read), ()):
            if getattr(dialect, name) is not None:
                raise ConfigError(f"{file} is of a format that has no {name}: leave out {name}=")


def _readers(source: str | Path) -> list[tuple[Path, TableReader]]:
    """The files of a source, with their readers."""
    kind, colon, rest = str(source).partition(":")
    if colon and kind in IN_PARTS:
        name, _, part = rest.partition("?") if not Path(rest).exists() else (rest, "", "")
        return [(Path(name), partial(IN_PARTS[kind], part=part))]
    files = [_member(file) for file in expand(source)]
    found = [(file, TABLES.get(suffix(file.name), csv.blocks)) for file in files]
    other = next((file for file, read in found if read != found[0][1]), None)
    if other is not None:
        raise DataError(f"{files[0]} and {other} are of different formats: as one table, give files of one")
    for file, read in found:
        if read not in TEXTS and (in_archive(file) or file.suffix.lower() in OPENERS):
            raise DataError(f"{file} is not read compressed: unpack it first")
    return found


def suffix(name: str) -> str:
    """The suffix of a file's name, without a suffix of compression.

    >>> suffix("DATA.CSV.gz"), suffix("x.parquet")
    ('.csv', '.parquet')
    """
    path = Path(name.lower())
    return Path(path.stem).suffix if path.suffix in (*OPENERS, ".zip") else path.suffix


def _member(file: Path) -> Path:
    """A file, or, of a zip archive, the only table in it."""
    if in_archive(file) or TABLES.get(suffix(file.name), csv.blocks) not in TEXTS:
        return file
    names = members(file)
    tables = [name for name in names if suffix(name) in TABLES] if len(names) > 1 else names
    if names and len(tables) != 1:
        which = f"{len(tables)} tables" if tables else "no tables, but"
        found = tables or names
        raise DataError(f"{file} has {which}: {', '.join(found[:9])}; name one, as in {file}/{found[0]}")
    return file / tables[0] if tables else file


def table_ends() -> tuple[str, ...]:
    """The endings of tables' names, in lower case."""
    texts = [end for end, read in TABLES.items() if read in TEXTS]
    return (*TABLES, *(end + packed for end in texts for packed in (*OPENERS, ".zip")), ".zip")


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
            if data[name].dtype != pl.String or not _plain_numbers(plain(data[name].head(SAMPLE), frame.missing)):
                continue
            column = frame.column(name)
            known = column.drop_nulls()
            if (
                _plain_numbers(known)
                and not known.str.contains(LONG).any()
                and not (len(known) and known.str.contains(THOUSANDS).all())
            ):
                data = data.with_columns(floats(column))
        yield evolve(frame, data=data)


def _plain_numbers(column: Any) -> bool:
    return bool(column.drop_nulls().str.contains(PLAIN).all())


def _joined(frames: list[Frame], path: str | Path, dialect: Dialect) -> Frame:
    """One Frame of all blocks. A column of texts that `_narrowed` took for numbers is read again."""
    if not frames:
        return Frame(str(path), package().DataFrame(), np.empty(0, np.int64))
    if len(frames) == 1:
        return frames[0]
    pl = package()
    types = {name: {frame.data[name].dtype for frame in frames} for name in frames[0].data.columns}
    if mixed := [name for name, kinds in types.items() if len(kinds) > 1 and pl.String in kinds]:
        texts = [frame.data.select(mixed) for frame in table_blocks(path, dialect)]
        frames = [evolve(f, data=f.data.with_columns(t)) for f, t in zip(frames, texts, strict=True)]
    return joined(path, frames)


def _without_blank(frame: Frame) -> Frame:
    """Without last columns that have neither a name nor values, as behind a separator that ends each row."""
    last = frame.data.columns[-1]
    if frame.unit != "line" or last != f"column_{len(frame.data.columns)}" or frame.column(last).count():
        return frame
    return _without_blank(frame.without([last], f"column {last!r} is left out: it has no values"))


INDEX = re.compile(r"|Unnamed: 0|__index_level_\d+__")
"""Names of columns that pandas writes for an index."""


def _without_index(frame: Frame) -> Frame:
    """Without columns that number the rows."""
    for name in [n for n in frame.data.columns if INDEX.fullmatch(n)]:
        numbers = floats(frame.data[name])
        if name.startswith("__") or (numbers.is_not_null().all() and numbers.n_unique() == len(frame)):
            frame = frame.without([name], f"column {name!r} is left out: it numbers the rows")
        elif not name:
            frame = evolve(frame, data=frame.data.rename({"": "column_1"}))
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


TABLES: Mapping[str, TableReader] = {
    ".csv": csv.blocks,
    ".tsv": csv.blocks,
    ".parquet": parquet.blocks,
    ".jsonl": jsonlines.blocks,
    ".ndjson": jsonlines.blocks,
    ".json": jsonlines.blocks,
    ".arrow": arrow.blocks,
    ".feather": arrow.blocks,
    ".ipc": arrow.blocks,
    ".xlsx": excel.blocks,
    ".xls": excel.blocks,
    ".ods": excel.blocks,
    ".sqlite": database.sqlite,
    ".sqlite3": database.sqlite,
    ".db": database.sqlite,
    ".duckdb": database.duckdb,
}
"""Readers of tables by suffix; all other files are CSV."""
WITHOUT: Mapping[Any, tuple[str, ...]] = {
    jsonlines.blocks: ("header", "separator"),
    excel.blocks: ("separator", "encoding"),
} | dict.fromkeys((parquet.blocks, arrow.blocks, database.sqlite, database.duckdb), ("header", "separator", "encoding"))
"""Options of a Dialect that a reader does not have."""
TEXTS = (csv.blocks, jsonlines.blocks)
"""Those whose files may be compressed."""
IN_PARTS: Mapping[str, PartReader] = {"sqlite": database.sqlite, "duckdb": database.duckdb, "excel": excel.blocks}
"""Readers of one of several tables in a file, by the word before `:FILE?PART`."""
ARRAYS: Mapping[str, Callable[[Path], Mapping[str, Any]]] = {".npy": _npy_pair, ".safetensors": _safetensors}
"""Readers of arrays by suffix; all other files are .npz, and folders hold .npy files."""
