"""Spreadsheets of Excel and OpenDocument, read by python-calamine."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline import files, memory
from pipeline.errors import DataError, did_you_mean, needs
from pipeline.sources.cells import Row, text, typed
from pipeline.sources.csv import names_of
from pipeline.sources.dialect import SAMPLE, Dialect
from pipeline.sources.files import inflated, reading
from pipeline.sources.frame import Frame

CELL = 64
"""Bytes of a cell in memory."""
PLACE = re.compile(rb'<c [^>]{0,40}?r="([A-Z]{1,3})([0-9]{1,7})"')
"""The place of a cell in a sheet of Excel's."""


def blocks(path: Path, dialect: Dialect, part: str = "") -> Iterator[Frame]:
    """The rows that are not empty of a sheet: of the first, or of that named `part`.

    Raises DataError for an unknown sheet, and for a file that is no spreadsheet.
    """
    with reading(path, "is no spreadsheet, or damaged"):
        sheet, sheets = _sheet(path, part)
        sample = [["" if cell is None else text(cell) for cell in row] for _, row in islice(_rows(sheet), SAMPLE + 1)]
        if not sample:
            return
        names, above, notes = names_of(path, sample, dialect)
        if not part and len(sheets) > 1:
            others = ", ".join(name for name in sheets if name != sheet.name)
            notes += (f"sheet {sheet.name!r} is read; others are {others}, as excel:{path}?{sheets[1]}",)

        def table() -> Iterator[Row]:
            for place, row in islice(_rows(sheet), above, None):
                yield place, dict(zip(names, row, strict=True))

        yield from typed(path, table, names, notes=notes, missing=dialect.words)


def _sheet(path: Path, part: str) -> tuple[Any, list[str]]:
    """A sheet, and the names of all."""
    with needs("spreadsheets are read by python-calamine", "python-calamine"):
        from python_calamine import CalamineWorkbook
    _check(path)
    book = CalamineWorkbook.from_path(files.plain(path))
    if part and part not in book.sheet_names:
        near = did_you_mean(part, book.sheet_names)
        raise DataError(f"{path} has no sheet {part!r}{near}")
    return book.get_sheet_by_name(part) if part else book.get_sheet_by_index(0), book.sheet_names


def _rows(sheet: Any) -> Iterator[tuple[int, list[Any]]]:
    """The rows that are not empty, with their numbers in the sheet. Rows of a merged cell all have its value, in its
    first column."""
    first = (sheet.start or (0, 0))[1]
    merged: dict[int, tuple[int, Any]] = {}
    begins = defaultdict[int, list[tuple[int, int]]](list)
    for (top, column), (end, _) in getattr(sheet, "merged_cell_ranges", None) or ():
        begins[top].append((column - first, end))
    for place, row in enumerate(sheet.iter_rows()):
        cells = [None if cell == "" else cell for cell in row]
        if any(cell is not None for cell in cells):
            for column, (end, value) in merged.items():
                cells[column] = value if place <= end else cells[column]
            merged |= {column: (end, cells[column]) for column, end in begins[place] if column < len(cells)}
            yield place + 1, cells


def _check(path: Path) -> None:
    """Refuse a sheet that does not fit in memory, if one cell far from the others makes it so as well."""
    with files.opened(path) as file:
        first, size = file.read(2), path.stat().st_size
    if first != b"PK":  # not compressed
        memory.check(4 * size, str(path))
        return
    size, free = 0, memory.free()
    last: dict[str, list[int]] = {}
    for name, block in inflated(path):
        size += len(block)
        places = PLACE.findall(block)
        if places:
            rows, columns = max(int(row) for _, row in places), max(_number(column) for column, _ in places)
            last[name] = [max(a, b) for a, b in zip(last.get(name, [0, 0]), (rows, columns), strict=True)]
        need = size + CELL * max((rows * columns for rows, columns in last.values()), default=0)
        if need > free:
            memory.check(need, str(path))


def _number(column: bytes) -> int:
    """The number of a column called A to XFD."""
    number = 0
    for letter in column:
        number = 26 * number + letter - 64
    return number
