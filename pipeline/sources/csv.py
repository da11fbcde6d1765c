"""Cells: a table as it is in a file, a column each, before anything is known of what is in it."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import evolve, frozen

from pipeline import files
from pipeline.errors import ConfigError, DataError, did_you_mean
from pipeline.sources.files import reading, unpacked, whole

if TYPE_CHECKING:
    import polars

MISSING = ("", "na", "n/a", "nan", "null", "none", "?")
"""What stands for a missing value, in any case."""
TRUTHS = {"true": 1.0, "yes": 1.0, "t": 1.0, "y": 1.0, "false": 0.0, "no": 0.0, "f": 0.0, "n": 0.0}
BLOCK, ROWS = 1 << 21, 1 << 15
"""Bytes of text, and rows of Parquet, that are read at once of a file of any size."""
_EMPTY = "{} is empty: a table needs a header row and at least one sample"
_NO_PARQUET = "is no Parquet file, or cut short"
LONGEST, TIMES = 64 << 20, 4
"""Bytes of one row, and times that a text is there while it becomes a table."""
LOOKED = 100
"""Rows that are looked at to tell whether a first one is a header."""


@frozen(eq=False)
class Cells:
    """A table: text from CSV, or values of one type a column."""

    path: str
    columns: dict[str, polars.Series]
    where: Callable[[int], str]
    """Where a row is in the file: `line 17`."""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def column(self, name: str) -> polars.Series:
        """Raises DataError where there is none of that name."""
        if name not in self.columns:
            raise DataError(f"{self.path} has no column {name!r}{did_you_mean(name, self.columns)}")
        return self.columns[name]

    def only(self, rows: np.ndarray) -> Cells:
        """Some of the rows."""
        before = self.where
        columns = {name: column.gather(rows) for name, column in self.columns.items()}
        return evolve(self, columns=columns, where=lambda row: before(int(rows[row])))

    def refuse(self, row: int, name: str, why: str) -> DataError:
        """An error that names a cell."""
        return DataError(f"{self.path}, {self.where(row)}, column {name!r}: {self.columns[name][row]!r} {why}")


def package() -> Any:
    """The reader."""
    try:
        import polars
    except ModuleNotFoundError:
        raise ConfigError("tables are read by polars, which is missing: pip install polars") from None
    return polars


def read(path: str | Path, header: bool | None = None) -> Cells:
    """A table in a file: .csv, .tsv, .csv.gz or .parquet. Raises DataError for what is no table."""
    path = Path(path)
    if path.suffix == ".parquet":
        cells = _parquet(path)
    else:
        text = _decoded(path)
        cells = _parsed(path, text, _separator(text), header)
    if not len(cells):
        raise DataError(_EMPTY.format(path))
    if len(cells.columns) < 2:
        raise DataError(f"{path} has one column, but needs at least one of inputs and one of targets")
    return _without_index(cells)


def _parquet(path: Path) -> Cells:
    with reading(path, _NO_PARQUET):
        frame = package().read_parquet(files.plain(path))
    return Cells(str(path), {c.name: c for c in frame.get_columns()}, lambda row: f"row {row + 1}")


def blocks(path: str | Path, header: bool | None = None) -> Iterator[Cells]:
    """The rows of a table in stretches, one after the other, so that any file fits in memory.

    Raises DataError for what is no table.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        yield from _parquet_blocks(path)
        return
    names: list[str] | None = None
    separator, lines = "", 0
    for text in _texts(path):
        if names is None:
            separator = _separator(text)
        cells = _parsed(path, text, separator, header, names, lines)
        names, lines = list(cells.columns), lines + text.count("\n")
        if len(cells):
            yield cells
    if names is None:
        raise DataError(_EMPTY.format(path))


def _texts(path: Path) -> Iterator[str]:
    """A file's text in stretches of whole rows."""
    kept = ""
    with unpacked(path) as file:
        decoder = codecs.getincrementaldecoder("utf-8-sig")()
        while raw := file.read(BLOCK):
            try:
                kept += decoder.decode(raw)
            except UnicodeDecodeError as e:
                raise DataError(f"{path} is not UTF-8: it has the byte {e.object[e.start]:#04x}") from None
            end = kept.rfind("\n") + 1
            # A row may go on in a next line where a quote is open.
            if end and kept.count('"', 0, end) % 2 == 0:
                yield kept[:end].replace("\r\n", "\n")
                kept = kept[end:]
            if len(kept) > LONGEST:
                raise DataError(f"{path} has a row of more than {LONGEST >> 20} MB; is a quote left open?")
    if kept.strip():
        yield kept.replace("\r\n", "\n")


def _parquet_blocks(path: Path) -> Iterator[Cells]:
    pl = package()
    with reading(path, _NO_PARQUET):
        lazy = pl.scan_parquet(files.plain(path), low_memory=True)
        total = int(lazy.select(pl.len()).collect().item())
        for begin in range(0, total, ROWS):
            frame = lazy.slice(begin, ROWS).collect()
            columns = {c.name: c for c in frame.get_columns()}
            yield Cells(str(path), columns, lambda row, begin=begin: f"row {begin + row + 1}")  # type: ignore[misc]  # a default


def _separator(text: str) -> str:
    return max(",;\t|", key=text.partition("\n")[0].count)


def _parsed(
    path: Path, text: str, separator: str, header: bool | None, names: list[str] | None = None, before: int = 0
) -> Cells:
    """A text as cells: the first one of a file, or, where the `names` of its columns are known, one after so many
    lines."""
    pl = package()
    lines = text.split("\n")
    numbers, counts = _counted(path, text, lines, separator)
    if not len(numbers):
        raise DataError(_EMPTY.format(path))
    width = counts[0] if names is None else len(names)
    wrong = np.flatnonzero(counts != width)
    if len(wrong):
        at = wrong[0]
        raise DataError(
            f"{path}, line {before + numbers[at]}: {counts[at]} columns, but the first row has {width} "
            f"({len(wrong)} such row{'s' if len(wrong) > 1 else ''})"
        )
    # Of one column, an empty line is a missing value to the reader.
    kept = "\n".join(line for line in lines if line.strip("\r")) if '"' not in text else text
    options = {"has_header": False, "infer_schema": False, "truncate_ragged_lines": False}
    with reading(path, "can't be read as a table"):
        frame = pl.read_csv(io.BytesIO(kept.encode()), separator=separator, **options)
    columns = [c.str.strip_chars() for c in frame.get_columns()]
    if names is not None:
        found = dict(zip(names, columns, strict=True))
        return Cells(str(path), found, lambda row: f"line {before + numbers[row]}")
    first = [c[0] or "" for c in columns]
    named = _has_header(columns, first) if header is None else header
    made = [(named and name) or f"column_{i}" for i, name in enumerate(first, 1)]
    if named and first[0] == "":
        made[0] = ""
    if len(set(made)) < len(made):
        [twice, *_] = [n for n in made if made.count(n) > 1]
        raise DataError(f"{path} has two columns {twice!r}; give them different names")
    begin = int(named)
    notes = () if named else (f"no header: columns are called {made[0]} to {made[-1]}",)
    found = {name: c.slice(begin) for name, c in zip(made, columns, strict=True)}
    return Cells(str(path), found, lambda row: f"line {numbers[row + begin]}", notes)


def _decoded(path: Path) -> str:
    raw = whole(path, TIMES)
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as e:
        line = raw[: e.start].count(b"\n") + 1
        raise DataError(f"{path} is not UTF-8: byte {e.start}, in line {line}, is {raw[e.start]:#04x}") from None


def _counted(path: Path, text: str, lines: Sequence[str], separator: str) -> tuple[np.ndarray, np.ndarray]:
    """The line that each row ends on, and how many cells it has."""
    if '"' not in text:
        rows = [(i, line.count(separator) + 1) for i, line in enumerate(lines, 1) if line.strip("\r")]
    else:
        table = csv.reader(io.StringIO(text), delimiter=separator)
        try:
            rows = [(table.line_num, len(row)) for row in table if row]
        except csv.Error as e:
            raise DataError(f"{path}, line {table.line_num}: {e}") from None
    return np.array([i for i, _ in rows]), np.array([n for _, n in rows])


def _has_header(columns: Sequence[Any], first: Sequence[str]) -> bool:
    """A first row is a header where it has a word above numbers, or where nothing is a number."""
    below = [present(c.slice(1, LOOKED)) for c in columns]
    numbers = [j for j, c in enumerate(below) if len(c) and floats(c).is_not_null().mean() > 0.5]
    words = [j for j in numbers if as_number(first[j]) is None and first[j].lower() not in MISSING]
    return bool(words) or not any(as_number(first[j]) is not None for j in numbers)


def as_number(cell: str) -> float | None:
    """A cell as a number, if it is one."""
    try:
        return float(cell)
    except ValueError:
        return None


def present(column: Any) -> Any:
    """The values of a column that are there."""
    return column.filter(there(column))


def there(column: Any) -> Any:
    """Which values of a column are there."""
    found = column.is_not_null()
    if column.dtype == package().String:
        found = found & ~column.str.to_lowercase().is_in(list(MISSING))
    elif column.dtype.is_float():
        found = found & column.is_not_nan()
    return found


def floats(column: Any) -> Any:
    """A column of text as numbers: null for what is none."""
    return column.cast(package().Float64, strict=False)


def _without_index(cells: Cells) -> Cells:
    """Without the column in which pandas writes the numbers of rows."""
    name = next(iter(cells.columns))
    numbers = cells.columns[name]
    if name not in ("", "Unnamed: 0", "__index_level_0__"):
        return cells
    counted = floats(numbers).to_numpy()
    rest = {n: c for n, c in cells.columns.items() if n != name}
    if np.array_equal(counted - counted[0], np.arange(len(counted))):
        note = f"column {name!r} is left out: it numbers the rows"
        return evolve(cells, columns=rest, notes=(*cells.notes, note))
    return evolve(cells, columns={"column_1": numbers, **rest}) if name == "" else cells
