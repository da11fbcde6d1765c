"""Columns: what is learned of each column of the training rows, and what becomes of any rows by it.

All that is learned is JSON, under `columns` of a data set's `fitted`, so that other rows can be prepared as those were.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.sources.csv import TRUTHS, Cells, floats, package, present, there

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


def raw(cells: Cells, fitted: Sequence[Fitted]) -> tuple[Tensor, Tensor]:
    """Columns as numbers (N, R) float64, NaN where one is missing, dates as days since 1970, and as codes of categories
    (N, K) int64, from 1, 0 where one is missing or new: what `Columns` makes inputs of."""
    found: list[np.ndarray] = []
    codes: list[np.ndarray] = []
    for f in fitted:
        cells.column(f["name"])
        if f["kind"] == CATEGORY:
            codes.append(_codes(cells, f["name"], f["categories"]))
        else:
            values, known = numbers(cells, f["name"], f["kind"])
            found.append(np.where(known, values, np.nan))
    none = np.zeros((len(cells), 0))
    return (
        torch.from_numpy(np.stack(found, 1) if found else none),
        torch.from_numpy((np.stack(codes, 1) if codes else none).astype(np.int64)),
    )


class Columns(nn.Module):
    """Numbers (B, R) float64 and codes (B, K) int64 as `raw` gives them -> inputs (B, D) float32 and categories (B, C)
    int64: scaled, what is missing being the mean, with a column that says so where training rows had such; and of a
    date, its month and its day of the week beside it."""

    mean: Tensor
    std: Tensor

    def __init__(self, fitted: Sequence[Fitted]) -> None:
        super().__init__()
        scaled = [f for f in fitted if f["kind"] != CATEGORY]
        self.kinds = [f["kind"] for f in fitted]
        self.missing = [f["missing"] for f in scaled]
        self.counts = [n for f in fitted for n in _counts(f)]
        """How many categories each column of them has, 0 among them."""
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor([f[name] for f in scaled], dtype=torch.float64))

    def forward(self, numbers: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        absent = numbers.isnan()
        scaled = torch.where(absent, 0.0, (numbers - self.mean) / self.std)
        inputs: list[Tensor] = []
        categories: list[Tensor] = []
        at, code = 0, 0
        for kind in self.kinds:
            if kind == CATEGORY:
                categories.append(codes[:, code])
                code += 1
                continue
            inputs.append(scaled[:, at])
            if self.missing[at]:
                inputs.append(absent[:, at].double())
            if kind == DATE:
                days = torch.where(absent[:, at], 0.0, numbers[:, at]).floor().long()
                # 1 January 1970 was a Thursday.
                categories += [torch.where(absent[:, at], 0, x) for x in (_month(days), (days + 3) % 7 + 1)]
            at += 1
        return _side_by_side(inputs, numbers).float(), _side_by_side(categories, codes)


def _side_by_side(columns: list[Tensor], rows: Tensor) -> Tensor:
    return torch.stack(columns, 1) if columns else rows[:, :0]


def _month(days: Tensor) -> Tensor:
    """The month, 1 to 12, of days since 1970. Source: H. Hinnant, chrono-compatible low-level date algorithms (2021),
    civil_from_days."""
    day = (days + 719_468) % 146_097  # of an era of 400 years that begins on a 1 March
    year = (day - day // 1460 + day // 36_524 - day // 146_096) // 365
    month = (5 * (day - (365 * year + year // 4 - year // 100)) + 2) // 153
    return torch.where(month < 10, month + 3, month - 9)


def _counts(f: Fitted) -> list[int]:
    if f["kind"] == CATEGORY:
        return [len(f["categories"]) + 1]
    return [13, 8] if f["kind"] == DATE else []


def _codes(cells: Cells, name: str, categories: list[str]) -> np.ndarray:
    """A column as numbers of its categories, from 1: 0 for what is missing or was not seen."""
    pl, column = package(), cells.columns[name]
    known = column.cast(pl.String).cast(pl.Enum(categories), strict=False).to_physical()
    return np.where(there(column).to_numpy(), known.cast(pl.Int64).fill_null(-1).to_numpy() + 1, 0)


def _dates(column: Any) -> Any:
    """Dates and times of the forms that people write: null for what is none."""
    kind, forms = package().Datetime("us"), ("%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%m/%d/%Y")
    found = [column.str.to_date(form, strict=False).cast(kind) for form in forms]
    with suppress(Exception):  # polars raises one of many where it finds out no form of times
        found.insert(0, column.str.to_datetime(strict=False, time_unit="us", time_zone=None))
    return reduce(lambda first, other: first.fill_null(other), found)
