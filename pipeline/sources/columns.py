"""Columns: what is learned of each column of the training rows, and what becomes of any rows by it.

All that is learned is JSON, under `columns` of a data set's `fitted`, so that other rows can be prepared as those were.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.sources.cells import TRUTHS, Cells, floats, package, present, there

NUMBER, TRUTH, DATE, CATEGORY = "number", "truth", "date", "category"
MOSTLY = 0.9
"""A column of text has a kind where so many of its values are of it; the others are errors."""
MANY = 100
"""So many different texts are no categories, where most rows have one of their own."""

Fitted = dict[str, Any]


def fit(cells: Cells, name: str, rows: np.ndarray) -> Fitted | str:
    """What is learned of a column of the training rows, or why it is left out."""
    column = cells.columns[name].gather(rows)
    seen = present(column)
    if not len(seen):
        return "it has no values"
    kind = kind_of(column)
    if kind == CATEGORY:
        names = sorted(seen.cast(package().String).unique().to_list())
        if len(names) > MANY and len(names) > len(seen) / 2:
            return f"{len(names):,} different texts in {len(seen):,} rows"
        if len(names) == 1:
            return f"all its values are {names[0]!r}"
        return {"name": name, "kind": kind, "categories": names}
    values, found = numbers(cells, name, kind)
    seen_values = values[rows][found[rows]]
    if (seen_values == seen_values[0]).all():
        return f"all its values are {seen[0]}"
    mean, std = float(seen_values.mean()), float(seen_values.std())
    return {"name": name, "kind": kind, "mean": mean, "std": std, "missing": bool((~found[rows]).any())}


def kind_of(column: Any) -> str:
    """What the values of a column are."""
    pl, dtype = package(), column.dtype
    if dtype.is_numeric():
        return NUMBER
    if dtype == pl.Boolean:
        return TRUTH
    if dtype.is_temporal():
        return DATE
    if dtype != pl.String:
        return CATEGORY
    seen = present(column)
    if floats(seen).is_not_null().mean() >= MOSTLY:
        return NUMBER
    if seen.str.to_lowercase().is_in(list(TRUTHS)).all():
        return TRUTH
    return DATE if _dates(seen).is_not_null().mean() >= MOSTLY else CATEGORY


def numbers(cells: Cells, name: str, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """A column's values as float64, and which of them are there. Raises DataError for a cell that is of another
    kind."""
    pl, column = package(), cells.columns[name]
    found = there(column)
    if kind == DATE:
        dates = _dates(column) if column.dtype == pl.String else column.cast(pl.Datetime("us"))
        values = dates.dt.epoch("us") / 86_400e6
    elif kind == TRUTH and column.dtype == pl.String:
        values = column.str.to_lowercase().replace_strict(TRUTHS, default=None, return_dtype=pl.Float64)
    else:
        values = floats(column)
    wrong = (found & values.is_null()).arg_max() if (found & values.is_null()).any() else None
    if wrong is not None:
        raise cells.refuse(wrong, name, f"is not a {kind}")
    there_ = found.to_numpy()
    array = np.where(there_, values.fill_null(0.0).to_numpy(), 0.0)
    infinite = np.flatnonzero(np.isinf(array))
    if len(infinite):
        raise cells.refuse(int(infinite[0]), name, "is infinite; remove or bound it first")
    return array, there_


def inputs(cells: Cells, fitted: list[Fitted]) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Columns as inputs (N, D) float32 and categories (N, C) int64, with how many of each there are, 0 among them."""
    made: list[np.ndarray] = []
    codes: list[np.ndarray] = []
    counts: list[int] = []
    for f in fitted:
        name = f["name"]
        cells.column(name)
        if f["kind"] == CATEGORY:
            codes.append(_codes(cells, name, f["categories"]))
            counts.append(len(f["categories"]) + 1)
            continue
        values, found = numbers(cells, name, f["kind"])
        made.append(np.where(found, (values - f["mean"]) / f["std"], 0.0))  # what is missing is the mean
        if f["missing"]:
            made.append((~found).astype(np.float64))
        if f["kind"] == DATE:
            days = np.floor(values).astype(int).astype("datetime64[D]")
            month = days.astype("datetime64[M]").astype(int) % 12 + 1
            weekday = (days.astype(int) + 3) % 7 + 1  # 1 January 1970 was a Thursday
            codes += [np.where(found, month, 0), np.where(found, weekday, 0)]
            counts += [13, 8]
    rows = len(cells)
    return (
        np.stack(made, 1).astype(np.float32) if made else np.zeros((rows, 0), np.float32),
        np.stack(codes, 1).astype(np.int64) if codes else np.zeros((rows, 0), np.int64),
        counts,
    )


def _codes(cells: Cells, name: str, categories: list[str]) -> np.ndarray:
    """A column as numbers of its categories, from 1: 0 for what is missing or was not seen."""
    pl, column = package(), cells.columns[name]
    known = column.cast(pl.String).cast(pl.Enum(categories), strict=False).to_physical()
    return np.where(there(column).to_numpy(), known.cast(pl.Int64).fill_null(-1).to_numpy() + 1, 0)


def _dates(column: Any) -> Any:
    """Dates and times of the forms that people write: null for what is none."""
    pl = package()
    found = column.str.to_datetime(strict=False, time_unit="us", time_zone=None) if _try(column) else None
    for form in ("%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%m/%d/%Y"):
        parsed = column.str.to_date(form, strict=False).cast(pl.Datetime("us"))
        found = parsed if found is None else found.fill_null(parsed)
    return found


def _try(column: Any) -> bool:
    """Whether the reader finds out a form of times: it raises where it can't."""
    try:
        column.str.to_datetime(strict=False, time_unit="us")
    except Exception:  # of polars, which has many
        return False
    return True
