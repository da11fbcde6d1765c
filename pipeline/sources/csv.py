"""Tables as text, such as CSV."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import DataError
from pipeline.sources.dialect import SAMPLE, SEPARATOR_LINE, SPACES, Dialect, encoding_of, is_header, titles
from pipeline.sources.files import reading, unpacked
from pipeline.sources.frame import Frame, package
from pipeline.sources.grid import Grid

BLOCK = 1 << 22
"""Bytes of a block."""
LONGEST = 64 << 20
"""Characters of one row."""
NUMBER = re.compile(r"[-+]?\d")


def blocks(path: Path, dialect: Dialect, *, numbers: bool = False) -> Iterator[Frame]:
    """The rows of a file in blocks, perhaps none in the first. With `numbers`, columns of plain numbers alone may be
    float64 in any but the first, and null if missing.

    Raises DataError, with the line, for a row of another width and for bytes of another encoding.
    """
    texts = _texts(path, dialect.encoding)
    first = next(texts, "")
    dialect, first = dialect.found(first), SEPARATOR_LINE.sub("\n", first)
    numbers = numbers and "" in dialect.words and not any(NUMBER.match(word) for word in dialect.words)
    names: list[str] = []
    for data, lines, skipped in _parsed(path, dialect, chain([first], texts), numbers):
        notes: tuple[str, ...] = ()
        if not names:
            names, above, notes = names_of(path, data.head(SAMPLE + 1).rows(), dialect)
            data, lines = data.slice(above), lines[above:]
        data.columns = names
        yield Frame(str(path), data, lines, "line", notes, dialect.words, dialect.decimal, skipped)


def _texts(path: Path, encoding: str | None) -> Iterator[str]:
    """A file's text in blocks of whole lines, with one kind of line end."""
    text, byte, line = "", 0, 1
    decoder: Any = None
    with unpacked(path) as file:
        while True:
            raw = file.read(BLOCK)
            if decoder is None:
                marked = raw.startswith(codecs.BOM_UTF8)
                encoding = "utf-8" if marked else encoding or encoding_of(raw)
                raw = raw.removeprefix(codecs.BOM_UTF8)
                decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(), translate=True)
            try:
                text += decoder.decode(raw, final=not raw)
            except UnicodeError as e:
                if not isinstance(e, UnicodeDecodeError):
                    raise DataError(f"{path} is not {encoding}: {e}") from None
                at = byte + len(raw) - len(e.object) + e.start
                line += text.count("\n") + e.object[: e.start].count(b"\n")
                where = f"byte {at}, in line {line}, is {e.object[e.start]:#04x}"
                other = "name its encoding by encoding=, such as 'cp1252' or 'utf-16'"
                raise DataError(f"{path} is not {str(encoding).upper()}: {where}; {other}") from None
            byte += len(raw)
            end = text.rfind("\n") + 1 if len(raw) == BLOCK else len(text) if not raw else 0
            if end:
                line += text.count("\n", 0, end)
                yield text[:end]
                text = text[end:]
            if not raw:
                return
            if len(text) > LONGEST:
                raise DataError(f"{path} has a row of more than {LONGEST >> 20} MB; is it a table?")


def _parsed(
    path: Path, dialect: Dialect, texts: Iterator[str], numbers: bool
) -> Iterator[tuple[Any, np.ndarray, tuple[int, ...]]]:
    """The rows of each block as columns of text, or of `numbers`, with the last line of each row."""
    pl, line, width = package(), 0, 0
    assert dialect.separator is not None
    for text in texts:
        columns = width or text.partition("\n")[0].count(dialect.separator) + 1
        with reading(path, "can't be read as a table"):
            data = _whole(dialect, text, columns, numbers and width > 0)
        if data is not None:
            width = columns
            yield data, np.arange(line, line + len(data)) + 1, ()
            line += len(data)
            continue
        if by_hand := dialect.quote in text or dialect.escape is not None or len(dialect.separator.encode()) > 1:
            block = Lines(text, texts)
            rows, lines = _rows(path, dialect, block, line)
            widths = np.array([len(row) for row in rows])
            line += block.count
        else:
            split = dialect.separator != SPACES
            rows = [row if split else "\t".join(row.split()) for row in text.split("\n")]
            kept = [bool(row.strip()) or (split and dialect.separator in row) for row in rows]
            lines = np.flatnonzero(kept) + line + 1
            rows = [row for row, keep in zip(rows, kept, strict=True) if keep]
            widths = np.array([row.count(dialect.separator if split else "\t") + 1 for row in rows])
            line += text.count("\n")
        if not rows:
            continue
        first, skipped = width or int(widths[0]), ()
        width = width or int(np.bincount(widths[:SAMPLE]).argmax())
        if (widths != width).any():
            if not dialect.skip_bad or 1 < first != width:
                raise _ragged(path, lines, widths, width, first)
            skipped = tuple(lines[widths != width].tolist())
            rows, lines = [r for r, w in zip(rows, widths, strict=True) if w == width], lines[widths == width]
        if by_hand:
            data = pl.DataFrame([pl.Series(str(i), column) for i, column in enumerate(zip(*rows, strict=True))])
        else:
            content = io.BytesIO("\n".join(rows).encode())
            with reading(path, "can't be read as a table"):
                data = pl.read_csv(content, separator=dialect.separator if split else "\t", has_header=False,
                                   infer_schema=False, quote_char=None)  # fmt: skip
        yield data.fill_null(""), lines, skipped


def _whole(dialect: Dialect, text: str, width: int, numbers: bool) -> Any:
    """The rows of a block that is a Grid of `width` columns; None for another."""
    if dialect.escape is not None or dialect.separator in (None, SPACES):
        return None
    grid = Grid.of(text, dialect.separator, dialect.quote, width)
    if grid is None:
        return None
    pl = package()
    try:
        data = grid.parsed(dialect.separator, grid.numbers() if numbers else [])
    except pl.exceptions.ComputeError:  # a cell that only begins like a number
        data = grid.parsed(dialect.separator, [])
    return data.with_columns(pl.col(pl.String).fill_null(""))


class Lines:
    """The lines of a block and, if its last row continues, lines of the next blocks."""

    def __init__(self, text: str, rest: Iterator[str]) -> None:
        self.lines, self.rest = iter(io.StringIO(text)), rest
        self.count = 0
        self.within = False
        """Whether a row has begun."""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self.lines, None)
        while line is None and self.within:
            self.lines = iter(io.StringIO(next(self.rest)))
            line = next(self.lines, None)
        if line is None:
            raise StopIteration
        self.within = True
        self.count += 1
        return line


def _rows(path: Path, dialect: Dialect, lines: Lines, first: int) -> tuple[list[Any], np.ndarray]:
    """The rows of some lines, the first of which is number `first` + 1, and the last line of each row."""
    rows: list[Any] = []
    last: list[int] = []
    reader = iter(dialect.rows(lines))
    while True:
        lines.within = False
        try:
            row = next(reader, None)
        except csv.Error as e:
            raise DataError(f"{path}, line {first + lines.count}: {e}") from None
        if row is None:
            return rows, np.array(last)
        if len(row) > 1 or (row and (row[0].strip() or not row[0])):
            rows.append(row)
            last.append(first + lines.count)


def _ragged(path: Path, lines: np.ndarray, widths: np.ndarray, width: int, first: int) -> DataError:
    wrong = np.flatnonzero(widths != width)
    others = "the first row has" if first == width else "most have"
    where = f"{path}, line {lines[wrong[0]]}: {widths[wrong[0]]} columns, but {others} {width}"
    if 1 < first != width:
        return DataError(f"{where}; if it has the names, give each column one, and otherwise delete it")
    return DataError(f"{where} ({len(wrong)} such row{'s' * (len(wrong) > 1)}); skip_bad=True leaves such out")


def names_of(path: Path, rows: Sequence[Sequence[str]], dialect: Dialect) -> tuple[list[str], int, tuple[str, ...]]:
    """The names of the columns of a table that begins with some rows, the number of rows above its values, and notes on
    these."""
    above = titles(rows)
    if not is_header(rows[above:], dialect.words):  # a row without most of its values
        above = 0
    notes = tuple(f"{row[0]!r} is left out: it is a title above the table" for row in rows[:above] if row[0])
    rows = rows[above:]
    named = is_header(rows, dialect.words) if dialect.header is None else dialect.header
    names = _column_names(path, rows[0], named)
    if not named:
        notes += (f"no header: columns are called {names[0]} to {names[-1]}",)
    return names, above + named, notes


def _column_names(path: Path, first: Any, named: bool) -> list[str]:
    names = [(named and name.strip()) or f"column_{i}" for i, name in enumerate(first, 1)]
    if named and not first[0].strip():
        names[0] = ""  # an index, as written by pandas
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path} has two columns {twice!r}; give them different names")
    return names
