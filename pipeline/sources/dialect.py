"""The dialect of a table in text: separator, quotes, header and encoding, given or found in its first rows."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterable, Sequence
from itertools import islice

from attrs import evolve, frozen

from pipeline.errors import ConfigError
from pipeline.sources.frame import MISSING
from pipeline.sources.numbers import like

SEPARATORS = ",;\t|"
BLANKS = " "
"""Separator: any number of blanks and tabs."""
SAMPLE = 100
"""Rows to look at."""
MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
"""First bytes of a file -> its encoding."""


@frozen
class Dialect:
    """How a table is written; what is None is found."""

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
        first = lines[0].strip()
        if self.separator is None and re.fullmatch(r"sep=.", first):  # written by Excel
            return evolve(self, separator=first[-1]).found("\n".join(lines[1:]))
        # An apostrophe is a quote if each cell that begins with one ends with one.
        single = re.findall(rf"(?:^|[{SEPARATORS}])'([^\n{SEPARATORS}]*)", text, re.MULTILINE)
        quote = "'" if '"' not in text and single and all(cell.endswith("'") for cell in single) else '"'
        escape = "\\" if f"\\{quote}" in text and quote * 2 not in text else None
        known = evolve(self, quote=quote, escape=escape)
        if self.separator is not None:
            return known
        ranked = [(score, s) for s in SEPARATORS if (score := known._score(lines, s)) is not None]
        best = max(ranked, key=lambda r: r[0])[1] if ranked else None
        if best is None:
            split = [line.split() for line in lines[:SAMPLE] if line.strip()]
            even = len(split) > 1 and len({len(row) for row in split}) == 1 and len(split[0]) > 1
            if even and all(like(cell) for row in split[1:] for cell in row):
                best = BLANKS
        return evolve(known, separator=best or ",")

    def _score(self, lines: Sequence[str], separator: str) -> tuple[float, int, bool] | None:
        """A separator's rank: the share of cells that hold no other one, unless they are numbers, and the number of
        columns; None if all rows have one column, or the first rows differ in theirs."""
        others = [s for s in SEPARATORS if s != separator]
        try:
            rows = [row for row in islice(evolve(self, separator=separator).rows(iter(lines)), SAMPLE) if row]
        except csv.Error:
            return None
        widths = [len(row) for row in rows]
        if not widths or max(widths) == 1:
            return None
        usual = max(set(widths), key=widths.count)
        if usual == 1 or widths.count(usual) < 0.8 * len(widths):
            return None
        cells = [cell for row in rows for cell in row]
        clean = sum(like(cell) or not any(s in cell for s in others) for cell in cells) / len(cells)
        return (widths.count(usual) / len(widths), clean, usual, separator != ",")  # type: ignore[return-value]


def is_header(rows: Sequence[Sequence[str]], missing: Sequence[str]) -> bool:
    """Whether the first row has a word above a column of numbers, or no column has numbers."""
    numeric = False
    for first, *below in zip(*rows, strict=True):
        seen = [cell for cell in below if cell.strip().lower() not in missing]
        if seen and sum(map(like, seen)) > 0.5 * len(seen):
            numeric = True
            if first.strip().lower() not in missing and not like(first):
                return True
    return not numeric
