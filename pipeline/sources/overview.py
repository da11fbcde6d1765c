"""Overview of a table: the decision on each column, the columns that look wrong, and notes on rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from textwrap import shorten

import numpy as np

from pipeline.sources.columns import CATEGORY, DATE, NUMBER, OTHER, TEXT, TIME, TRUTH, Reading, names, values
from pipeline.sources.encode import Fitted
from pipeline.sources.frame import Frame
from pipeline.sources.learned import Learned
from pipeline.sources.prepared import LEFT_OUT, TARGET, Column
from pipeline.text import shown, some

ENOUGH = 20
"""Samples without which nothing is suspected."""
SAMPLE = 100_000
"""Rows that suspicions are judged by."""
LONGEST = 12
"""Characters of a category to show."""
TOTAL = re.compile(r"\W*(grand |sub)?(total|sum|summe|gesamt|somme|suma)\b", re.IGNORECASE)
CENT = 0.01
ROWS = 4
"""Rows without which none is a sum."""
SAME = 0.9999
"""Correlation with the target from which a column gives it away."""


def overview(
    frame: Frame, readings: Mapping[str, Reading], fitted: Sequence[Fitted], left_out: Mapping[str, str],
    learned: Learned, targets: np.ndarray,
) -> list[Column]:  # fmt: skip
    """The columns of a table, alarms first."""
    by_name, sample = {f["name"]: f for f in fitted}, frame.slice(0, SAMPLE)
    found: list[Column] = []
    for name in frame.data.columns:
        reading, missing = readings[name], frame.column(name).null_count()
        if name in left_out:
            found.append(Column(name, LEFT_OUT, _range(frame, name, reading), missing, left_out[name]))
        elif name in by_name:
            suspicion = _suspicion(sample, name, reading, learned, targets[:SAMPLE])
            note = "; ".join(filter(None, (suspicion, reading.note, _form(reading), _words(by_name[name]))))
            alarm = bool(suspicion or reading.note)
            found.append(Column(name, reading.kind, _range(frame, name, reading), missing, note, alarm))
        elif name in learned.names:
            found.append(Column(name, TARGET, _range(frame, name, reading), missing, learned.task))
    return sorted(found, key=lambda column: not column.alarm)


def totals(frame: Frame, readings: Mapping[str, Reading]) -> list[str]:
    """A note on a last row that is the sum of the others."""
    signs = int(any(TOTAL.match(str(cell)) for cell in frame.data.row(-1)))
    for name, reading in readings.items() if len(frame) >= ROWS else ():
        if reading.kind == NUMBER and (x := np.nan_to_num(values(frame, name, reading)))[-1]:
            if not _is_sum(x):  # mostly the first column, so that the others of a large table are not read
                return []
            signs += 1
    return [f"{frame.where(-1)} is the sum of the others; delete it if it is no sample"] if signs > 1 else []


def _is_sum(numbers: np.ndarray) -> bool:
    others, last = numbers[:-1], numbers[-1]
    return bool(np.isclose(others.sum(), last, 1e-6, CENT) and abs(last) > np.abs(others).max())


def _words(fitted: Fitted) -> str:
    return (
        f"a vocabulary of {len(fitted['words']):,} words; the first {fitted['length']} of a text are read"
        if "words" in fitted
        else ""
    )


def _form(reading: Reading) -> str:
    if reading.kind == DATE and reading.form:
        return reading.form
    marks = {",": "decimal comma", ".": ""}.get(reading.form[:1], "")
    thousands = f"thousands by {reading.form[1]!r}" if len(reading.form) > 1 else ""
    return ", ".join(filter(None, (marks, thousands))) if reading.kind == NUMBER else ""


def _range(frame: Frame, name: str, reading: Reading) -> str:
    if reading.kind == OTHER:
        return str(frame.data[name].dtype)
    if reading.kind == TEXT:
        return f"{frame.column(name).n_unique():,} texts"
    if reading.kind in (CATEGORY, TRUTH):
        texts = names(frame, name, reading).drop_nulls().unique().sort().to_list()
        return f"{len(texts):,}: {some([shorten(t, LONGEST, placeholder='...') for t in texts])}" if texts else ""
    read = values(frame, name, reading)
    if np.isnan(read).all():
        return ""
    ends = float(np.nanmin(read)), float(np.nanmax(read))
    if reading.kind == DATE:
        return " to ".join(_day(x) for x in ends)
    if reading.kind == TIME:
        return " to ".join(f"{int(x // 3600):02}:{int(x // 60 % 60):02}" for x in ends)
    return " to ".join(f"{x:.6g}" for x in ends)


def _day(days: float) -> str:
    try:
        time = datetime.fromtimestamp(days * 86400, UTC)
    except (OverflowError, ValueError, OSError):
        return f"day {days:.0f}"
    return time.strftime("%Y-%m-%d" if days % 1 == 0 else "%Y-%m-%d %H:%M")


def _suspicion(frame: Frame, name: str, reading: Reading, learned: Learned, targets: np.ndarray) -> str:
    """The fault that a column seems to have, for a reader to judge."""
    short = reading.kind == DATE and "%y" in reading.form
    if short and np.nanmax(values(frame, name, reading)) > datetime.now(UTC).timestamp() / 86400:
        return "years of two digits are read as 1969 to 2068, and some days are still to come"
    if len(frame) < ENOUGH or targets.ndim > 1:
        return ""
    away = "alone gives the target away; leave it out by ignore= if new rows will not have it"
    if reading.kind in (CATEGORY, TEXT):
        texts = names(frame, name, reading).fill_null("").to_numpy()
        keys, codes = np.unique(texts.astype(str), return_inverse=True)
        pure = len(keys) < len(frame) / 4 and _constant_within(codes, targets)
        return away if pure else ""
    read = values(frame, name, reading)
    known = ~np.isnan(read)
    x, y = read[known], targets[known]
    if len(x) < ENOUGH:
        return ""
    if reading.kind == NUMBER and np.array_equal(x, x[0] + np.arange(len(x))):
        return "numbers the rows; leave it out by ignore= if that says nothing"
    if learned.task == "regression":
        with np.errstate(all="ignore"):
            return away if abs(float(np.corrcoef(x, y)[0, 1])) > SAME else ""
    order = np.argsort(x, kind="stable")
    changes = np.flatnonzero(np.diff(y[order]))
    apart = len(changes) == len(np.unique(y)) - 1 and bool((np.diff(x[order])[changes] > 0).all())
    return away if apart else ""


def _constant_within(codes: np.ndarray, targets: np.ndarray) -> bool:
    """Whether the targets of each group are equal."""
    order = np.lexsort((targets, codes))
    same = np.diff(codes[order]) == 0
    return bool((np.diff(targets[order])[same] == 0).all())


def left_out_rows(lines: Sequence[int], unit: str) -> str:
    rows = "1 row that can't be read is" if len(lines) == 1 else f"{len(lines):,} rows that can't be read are"
    return f"{rows} left out: {unit} {some([str(n) for n in lines])}"


def unknown_values(name: str, seen: Counter[str], count: int) -> str:
    """A note on values of a category, of `count` rows, that no training row has, or on blanks."""
    if {*seen} == {""}:
        return f"{seen.total():,} of {count:,} rows have no {shown(name)}, as all training rows have; it is filled in"
    such = ", ".join(shown(value) for value, _ in seen.most_common(3))
    rows = f"{seen.total():,} of {count:,} rows have values of {shown(name)} that the run never saw"
    return f"{rows}, such as {such}; they count as missing"


def without_targets(count: int, names: Sequence[str]) -> str:
    which = f"without {' or '.join(map(repr, names))}"
    return f"1 row {which} is left out" if count == 1 else f"{count:,} rows {which} are left out"
