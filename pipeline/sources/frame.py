"""Frame: a table as read from its file, before its columns are interpreted."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import evolve, frozen

from pipeline.errors import ConfigError, DataError, did_you_mean

if TYPE_CHECKING:
    import polars

MISSING = ("", "na", "n/a", "nan", "null", "none", "?")
"""Texts for a missing value, in lower case."""
TRUTHS = {"true": 1.0, "yes": 1.0, "t": 1.0, "y": 1.0, "false": 0.0, "no": 0.0, "f": 0.0, "n": 0.0}


def package() -> Any:
    """polars, imported when a table is read."""
    try:
        import polars
    except ModuleNotFoundError:
        raise ConfigError("tables are read by polars, which is missing: pip install polars") from None
    return polars


@frozen(eq=False)
class Frame:
    """Columns of text from CSV, or of values of one type each, with the place of each row in the file."""

    path: str
    data: polars.DataFrame
    lines: np.ndarray
    """(N,) numbers of the rows' lines, or of the rows, from 1."""
    unit: str = "row"
    """Unit of `lines`: "line" or "row"."""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.data)

    @property
    def columns(self) -> dict[str, polars.Series]:
        return {column.name: column for column in self.data.get_columns()}

    def column(self, name: str) -> polars.Series:
        """Raises DataError for an unknown name."""
        if name not in self.data.columns:
            raise DataError(f"{self.path} has no column {name!r}{did_you_mean(name, self.data.columns)}")
        return self.data[name]

    def take(self, rows: np.ndarray) -> Frame:
        """The rows at these indices."""
        return evolve(self, data=self.data[rows], lines=self.lines[rows])

    def without(self, names: Collection[str], *notes: str) -> Frame:
        return evolve(self, data=self.data.drop(names), notes=(*self.notes, *notes))

    def renamed(self, names: Mapping[str, str]) -> Frame:
        return evolve(self, data=self.data.rename(dict(names)))

    def where(self, row: int) -> str:
        """A row's place in the file: `line 17`."""
        return f"{self.unit} {self.lines[row]}"

    def refuse(self, row: int, name: str, why: str) -> DataError:
        """An error that names a cell."""
        return DataError(f"{self.path}, {self.where(row)}, column {name!r}: {self.data[name][row]!r} {why}")


def is_present(column: Any) -> Any:
    """A boolean for each value of a column: whether it is not missing."""
    present = column.is_not_null()
    if column.dtype == package().String:
        return present & ~column.str.to_lowercase().is_in(list(MISSING))
    return present & column.is_not_nan() if column.dtype.is_float() else present


def present(column: Any) -> Any:
    """The values of a column that are not missing."""
    return column.filter(is_present(column))


def floats(column: Any) -> Any:
    """A column as float64, null for texts that are no numbers."""
    return column.cast(package().Float64, strict=False)
