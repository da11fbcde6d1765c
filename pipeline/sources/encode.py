"""Encode: fit the columns of a table to its training rows, and turn any rows into inputs and categories.

The fit is JSON, under `columns` of a data set's `fitted`, and encodes new rows like the training rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import reduce
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.sources.frame import TRUTHS, Frame, floats, is_present, package, present

NUMBER, TRUTH, DATE, CATEGORY = "number", "truth", "date", "category"
MOSTLY = 0.9
"""Minimum share of a text column's values of one kind; all other values are errors."""
MANY = 100
"""A column is left out if its different texts are more than this, and more than half its rows."""

Fitted: TypeAlias = dict[str, Any]


def fit(frame: Frame, name: str, rows: np.ndarray) -> Fitted | str:
    """A column fitted to the training rows, or the reason why it is left out."""
    column = frame.data[name].gather(rows)
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
    values = numbers(frame, name, kind)[rows]
    absent = np.isnan(values)
    known = values[~absent]
    if (known == known[0]).all():
        return f"all its values are {seen[0]}"
    mean, std = float(known.mean()), float(known.std())
    return {"name": name, "kind": kind, "mean": mean, "std": std, "missing": bool(absent.any())}


def kind_of(column: Any) -> str:
    """NUMBER, TRUTH, DATE or CATEGORY, by the type of a column, or by the texts in it."""
    pl, dtype = package(), column.dtype
    if dtype == pl.String:
        seen = present(column)
        if floats(seen).is_not_null().mean() >= MOSTLY:
            return NUMBER
        if seen.str.to_lowercase().is_in(list(TRUTHS)).all():
            return TRUTH
        return DATE if _dates(seen).is_not_null().mean() >= MOSTLY else CATEGORY
    if dtype.is_numeric():
        return NUMBER
    if dtype == pl.Boolean:
        return TRUTH
    return DATE if dtype.is_temporal() else CATEGORY


def numbers(frame: Frame, name: str, kind: str) -> np.ndarray:
    """A column as float64 (N,), NaN for a missing value; dates as days since 1970.

    Raises DataError for a cell of another kind.
    """
    pl, column = package(), frame.data[name]
    if kind == DATE:
        dates = _dates(column) if column.dtype == pl.String else column.cast(pl.Datetime("us"))
        values = dates.dt.epoch("us") / 86_400e6
    elif kind == TRUTH and column.dtype == pl.String:
        values = column.str.to_lowercase().replace_strict(TRUTHS, default=None, return_dtype=pl.Float64)
    else:
        values = floats(column)
    known = is_present(column)
    wrong, infinite = known & values.is_null(), known & values.is_infinite().fill_null(False)
    for bad, why in ((wrong, f"is not a {kind}"), (infinite, "is infinite; remove or bound it first")):
        if bad.any():
            raise frame.refuse(int(bad.arg_max()), name, why)
    return np.where(known.to_numpy(), values.fill_null(np.nan).to_numpy(), np.nan)


def codes(frame: Frame, name: str, categories: Sequence[str]) -> np.ndarray:
    """A column as int64 (N,) positions in `categories`, from 1; 0 for a missing or a new value."""
    pl, column = package(), frame.data[name]
    known = column.cast(pl.String).cast(pl.Enum(categories), strict=False).to_physical().cast(pl.Int64) + 1
    return np.where(is_present(column).to_numpy(), known.fill_null(0).to_numpy(), 0)


def raw(frame: Frame, fitted: Sequence[Fitted]) -> tuple[Tensor, Tensor]:
    """The input of `Columns`: numbers (N, R) float64 and codes of categories (N, K) int64, as `numbers` and `codes`
    give them."""
    values: list[np.ndarray] = [np.empty((len(frame), 0))]
    categories: list[np.ndarray] = [np.empty((len(frame), 0), np.int64)]
    for f in fitted:
        frame.column(f["name"])
        if f["kind"] == CATEGORY:
            categories.append(codes(frame, f["name"], f["categories"])[:, None])
        else:
            values.append(numbers(frame, f["name"], f["kind"])[:, None])
    return torch.from_numpy(np.concatenate(values, 1)), torch.from_numpy(np.concatenate(categories, 1))


class Columns(nn.Module):
    """Numbers (B, R) float64 and codes (B, K) int64, as `raw` gives them -> inputs (B, D) float32 and categories (B, C)
    int64.

    Numbers are scaled; a missing one is the mean, and a column of 0 and 1 marks it, if training rows had missing ones.
    A date becomes a number and two categories, month and day of the week.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, fitted: Sequence[Fitted]) -> None:
        super().__init__()
        scaled = [f for f in fitted if f["kind"] != CATEGORY]
        self.kinds = [f["kind"] for f in fitted]
        self.missing = [f["missing"] for f in scaled]
        self.counts = [n for f in fitted for n in _counts(f)]
        """Size of each category, with 0 for missing."""
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor([f[name] for f in scaled], dtype=torch.float64))

    def forward(self, numbers: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        absent = numbers.isnan()
        scaled = torch.where(absent, 0.0, (numbers - self.mean) / self.std)
        inputs: list[Tensor] = []
        categories: list[Tensor] = []
        number, code = 0, 0
        for kind in self.kinds:
            if kind == CATEGORY:
                categories.append(codes[:, code])
                code += 1
                continue
            inputs.append(scaled[:, number])
            if self.missing[number]:
                inputs.append(absent[:, number].double())
            if kind == DATE:
                days = torch.where(absent[:, number], 0.0, numbers[:, number]).floor().long()
                weekday = (days + 3) % 7 + 1  # 1 January 1970 was a Thursday
                categories += [torch.where(absent[:, number], 0, x) for x in (_month(days), weekday)]
            number += 1
        return _stacked(inputs, numbers).float(), _stacked(categories, codes)


def _stacked(columns: list[Tensor], rows: Tensor) -> Tensor:
    return torch.stack(columns, 1) if columns else rows[:, :0]


def _month(days: Tensor) -> Tensor:
    """Month, 1 to 12, of days since 1970. Source: H. Hinnant, chrono-compatible low-level date algorithms (2021),
    civil_from_days."""
    day = (days + 719_468) % 146_097  # day of a 400-year era, which begins on 1 March
    year = (day - day // 1460 + day // 36_524 - day // 146_096) // 365
    month = (5 * (day - (365 * year + year // 4 - year // 100)) + 2) // 153
    return torch.where(month < 10, month + 3, month - 9)


def _counts(f: Fitted) -> list[int]:
    if f["kind"] == CATEGORY:
        return [len(f["categories"]) + 1]
    return [13, 8] if f["kind"] == DATE else []


def _dates(column: Any) -> Any:
    """A text column as dates and times, null for other texts."""
    kind, forms = package().Datetime("us"), ("%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%m/%d/%Y")
    parsed = [column.str.to_date(form, strict=False).cast(kind) for form in forms]
    with suppress(Exception):  # polars has several errors for texts in which it infers no format
        parsed.insert(0, column.str.to_datetime(strict=False, time_unit="us", time_zone=None))
    return reduce(lambda first, other: first.fill_null(other), parsed)
