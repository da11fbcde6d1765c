"""Grid: a block of a text whose rows have all the same number of cells, none of which holds a separator. Only such
blocks are parsed as a whole; most blocks of large files are.

Positions of bytes are found by numpy, several times faster than rows are split in Python.
"""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
from attrs import frozen

from pipeline.sources.frame import package

NEWLINE, PLUS, MINUS, ZERO, ONE = b"\n+-01"
BLANK = re.compile(r"^[^\S\n]*$", re.MULTILINE)
PLAIN = r"^[-+]?(?:0|[1-9]\d*)(?:\.\d*)?(?:[eE][-+]?\d+)?$"
"""A number with a decimal point."""
THOUSANDS = r"^[-+]?[1-9]\d{0,2}\.\d{3}$"
"""A number with a decimal point, or with a mark of thousands."""
SAMPLE = 100
"""Rows that are looked at for such."""


@frozen(eq=False)
class Grid:
    """The bytes of a block, without quotes, and the ends of its cells."""

    raw: np.ndarray
    """(bytes,) uint8; the last is a newline."""
    ends: np.ndarray
    """(rows, columns) positions of separators and newlines."""

    @classmethod
    def of(cls, text: str, separator: str, quote: str, width: int) -> Grid | None:
        """The grid of a block of whole lines; None if its rows do not have `width` cells each, one may be blank, or
        quotes do more than to enclose a cell."""
        if width < 2 or len(separator.encode()) > 1 or (separator.isspace() and BLANK.search(text.removesuffix("\n"))):
            return None
        raw = np.frombuffer(text.encode() + b"\n" * (not text.endswith("\n")), np.uint8)
        newlines = raw == NEWLINE
        marks = newlines | (raw == ord(separator))
        if quote in text:
            if any(blank in text for blank in (f"{separator} ", "\n ")) or text.startswith(" "):
                return None  # blanks before a cell, which are no part of it
            quotes = np.flatnonzero(raw == ord(quote))
            if not _enclose(quotes, marks):
                return None
            kept = np.ones(len(raw), bool)
            kept[quotes] = False
            raw, newlines, marks = raw[kept], newlines[kept], marks[kept]
        ends = np.flatnonzero(marks)
        rows, rest = divmod(len(ends), width)
        if rest or np.count_nonzero(newlines) > rows or not newlines[ends[width - 1 :: width]].all():
            return None
        return cls(raw, ends.reshape(-1, width))

    def numbers(self) -> list[int]:
        """Columns of numbers alone, or of nothing, that are no texts by any reading: 5 and -0.5e3, but not .5, 007 or
        1.234. The rest of each number has still to be parsed."""
        return [i for i in range(self.ends.shape[1]) if self._begins_with_numbers(i) and self._are_numbers(i)]

    def _are_numbers(self, column: int) -> bool:
        """Whether each cell begins with a digit, but for a sign and for zeros before others, or is empty."""
        begins = self._begins(column)
        rest = np.flatnonzero(self.raw[begins] - ONE >= 9)  # uint8: lower bytes wrap around
        rest = rest[begins[rest] < self.ends[rest, column]]
        first = self.raw[begins[rest]]
        digits = begins[rest] + ((first == PLUS) | (first == MINUS))
        first, second = self.raw[digits], self.raw[digits + (self.raw[digits] == ZERO)]
        return bool(((first - ZERO < 10) & ((first != ZERO) | (second - ZERO >= 10))).all())

    def _begins(self, column: int) -> np.ndarray:
        """Positions (rows,) of the first bytes of cells."""
        if column:
            return self.ends[:, column - 1] + 1
        return np.concatenate(([0], self.ends[:-1, -1] + 1))

    def _begins_with_numbers(self, column: int) -> bool:
        """Whether the first cells are plain numbers, and at least one has no point that could mark thousands."""
        places = zip(self._begins(column)[:SAMPLE].tolist(), self.ends[:SAMPLE, column].tolist(), strict=True)
        cells = [self.raw[b:e].tobytes().decode() for b, e in places if b < e]
        return all(re.match(PLAIN, cell) for cell in cells) and not all(re.match(THOUSANDS, cell) for cell in cells)

    def parsed(self, separator: str, numbers: list[int]) -> Any:
        """The rows as columns of texts, and of float64 for the `numbers`. Raises polars' ComputeError if one of these
        is none."""
        pl = package()
        schema = {str(i): pl.Float64 if i in numbers else pl.String for i in range(self.ends.shape[1])}
        return pl.read_csv(io.BytesIO(self.raw.data), separator=separator, has_header=False, schema=schema,
                           quote_char=None)  # fmt: skip


def _enclose(quotes: np.ndarray, marks: np.ndarray) -> bool:
    """Whether quotes stand in pairs around cells without marks."""
    opening, closing = quotes[::2], quotes[1::2]
    if len(opening) != len(closing) or not marks[closing + 1].all():
        return False
    before = opening - 1
    if not marks[before[before >= 0]].all():
        return False
    at = np.flatnonzero(marks)
    return bool((np.searchsorted(at, opening) == np.searchsorted(at, closing)).all())
