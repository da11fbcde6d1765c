"""Rows of Python values as typed columns, for formats that keep a type with each cell."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from pipeline.sources.files import reading
from pipeline.sources.frame import Frame, package

ROWS = 1 << 16
"""Most rows of a block."""
BLOCK = 1 << 24
"""Most bytes of a block, roughly."""
SAMPLE = 8
"""One of so many rows is measured for that."""
CELL = 32
"""Bytes of a cell without its text, roughly."""
WIDEST = 1 << 63

Row: TypeAlias = tuple[int, Mapping[str, Any]]
"""The place of a row in its file, and its cells by column. A column that it has not is missing."""
Kinds: TypeAlias = dict[str, set[type]]
"""Types of the values of each column, in the order of the columns in the row that has the most."""


def typed(
    path: Path, rows: Callable[[], Iterator[Row]], names: Sequence[str] = (), *, unit: str = "row",
    notes: tuple[str, ...] = (), missing: tuple[str, ...] = ("",),
) -> Iterator[Frame]:  # fmt: skip
    """Frames of some rows, whose columns have one type each in all of them; `names` are columns that may have no rows.

    `rows` is called twice for a file of more than one block: the first time for the types.
    """
    kinds: Kinds = {name: set() for name in names}
    widest = len(names)
    with reading(path, "can't be read as a table"):
        blocks = _blocks(rows())
        first = next(blocks, [])
        second = next(blocks, None)
        for block in [first] if second is None else chain([first, second], blocks):
            for _, row in block:
                if len(row) > widest or not row.keys() <= kinds.keys():
                    both = ([*row], [*kinds]) if len(row) > widest else ([*kinds], [*row])
                    kinds = {name: kinds.get(name, set()) for name in _in_order(*both)}
                    widest = max(widest, len(row))
            for name in kinds:
                kinds[name].update(kinds_of([row.get(name) for _, row in block]))
        for block in [first] if second is None else _blocks(rows()):
            columns = [series(name, [row.get(name) for _, row in block], seen) for name, seen in kinds.items()]
            lines = np.array([place for place, _ in block], np.int64)
            yield Frame(str(path), package().DataFrame(columns), lines, unit, notes, missing)


def _in_order(known: list[str], names: list[str]) -> list[str]:
    """Some names with further ones, each before the name that follows it.

    >>> _in_order(["b", "d"], ["a", "b", "c", "d", "e"])
    ['a', 'b', 'c', 'd', 'e']
    """
    at = len(known)
    for name in reversed(names):
        if name in known:
            at = known.index(name)
        else:
            known.insert(at, name)
    return known


def _blocks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    block: list[Row] = []
    size = 0
    for row in rows:
        if len(block) % SAMPLE == 0:
            size += SAMPLE * sum(len(v) + CELL if isinstance(v, str | bytes) else CELL for v in row[1].values())
        block.append(row)
        if len(block) == ROWS or size > BLOCK:
            yield block
            block, size = [], 0
    if block:
        yield block


def kinds_of(values: list[Any]) -> set[type]:
    """The types of some values, for `series`: whole numbers above 64 bits are floats, and decimals, too."""
    kinds = set(map(type, values))
    if Decimal in kinds or (int in kinds and any(type(v) is int and not -WIDEST <= v < WIDEST for v in values)):
        kinds = kinds - {Decimal} | {float}
    return kinds


def series(name: str, values: list[Any], kinds: set[type]) -> Any:
    """A column with one type for its kinds of values: whole numbers and floats are floats, dates and times are times,
    and anything else that differs is text."""
    pl, kinds = package(), kinds - {type(None)}
    for wanted, dtype in (
        ({bool}, pl.Boolean), ({int}, pl.Int64), ({int, float}, pl.Float64), ({str}, pl.String), ({bytes}, pl.Binary),
        ({date}, pl.Date), ({time}, pl.Time), ({timedelta}, pl.Duration),
    ):  # fmt: skip
        if kinds and kinds <= wanted:
            if float in kinds:
                values = [None if v is None else _float(v) for v in values]
            return pl.Series(name, values, dtype)
    if kinds and kinds <= {date, datetime}:
        return pl.Series(name, [_time(v) for v in values], pl.Datetime("us"))
    if kinds == {list}:
        return pl.Series(name, [None if v is None else [text(x) for x in v] for v in values], pl.List(pl.String))
    if kinds == {dict}:
        nested = [None if v is None else {"json": text(v)} for v in values]
        return pl.Series(name, nested, pl.Struct({"json": pl.String}))
    return pl.Series(name, [None if v is None else text(v) for v in values], pl.String)


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def _time(value: Any) -> Any:
    """A date as its midnight; a time with a zone in UTC, without it."""
    if not isinstance(value, datetime):
        return value if value is None else datetime(value.year, value.month, value.day)
    offset = value.utcoffset()
    return value.replace(tzinfo=None) - offset if offset is not None else value


def text(value: Any) -> str:
    """A value in a column of several types: whole numbers without a decimal point, others as in JSON or ISO 8601.

    >>> text(5.0), text(True), text("a"), text(2.5)
    ('5', 'true', 'a', '2.5')
    """
    if isinstance(value, float) and abs(value) < WIDEST and value % 1 == 0:
        return str(int(value))
    if value is None or isinstance(value, bool | list | dict):
        return json.dumps(value)
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
