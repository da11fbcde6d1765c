"""Columns of a table: what each holds, decided by all its rows, and its values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from attrs import evolve, frozen

from pipeline.errors import ConfigError, DataError
from pipeline.sources import dates, numbers, words
from pipeline.sources.frame import BLANKS, MISSING, TRUTHS, Frame, floats, package

NUMBER, TRUTH, DATE, TIME, CATEGORY, TEXT, OTHER = "number", "truth", "date", "time", "category", "text", "other"
WORDS = {NUMBER: "number", TRUTH: "truth value", DATE: "date", TIME: "time of day"}
MOSTLY = 0.9
"""Smallest share of the texts of a column of numbers or dates that are such; all others are errors."""
HALF = 0.5
"""A column of texts is noted if at least this share are numbers."""
EXACT = 1 << 53
"""Whole numbers up to this are exact as float64."""
SMALL = 10_000
"""Rows of a column that is read as it is."""


@frozen
class Readings:
    """Options for reading columns; by default, the rows decide."""

    categorical: str | None = None
    """Columns of categories, as `Frame.named` takes them."""
    numeric: str | None = None
    """Columns of numbers."""
    decimal: str | None = None
    """The decimal mark of texts."""
    day_first: bool | None = None
    """Whether 03/04/2020 is 3 April."""

    def __attrs_post_init__(self) -> None:
        if self.decimal not in (None, ".", ","):
            raise ConfigError(f"decimal={self.decimal!r} is neither '.' nor ','")


@frozen
class Reading:
    """What a column holds."""

    kind: str
    form: str = ""
    """Form of numbers or dates in texts."""
    note: str = ""
    unit: str = ""
    """Unit of numbers in texts, such as "%"."""


def readings(frame: Frame, wanted: Readings | None = None) -> dict[str, Reading]:
    """What each column holds. Raises DataError, with a cell, for one that can be read in two ways."""
    wanted = wanted or Readings()
    categorical, numeric = frame.named(wanted.categorical), frame.named(wanted.numeric)
    columns = {name: frame.column(name) for name in frame.data.columns}
    texts = {name: counted(frame, column) for name, column in columns.items() if column.dtype == package().String}
    forms = {
        name: numbers.forms(seen, counts, 0.0 if name in numeric else MOSTLY, wanted.decimal) if len(seen) else []
        for name, (seen, counts) in texts.items()
    }
    decimal = wanted.decimal or decimal_of(columns, texts, forms)
    found: dict[str, Reading] = {}
    for name, column in columns.items():
        if name in categorical:
            found[name] = Reading(CATEGORY)
        elif name in texts:
            found[name] = _of_texts(frame, name, *texts[name], forms[name], decimal, wanted)
        else:
            found[name] = _of_values(column)
        if name in numeric and found[name].kind != NUMBER:
            raise DataError(f"{frame.path}: column {name!r} has no numbers; leave it out of numeric=")
    return found


def counted(frame: Frame, column: Any) -> tuple[Any, Any]:
    """The different texts of a column, but for missing numbers, and how often each occurs."""
    table = column.drop_nulls().alias("text").value_counts(name="count")
    texts = table.to_series(0)
    if frame.missing == MISSING:
        table = table.filter(~_blank(texts))
    return table.to_series(0), table["count"]


def _blank(texts: Any) -> Any:
    """Whether texts are words for a missing number, date or truth value."""
    return texts.str.to_lowercase().is_in(list(BLANKS))


def decimal_of(columns: Mapping[str, Any], texts: Mapping[str, Any], forms: Mapping[str, list[str]]) -> str | None:
    """The decimal mark of a file, if its columns use one alone."""
    marks = set()
    for name, found in forms.items():
        if len(found) == 1 and (len(found[0]) > 1 or texts[name][0].str.contains(found[0], literal=True).any()):
            marks.add(found[0][0])
    for column in columns.values():
        if column.dtype.is_float() and not (column.drop_nulls() % 1 == 0).all():
            marks.add(".")
    return marks.pop() if len(marks) == 1 else None


def _of_values(column: Any) -> Reading:
    pl, dtype = package(), column.dtype
    if dtype.is_numeric():
        return Reading(DATE, dates.COMPACT) if _compact(column) else Reading(NUMBER)
    if dtype == pl.Boolean:
        return Reading(TRUTH)
    if dtype == pl.Enum:
        return Reading(CATEGORY)
    if dtype in (pl.Date, pl.Datetime):
        return Reading(DATE)
    return Reading(TIME) if dtype == pl.Time else Reading(OTHER, note=f"it holds values of type {dtype}")


def are_long(column: Any) -> bool:
    """Whether some numbers of a column are whole, and have more digits than float64."""
    if column.dtype == package().String:
        return bool(column.str.contains(numbers.LONG).any())
    return column.dtype.is_integer() and any(abs(end or 0) > EXACT for end in (column.min(), column.max()))


def _compact(column: Any) -> bool:
    """Whether all numbers of a column are days such as 20200131, or times such as 20200131235959."""
    seen = column.drop_nulls()
    if len(seen) < 2 or not any(f <= seen.min() <= seen.max() <= last for f, last in dates.COMPACTS):
        return False
    if not (seen % 1 == 0).all():
        return False
    days = seen.unique()
    return bool(len(days) > 1 and dates.dates(_whole(days), dates.COMPACT).is_not_null().all())


def _whole(column: Any) -> Any:
    pl = package()
    return column.cast(pl.Int64, strict=False).cast(pl.String)


def _of_texts(
    frame: Frame, name: str, texts: Any, counts: Any, forms: list[str], decimal: str | None, wanted: Readings
) -> Reading:
    if not len(texts):
        return Reading(CATEGORY)
    total = int(counts.sum())
    if forms:
        form = numbers.chosen(forms, decimal or ("." if "." in forms else frame.decimal))
        if form is None:
            raise refuse_decimal(frame, name, forms, "say which by decimal=',' or '.'")
        compact = form == "." and _compact(floats(texts)) and len(texts) == len(floats(texts).drop_nulls())
        return Reading(DATE, dates.COMPACT) if compact else Reading(NUMBER, form, unit=numbers.unit_of(texts))
    if are_truths(texts):
        return Reading(TRUTH)
    if days := dates.forms(texts, counts, MOSTLY, wanted.day_first):
        if len(days) > 1:
            raise refuse_days(frame, name, days, "say it by day_first=")
        return Reading(DATE, days[0])
    if int(counts.filter(dates.times(texts).is_not_null()).sum()) >= MOSTLY * total:
        return Reading(TIME)
    if bool(texts.str.contains(numbers.ZEROS).any()):
        return Reading(CATEGORY, note="its numbers have leading zeros")
    share = max(int(counts.filter(numbers.numbers(texts, f).is_not_null()).sum()) for f in (".,", ",."))
    if share < HALF * total:
        return Reading(TEXT if words.are_texts(texts, total) else CATEGORY)
    others = texts.filter(numbers.numbers(texts, ".").is_null()).head(3).to_list()
    return Reading(
        CATEGORY, note=f"{total - share:,} of {total:,} values are no numbers: {', '.join(map(repr, others))}"
    )


def refuse_decimal(frame: Frame, name: str, forms: list[str], instead: str) -> DataError:
    """An error that names the first cell that two forms read differently."""
    first, second = (numbers.numbers(frame.column(name), form) for form in forms[:2])
    row = int((first != second).fill_null(False).arg_max() or 0)
    return frame.refuse(row, name, f"has a comma that may be a decimal mark, or one of thousands; {instead}")


def refuse_days(frame: Frame, name: str, forms: list[str], instead: str) -> DataError:
    first = int(frame.column(name).is_not_null().arg_max() or 0)
    return frame.refuse(first, name, f"is a day as {' or '.join(forms)}, and no row tells which; {instead}")


def are_truths(column: Any) -> bool:
    """Whether a column holds nothing but two words for false and true, or truth values."""
    if column.dtype != package().String:
        return bool(column.dtype == package().Boolean)
    seen = column.drop_nulls().unique().str.to_lowercase()
    return any(seen.is_in(list(pair)).all() for pair in TRUTHS)


def with_values(frame: Frame, names: Iterable[str], readings: Mapping[str, Reading]) -> Frame:
    """A frame whose columns of numbers, dates and times, unless all values are equal, are read once, in `Frame.read`.

    Raises DataError for a cell of another kind.
    """
    pl, found = package(), []
    for name in names:
        known = frame.column(name).drop_nulls() if readings[name].kind in (NUMBER, DATE, TIME) else []
        if len(known) and (known != known[0]).any():
            found.append(pl.Series(name, values(frame, name, readings[name]), nan_to_null=True))
    return evolve(frame, data=frame.data.with_columns(found), read=frame.read | {column.name for column in found})


def values(frame: Frame, name: str, reading: Reading) -> np.ndarray:
    """A column as float64 (N,), NaN for a missing value; dates as days since 1970, times of day as seconds.

    Raises DataError for a cell of another kind.
    """
    column = frame.column(name)
    if name in frame.read:
        return np.asarray(column.fill_null(np.nan).to_numpy())
    read, known = _read(frame, column, reading)
    infinite = known & read.is_infinite().fill_null(False)
    if infinite.any():
        raise frame.refuse(int(infinite.arg_max() or 0), name, "is infinite; remove or bound it first")
    wrong = known & read.is_null()
    if wrong.any():
        others = column.filter(wrong)
        more = f", and neither are {len(others) - 1:,} others" if len(others) > 1 else ""
        wanted = WORDS[reading.kind] + " with '%'" * (reading.unit == numbers.PERCENT)
        raise frame.refuse(int(wrong.arg_max() or 0), name, f"is not a {wanted}{more}; name words for a "
                           "missing value by missing=, or the column by categorical=")  # fmt: skip
    read = read.fill_null(np.nan).to_numpy()
    return read if known.all() else np.where(known.to_numpy(), read, np.nan)


def _read(frame: Frame, column: Any, reading: Reading) -> tuple[Any, Any]:
    """Values as float64, null if there is none, and whether a cell has any."""
    known = column.is_not_null()
    if column.dtype != package().String:
        return _from_values(column, reading), known
    if frame.missing == MISSING:
        known &= ~_blank(column).fill_null(False)
    return _by_distinct(column, lambda texts: from_texts(texts, reading)), known


def _by_distinct(column: Any, function: Callable[[Any], Any]) -> Any:
    """A function of each text of a column, computed once for texts that repeat."""
    known = column.drop_nulls()
    few = len(known) > SMALL and known.head(SMALL).n_unique() < HALF * SMALL
    if not few or len(distinct := known.unique()) > HALF * len(known):
        return function(column)
    return function(distinct).gather(column.cast(package().Enum(distinct)).to_physical())


def unreadable(frame: Frame, readings: Mapping[str, Reading]) -> np.ndarray:
    """For each row, (N,) bool, whether a cell is of another kind than its column, or infinite."""
    bad = np.zeros(len(frame), bool)
    for name, reading in readings.items():
        if reading.kind in WORDS:
            read, known = _read(frame, frame.column(name), reading)
            bad |= (known & (read.is_null() | read.is_infinite().fill_null(False))).to_numpy()
    return bad


def from_texts(column: Any, reading: Reading) -> Any:
    pl = package()
    if reading.kind == NUMBER:
        return numbers.numbers(column, reading.form or ".", reading.unit)
    if reading.kind == DATE:
        return dates.dates(column, reading.form or "%Y-%m-%d")
    if reading.kind == TIME:
        return dates.times(column)
    truths = {word: float(i) for pair in TRUTHS for i, word in enumerate(pair)}
    return column.str.to_lowercase().replace_strict(truths, default=None, return_dtype=pl.Float64)


def _from_values(column: Any, reading: Reading) -> Any:
    pl, dtype = package(), column.dtype
    if reading.kind == DATE and dtype == pl.Date:  # a cast to Datetime panics beyond the year 262142
        return column.to_physical().cast(pl.Float64)
    if reading.kind == DATE and dtype == pl.Datetime:
        return column.cast(pl.Datetime("us")).dt.epoch("us") / 86_400e6
    if reading.kind == DATE and dtype.is_numeric():
        return dates.dates(_whole(column), dates.COMPACT)
    if reading.kind == TIME and dtype == pl.Time:
        return column.cast(pl.Int64) / 1e9
    fits = reading.kind in (NUMBER, TRUTH) and (dtype.is_numeric() or dtype == pl.Boolean)
    fits &= reading.unit != numbers.PERCENT  # 39 % may be 39 or 0.39
    if not fits:
        return pl.Series([None], dtype=pl.Float64).new_from_index(0, len(column))
    read = floats(column)
    return read if reading.kind == NUMBER else read.set(~(read.is_in([0.0, 1.0]) | read.is_nan()), None)


def names(frame: Frame, name: str, reading: Reading) -> Any:
    """A column's values as names of categories or classes, null if missing: whole numbers without a decimal point, and
    truth values of other formats as pandas writes them."""
    pl, column = package(), frame.column(name)
    if column.dtype == pl.Boolean:
        return column.replace_strict([False, True], ["False", "True"], return_dtype=pl.String)
    if reading.kind == NUMBER:
        column = pl.Series(values(frame, name, reading)).fill_nan(None)
    if not column.dtype.is_float():
        return column.cast(pl.String)
    return _whole(column).zip_with((column % 1 == 0).fill_null(True), column.cast(pl.String))
