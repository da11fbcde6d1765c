"""Frame: a table as read from its file, before its columns are interpreted."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import evolve, frozen

from pipeline.errors import DataError, did_you_mean, needs

if TYPE_CHECKING:
    import polars

MISSING = ("", "na", "n/a", "nan", "null", "none", "?", "#n/a")
"""Texts for a missing value in a format without null, in lower case."""

BLANKS = ("-", "--", ".", "n.a.", "nat", "<na>", "\\n", "#div/0!", "#value!", "#null!", "#ref!", "#name?", "#num!")
"""Further texts for a missing number, date or truth value, in such a format."""
TRUTHS = (("false", "true"), ("no", "yes"), ("f", "t"), ("n", "y"), ("off", "on"))


def package() -> Any:
    """polars, imported when a table is read."""
    with needs("tables are read and written by polars, which is missing", "polars"):
        import polars
    return polars


@frozen(eq=False)
class Frame:
    """Columns of text, or of values of one type each, with the place of each row in the file."""

    path: str
    data: polars.DataFrame
    """Cells as they are in the file."""
    lines: np.ndarray
    """(N,) numbers of the rows' lines, or of the rows, from 1."""
    unit: str = "row"
    """Unit of `lines`: "line" or "row"."""
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ("",)
    """Texts for a missing value, in lower case; in other columns, the values that they name."""
    decimal: str | None = "."
    """Decimal mark where a text like 4,500 leaves it open; None to refuse it."""
    skipped: tuple[int, ...] = ()
    """Lines that could not be read and were left out."""
    plain: bool = False
    """Whether the cells are as `column` gives them."""
    read: frozenset[str] = frozenset()
    """Columns whose cells are as `columns.values` gives them, but null if missing."""

    def __len__(self) -> int:
        return len(self.data)

    @property
    def cells(self) -> dict[str, polars.Series]:
        """Columns by name, as they are in the file."""
        return {column.name: column for column in self.data.get_columns()}

    def column(self, name: str) -> Any:
        """A column with one type for each kind of value, and null for each missing one: texts without blanks around
        them, decimals as float64, times as UTC without a zone.

        Raises DataError for an unknown name.
        """
        if name not in self.data.columns:
            raise DataError(f"{self.path} has no column {name!r}{did_you_mean(name, self.data.columns)}")
        return self.data[name] if self.plain else plain(self.data[name], self.missing)

    def named(self, names: str | None) -> list[str]:
        """Columns by a list `a,b`, in which a name may be a pattern such as `x_*`, or hold a comma.

        Raises DataError for an unknown name.
        """
        found: list[str] = []
        rest = (names or "").strip()
        while rest:
            whole = [c for c in self.data.columns if rest == c or rest.startswith((f"{c},", f"{c} ,"))]
            name = max(whole, key=len) if whole else rest.partition(",")[0].strip()
            fitting = [c for c in self.data.columns if fnmatchcase(c, name)] if not whole else [name]
            if not fitting:
                self.column(name)
            found += fitting
            rest = rest[len(name) :].lstrip().removeprefix(",").strip()
        return list(dict.fromkeys(found))

    def in_plain(self) -> Frame:
        """All columns as `column` gives them, to read them several times."""
        columns = [self.column(name).rechunk() for name in self.data.columns]
        return evolve(self, data=package().DataFrame(columns), plain=True)

    def slice(self, first: int, count: int) -> Frame:
        """`count` rows from number `first` on, or all that are left."""
        return evolve(self, data=self.data.slice(first, count), lines=self.lines[first : first + count])

    def take(self, rows: np.ndarray) -> Frame:
        """The rows at these indices."""
        return evolve(self, data=self.data[rows], lines=self.lines[rows])

    def without(self, names: Collection[str], *notes: str) -> Frame:
        return evolve(self, data=self.data.drop(names), notes=(*self.notes, *notes))

    def where(self, row: int) -> str:
        """A row's place in the file: `line 17`."""
        return f"{self.unit} {self.lines[row]}"

    def refuse(self, row: int, name: str, why: str) -> DataError:
        """An error that names a cell."""
        return DataError(f"{self.path}, {self.where(row)}, column {name!r}: {self.data[name][row]!r} {why}")


def plain(column: Any, missing: Collection[str] = ("",)) -> Any:
    """A column as `Frame.column` gives it."""
    pl = package()
    dtype = column.dtype
    if dtype == pl.Categorical:
        column, dtype = column.cast(pl.String), pl.String
    if dtype == pl.String:
        column = column.str.strip_chars()
        numbers = _named(missing, pl.Float64)
        if not numbers and not (column.str.len_chars() <= max(map(len, missing), default=0)).any():
            return column
        absent = column.str.to_lowercase().is_in(list(missing)).fill_null(False)
        if numbers:  # "-999.0" for -999
            absent |= floats(column).is_in(numbers).fill_null(False)
        return column.set(absent, None) if absent.any() else column
    if dtype == pl.Decimal or dtype.is_float():
        column = column.cast(pl.Float64)
        column = column.fill_nan(None) if column.is_nan().any() else column
    if dtype == pl.Datetime and dtype.time_zone is not None:
        column = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    if dtype == pl.Duration:
        column = column.dt.total_microseconds() / 1e6
    named = _named(missing, column.dtype)
    return column.set(column.is_in(named).fill_null(False), None) if named else column


def _named(texts: Collection[str], dtype: Any) -> list[Any]:
    """The numbers, days or declared categories that some texts name."""
    pl = package()
    if dtype == pl.Enum:
        return [name for name in dtype.categories if name and name.lower() in texts]
    column = pl.Series([text for text in texts if text not in ("", "nan")], dtype=pl.String)
    if dtype.is_numeric():
        return list(column.cast(dtype, strict=False).drop_nulls())
    days = dtype in (pl.Date, pl.Datetime)
    return list(column.str.to_date("%Y-%m-%d", strict=False).drop_nulls().cast(dtype)) if days else []


def floats(column: Any) -> Any:
    """A column as float64, null for texts that are no numbers."""
    return column.cast(package().Float64, strict=False)


def most_read(read: Mapping[str, Any], counts: Any, share: float) -> list[str]:
    """Forms that read the most of some different texts, each occurring `counts` times, and at least a `share` of all;
    several if they read different values. `read` has the values by form, null for texts of another form."""
    rows = {form: int(counts.filter(values.is_not_null()).sum()) for form, values in read.items()}
    most = max(rows.values())
    distinct: list[str] = []
    if most and most >= share * int(counts.sum()):
        for form, values in read.items():
            if rows[form] == most and not any(values.equals(read[other]) for other in distinct):
                distinct.append(form)
    return distinct
