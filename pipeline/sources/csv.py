"""Tables as text: CSV with any of the separators , ; tab |, gzipped or not."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import DataError
from pipeline.sources.files import reading, unpacked, whole
from pipeline.sources.frame import Frame, floats, is_present, package, present

BLOCK = 1 << 21
"""Bytes of a block."""
LONGEST = 64 << 20
"""Bytes of one row."""
COPIES = 4
"""Copies of a text in memory while it becomes a table."""
HEADER_ROWS = 100
"""Rows that are compared with the first to tell whether it is a header."""


def blocks(path: Path, header: bool | None, *, at_once: bool) -> Iterator[Frame]:
    """The rows of a file, as one Frame or in blocks. By default, the first rows tell whether there is a `header`.

    Raises DataError, with the line, for a row of another width and for bytes that are not UTF-8.
    """
    pl = package()
    names: list[str] = []
    separator, line = "", 0
    for text in _texts(path, at_once):
        separator = separator or max(",;\t|", key=text.partition("\n")[0].count)
        lines, widths = _measured(path, text, separator, line)
        line += text.count("\n")
        if not len(lines):
            continue
        _refuse_ragged(path, lines, widths, len(names) or widths[0])
        # An empty line is a missing value to polars, if there is one column.
        kept = text if '"' in text else "\n".join(row for row in text.split("\n") if row.strip("\r"))
        options = {"has_header": False, "infer_schema": False, "truncate_ragged_lines": False}
        with reading(path, "can't be read as a table"):
            data = pl.read_csv(io.BytesIO(kept.encode()), separator=separator, **options)
        data = data.select(pl.all().str.strip_chars())
        notes: tuple[str, ...] = ()
        if not names:
            first = [cell or "" for cell in data.row(0)]
            named = _is_header(data) if header is None else header
            names = _names(path, first, named)
            if not named:
                notes = (f"no header: columns are called {names[0]} to {names[-1]}",)
            data, lines = data.slice(int(named)), lines[int(named) :]
        data.columns = names
        if len(data):
            yield Frame(str(path), data, lines, "line", notes)


def _texts(path: Path, at_once: bool) -> Iterator[str]:
    """A file's text in blocks of whole rows, with one kind of line end."""
    byte, line = 0, 1
    for raw in [whole(path, COPIES)] if at_once else _bytes(path):
        try:
            text = raw.removeprefix(codecs.BOM_UTF8 if byte == 0 else b"").decode()
        except UnicodeDecodeError as e:
            at = len(raw) - len(e.object) + e.start
            where = f"byte {byte + at}, in line {line + raw[:at].count(10)}"
            raise DataError(f"{path} is not UTF-8: {where}, is {raw[at]:#04x}") from None
        byte, line = byte + len(raw), line + raw.count(b"\n")
        yield text.replace("\r\n", "\n")


def _bytes(path: Path) -> Iterator[bytes]:
    """A file's bytes in blocks that end with a row: at a line end outside of quotes."""
    kept = b""
    with unpacked(path) as file:
        while raw := file.read(BLOCK):
            kept += raw
            end = kept.rfind(b"\n") + 1
            if end and kept.count(b'"', 0, end) % 2 == 0:
                yield kept[:end]
                kept = kept[end:]
            if len(kept) > LONGEST:
                raise DataError(f"{path} has a row of more than {LONGEST >> 20} MB; is a quote left open?")
    if kept:
        yield kept


def _measured(path: Path, text: str, separator: str, line: int) -> tuple[np.ndarray, np.ndarray]:
    """The last line of each row, counted on from `line`, and the number of its cells."""
    if '"' not in text:
        rows = [(i, row.count(separator) + 1) for i, row in enumerate(text.split("\n"), 1) if row.strip("\r")]
    else:
        reader = csv.reader(io.StringIO(text), delimiter=separator)
        try:
            rows = [(reader.line_num, len(row)) for row in reader if row]
        except csv.Error as e:
            raise DataError(f"{path}, line {line + reader.line_num}: {e}") from None
    lines, widths = np.array(rows, np.int64).reshape(-1, 2).T
    return lines + line, widths


def _refuse_ragged(path: Path, lines: np.ndarray, widths: np.ndarray, width: int) -> None:
    wrong = np.flatnonzero(widths != width)
    if len(wrong):
        first = f"line {lines[wrong[0]]}: {widths[wrong[0]]} columns, but the first row has {width}"
        raise DataError(f"{path}, {first} ({len(wrong)} such row{'s' * (len(wrong) > 1)})")


def _names(path: Path, first: list[str], named: bool) -> list[str]:
    names = [(named and name) or f"column_{i}" for i, name in enumerate(first, 1)]
    if named and first[0] == "":
        names[0] = ""  # an index, as written by pandas
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path} has two columns {twice!r}; give them different names")
    return names


def _is_header(data: Any) -> bool:
    """Whether the first row has a word above a column of numbers, or no column has numbers."""
    pl = package()
    below = [present(column) for column in data.slice(1, HEADER_ROWS)]
    numeric = [j for j, column in enumerate(below) if len(column) and floats(column).is_not_null().mean() > 0.5]
    above = pl.Series([data.row(0)[j] for j in numeric], dtype=pl.String)
    numbers = floats(above).is_not_null()
    return bool((is_present(above) & ~numbers).any() or not numbers.any())
