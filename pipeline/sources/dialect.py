"""The dialect of a table in text: separator, quotes, header and encoding, given or found in its first rows."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterable, Sequence
from itertools import islice, pairwise

from attrs import evolve, frozen

from pipeline.errors import ConfigError
from pipeline.sources.frame import BLANKS, MISSING, TRUTHS
from pipeline.sources.numbers import like

SEPARATORS = ",;\t|"
SPACES = " "
"""Separator: any number of blanks and tabs."""
SAMPLE = 100
"""Rows to look at."""
NAMES = 3
"""Numbers in a row that may be the names of columns, at least."""
YEARS = 1800, 2100
SEPARATOR_LINE = re.compile(r"\Asep=(.)\s*\n")
"""First line in which Excel names the separator."""
ENCODINGS = {
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16", rb"([^\0]\0){4}": "utf-16-le", rb"(\0[^\0]){4}": "utf-16-be",
}  # fmt: skip
"""First bytes of a file that is not UTF-8 -> its encoding."""


@frozen
class Dialect:
    """Options for reading a text; by default, its first rows decide."""

    header: bool | None = None
    """Whether the first row has the names."""
    separator: str | None = None
    encoding: str | None = None
    missing: tuple[str, ...] | None = None
    """Texts for a missing value, in lower case."""
    skip_bad: bool = False
    """Whether to leave out rows that can't be read."""
    quote: str = '"'
    escape: str | None = None

    def __attrs_post_init__(self) -> None:
        if self.separator is not None and len(self.separator) != 1:
            raise ConfigError(f"separator={self.separator!r} is not one character; write '\\t' for a tab")
        if self.encoding is not None:
            try:
                codecs.lookup(self.encoding)
            except LookupError:
                raise ConfigError(
                    f"encoding={self.encoding!r} is unknown; try 'cp1252', 'latin-1' or 'utf-16'"
                ) from None

    @property
    def words(self) -> tuple[str, ...]:
        """Texts for a missing value, in lower case."""
        return MISSING if self.missing is None else self.missing

    @property
    def decimal(self) -> str | None:
        """The decimal mark of 4,500: a file separated by commas writes thousands so."""
        return None if self.separator in (";", "\t") else "."

    def rows(self, lines: Iterable[str]) -> Iterable[list[str]]:
        """The cells of rows. Raises csv.Error for quotes that do not end with their cell."""
        assert self.separator is not None
        return csv.reader(
            lines, delimiter=self.separator, quotechar=self.quote, escapechar=self.escape, strict=True,
            doublequote=self.escape is None, skipinitialspace=True,
        )  # fmt: skip

    def found(self, text: str) -> Dialect:
        """The dialect, completed by the beginning of a file."""
        lines = text.split("\n")
        if self.separator is None and (said := SEPARATOR_LINE.match(text)):
            return evolve(self, separator=said[1]).found(text[said.end() :])
        quote = "'" if not _quotes(text, '"') and _quotes(text, "'") else '"'
        known = [evolve(self, quote=quote, separator=s) for s in self.separator or SEPARATORS]
        if f"\\{quote}" in text:
            known += [evolve(dialect, escape="\\") for dialect in known]
        ranked = [(score, dialect) for dialect in known if (score := dialect._score(lines)) is not None]
        if ranked:
            return max(ranked, key=lambda r: r[0])[1]
        if self.separator is None and _numbers_between_blanks(lines[:SAMPLE]):
            return evolve(self, separator=SPACES)
        return known[0]

    def _score(self, lines: Sequence[str]) -> tuple[float, float, int, bool] | None:
        """The rank of a separator: the share of rows with as many cells as most, the share of cells that are numbers or
        hold no other separator, and the number of columns; None if there is one column or quotes do not fit."""
        try:
            rows = [row for row in islice(self.rows(iter(lines)), SAMPLE) if row]
        except csv.Error:
            return None
        widths = [len(row) for row in rows]
        usual = max(set(widths), key=widths.count, default=1)
        if usual == 1 or widths.count(usual) < 0.8 * len(widths):
            return None
        cells = [cell for row in rows for cell in row]
        clean = sum(like(cell) or not any(s in cell for s in SEPARATORS) for cell in cells) / len(cells)
        return widths.count(usual) / len(widths), clean, usual, self.separator != ","


def encoding_of(first: bytes) -> str:
    """The encoding of a text, by its first bytes.

    >>> encoding_of("x,y".encode("utf-16")), encoding_of("x;y;".encode("utf-16-le")), encoding_of(b"x,y")
    ('utf-16', 'utf-16-le', 'utf-8')
    """
    return next((name for mark, name in ENCODINGS.items() if re.match(mark, first, re.DOTALL)), "utf-8")


def _quotes(text: str, quote: str) -> bool:
    """Whether a character is a quote: as many cells begin with it as end with it."""
    patterns = rf"(?:^|[{SEPARATORS}]){quote}", rf"{quote}(?:[{SEPARATORS}]|$)"
    begins, ends = (re.findall(pattern, text, re.MULTILINE) for pattern in patterns)
    return 0 < len(begins) == len(ends)


def _numbers_between_blanks(lines: Sequence[str]) -> bool:
    rows = [line.split() for line in lines if line.strip()]
    even = len(rows) > 1 and len({len(row) for row in rows}) == 1 and len(rows[0]) > 1
    return even and all(like(cell) for row in rows[1:] for cell in row)


STAMP = re.compile(
    r"(\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}|\d{1,2}[-. ]*[A-Za-z]{3,9}[-. ]*\d{2,4}|"
    r"[A-Za-z]{3,9} \d{1,2},? \d{4}|\d{1,2}:\d{2}).*"
)
"""A date or a time, roughly."""


def _kind(cell: str) -> str | None:
    """Number, date or truth value; None for other texts."""
    cell = cell.strip()
    if like(cell):
        return "number"
    if STAMP.fullmatch(cell):
        return "date"
    return "truth" if any(cell.lower() in pair for pair in TRUTHS) else None


def titles(rows: Sequence[Sequence[str]]) -> int:
    """The number of rows at the top that have nothing, or a word in the first of several columns alone."""
    alone = (not "".join(row[1:]).strip() and _kind(row[0]) is None for row in rows)
    return next((i for i, title in enumerate(alone) if not title), 0) if len(rows[0]) > 1 else 0


def is_header(rows: Sequence[Sequence[str]], words: Sequence[str]) -> bool:
    """Whether the first row has a word above a column of numbers, dates or truth values; without such a column, whether
    it has a word that its column has not. Numbers that count up may be names, too."""
    typed, missing, columns = False, {*words, *BLANKS}, []
    for first, *below in zip(*rows, strict=True):
        kinds = [_kind(cell) for cell in below if cell.strip().lower() not in missing]
        kind = max(set(kinds), key=kinds.count, default=None)
        if kind is not None and kinds.count(kind) > 0.5 * len(kinds):
            typed = True
            if first.strip().lower() not in missing and _kind(first) != kind:
                return True
            columns += [(first, below)] if kind == "number" and first.strip() else []
    if _count_up([first for first, _ in columns]):
        others = sum(_is_other(first, below) for first, below in columns)
        return others > len(columns) / 2 or (rows[0][0] == "" and columns[0][0] == "0")  # of pandas, with its index
    return not typed and not all(first in below for first, *below in zip(*rows, strict=True))


def _count_up(cells: Sequence[str]) -> bool:
    """Whether some numbers are whole, and rise in equal steps."""
    if len(cells) < NAMES or not all(re.fullmatch(r"\d{1,9}", cell) for cell in cells):
        return False
    steps = {int(b) - int(a) for a, b in pairwise(cells)}
    return len(steps) == 1 and steps.pop() > 0


def _is_other(name: str, cells: Sequence[str]) -> bool:
    """Whether a whole number is of another kind than those of its column: than decimal ones, or a year above others."""
    whole = [int(cell) for cell in cells if re.fullmatch(r"[-+]?\d{1,18}", cell.strip())]
    if len(whole) < len(cells) / 2:
        return True
    return YEARS[0] <= int(name) <= YEARS[1] and not min(whole) <= int(name) <= max(whole)
