"""Encode: fit the columns of a table to its training rows, and turn any rows into inputs and categories.

The fit is JSON, under `columns` of a data set's `fitted`, and encodes new rows like the training rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import tau
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.sources import words
from pipeline.sources.columns import CATEGORY, DATE, OTHER, TEXT, TIME, Reading, names, values
from pipeline.sources.frame import Frame, package
from pipeline.sources.reread import reread

MANY = 100
"""A column is left out if its different texts are more than this, and more than half its rows."""
BLOCK = 1 << 16
"""Rows that are encoded at a time."""
DAY, YEAR = 86400.0, 365.2425
"""Seconds, and days."""

Fitted: TypeAlias = dict[str, Any]


def fit(frame: Frame, name: str, reading: Reading, rows: np.ndarray) -> Fitted | str:
    """A column fitted to the training rows, or the reason why it is left out."""
    if reading.kind == OTHER:
        return reading.note
    if reading.kind not in (CATEGORY, TEXT):
        return _fit_values(frame, name, reading, rows)
    seen = frame.column(name).gather(rows).drop_nulls()
    if not len(seen):
        return "it has no values"
    if reading.kind == CATEGORY:
        named = seen if seen.dtype == package().String else names(frame, name, reading).gather(rows).drop_nulls()
        texts = sorted(named.unique().to_list())
        if len(texts) > MANY and len(texts) > len(seen) / 2:
            return f"{len(texts):,} different texts in {len(seen):,} rows"
        if len(texts) == 1 and len(seen) == len(rows):
            return f"all its values are {texts[0]!r}"
        return {"name": name, "kind": CATEGORY, "categories": texts}
    found = words.fit(seen)
    return found if isinstance(found, str) else {"name": name, "kind": TEXT, **found}


def _fit_values(frame: Frame, name: str, reading: Reading, rows: np.ndarray) -> Fitted | str:
    read = values(frame, name, reading)[rows]
    absent = np.isnan(read)
    present = read[~absent] if absent.any() else read
    if not len(present):
        return "it has no values"
    if (present == present[0]).all() and (present[0] == 0 or not absent.any()):  # 1 beside blanks is a mark; 0 is none
        return f"all its values are {frame.column(name).gather(rows).drop_nulls()[0]}"
    fitted = {"name": name, "kind": reading.kind, "form": reading.form, "unit": reading.unit,
              "mean": float(present.mean()),
              "std": float(present.std()) or 1.0, "missing": bool(absent.any())}  # fmt: skip
    return {**fitted, "hours": bool((present % 1 != 0).any())} if reading.kind == DATE else fitted


def known(fitted: Sequence[Fitted]) -> dict[str, Reading]:
    """What the fitted columns hold."""
    return {f["name"]: Reading(f["kind"], f.get("form", ""), unit=f.get("unit", "")) for f in fitted}


def codes(frame: Frame, f: Fitted) -> np.ndarray:
    """A column as int64 (N,) positions in its categories, from 1; 0 for a missing or a new value."""
    pl = package()
    seen = names(frame, f["name"], Reading(CATEGORY)).cast(pl.Enum(f["categories"]), strict=False)
    codes: np.ndarray = (seen.to_physical().cast(pl.Int64) + 1).fill_null(0).to_numpy()
    return codes


def unknown(frame: Frame, fitted: Sequence[Fitted]) -> dict[str, list[str]]:
    """Values that are in none of a column's categories, and blanks in columns of numbers that had none, by column; they
    count as missing."""
    found: dict[str, list[str]] = {}
    for f in fitted:
        if not f.get("missing", True) and (blank := int(frame.column(f["name"]).null_count())):
            found[f["name"]] = [""] * blank
        if f["kind"] == CATEGORY:
            seen = names(frame, f["name"], Reading(CATEGORY)).drop_nulls()
            if others := seen.filter(~seen.is_in(f["categories"])).to_list():
                found[f["name"]] = others
    return found


def raw(frame: Frame, fitted: Sequence[Fitted], held: dict[str, Reading] | None = None) -> tuple[Tensor, Tensor]:
    """The input of `Columns`: numbers (N, R) float64, as `values` gives them, and int64 codes (N, K) of categories and
    then of words, as `codes` and `words.codes` give them. `held` keeps what the columns of a file hold, from block to
    block."""
    held = reread(frame, known(fitted), {} if held is None else held)
    read: list[np.ndarray] = [np.empty((len(frame), 0))]
    categories: list[np.ndarray] = [np.empty((len(frame), 0), np.int64)]
    texts: list[np.ndarray] = []
    for f in fitted:
        name = f["name"]
        if f["kind"] == CATEGORY:
            categories.append(codes(frame, f)[:, None])
            continue
        if f["kind"] == TEXT:
            texts.append(words.codes(names(frame, name, Reading(TEXT)), f))
            continue
        read.append(values(frame, name, held[name])[:, None])
    return torch.from_numpy(np.concatenate(read, 1)), torch.from_numpy(np.concatenate(categories + texts, 1))


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute by one thread within: the operations of `Columns` are small, and each would wait for all
    threads, which takes 30 times as long on a machine with other work."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)


class Columns(nn.Module):
    """Numbers (B, R) float64 and codes (B, K) int64, as `raw` gives them -> inputs (B, D) float32 and categories (B, C)
    int64.

    Numbers are scaled; a missing one is the mean, and a column of 0 and 1 marks it, if training rows had missing ones.
    Dates and times are also points on a circle: of the year, and of the day if training rows have times. Month and day
    of the week are categories. The words of texts follow the categories.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, fitted: Sequence[Fitted]) -> None:
        super().__init__()
        scaled = [f for f in fitted if f["kind"] not in (CATEGORY, TEXT)]
        self.fitted = [(f["kind"], f.get("missing", False), f.get("hours", False)) for f in fitted if f["kind"] != TEXT]
        self.counts: list[int | tuple[int, int]] = [n for f in fitted for n in _counts(f)]
        """Size of each category, with 0 for missing; then of each text, its vocabulary, with 0 for none, and words."""
        self.counts += [(len(f["words"]) + 1, f["length"]) for f in fitted if f["kind"] == TEXT]
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor([f[name] for f in scaled], dtype=torch.float64))

    def forward(self, numbers: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        absent = numbers.isnan()
        scaled = torch.where(absent, 0.0, (numbers - self.mean) / self.std)
        inputs: list[Tensor] = []
        categories: list[Tensor] = []
        number, code = 0, 0
        for kind, missing, hours in self.fitted:
            if kind == CATEGORY:
                categories.append(codes[:, code])
                code += 1
                continue
            none, value = absent[:, number], numbers[:, number]
            inputs.append(scaled[:, number])
            if missing:
                inputs.append(none.double())
            turns = [value / YEAR] * (kind == DATE) + [value] * hours + [value / DAY] * (kind == TIME)
            for turn in turns:
                inputs += [torch.where(none, 0.0, f(tau * turn)) for f in (torch.sin, torch.cos)]
            if kind == DATE:
                days = torch.where(none, 0.0, value).floor().long()
                weekday = (days + 3) % 7 + 1  # 1 January 1970 was a Thursday
                categories += [torch.where(none, 0, x) for x in (_month(days), weekday)]
            number += 1
        return _stacked(inputs, numbers).float(), torch.cat([_stacked(categories, codes), codes[:, code:]], 1)


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
