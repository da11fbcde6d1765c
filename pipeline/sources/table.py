"""Tables: one column, or several, learned from the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import ConfigError, DataError
from pipeline.sources.columns import (
    CATEGORY,
    DATE,
    NUMBER,
    OTHER,
    TEXT,
    TIME,
    TRUTH,
    WORDS,
    Reading,
    Readings,
    readings,
    unreadable,
    values,
    with_values,
)
from pipeline.sources.dialect import Dialect
from pipeline.sources.encode import BLOCK, Columns, Fitted, fit, known, one_thread, raw, unknown
from pipeline.sources.formats import check_dialect, read_table
from pipeline.sources.frame import Frame, package
from pipeline.sources.learned import Learned, scale
from pipeline.sources.overview import left_out_rows, overview, totals, unknown_values, without_targets
from pipeline.sources.prepared import Prepared, Task
from pipeline.sources.reread import reread
from pipeline.sources.split import Split
from pipeline.sources.tensors import Tensors
from pipeline.text import some


def table(
    path: str | Path, *, target: str | None = None, test: str | Path | None = None, parts: Split | None = None,
    task: Task | None = None, dialect: Dialect | None = None, columns: Readings | None = None,
    groups: str | None = None, time: str | None = None, ignore: str | None = None,
) -> Prepared:  # fmt: skip
    """A table in a file of any format of `formats.TABLES`: `target`, one column (the last by default) or several "a,b",
    is learned from the others.

    Batches have `inputs` (B, D) float32, `targets`, and, if there are columns of texts or dates, `categories` (B, C)
    int64. Numbers, as people write them, have mean 0 and deviation 1 over the training rows; a missing number becomes
    the mean, marked by a column of 0 and 1; a missing or new category becomes 0. Texts of several words, most of them
    different, are read as words: each is `length` columns behind the categories, of positions in the vocabulary of the
    training rows, and then 0.

    Targets that are texts, true and false, or whole numbers of few values are classes; other numbers are values in
    their own units, with `target_mean` and `target_std` of the training rows in `fitted`; several columns of 0 and 1
    are labels. `task` overrules that.

    - `test`: a file of the held-out rows, instead of a split.
    - `dialect` and `columns`: how the file is written, and what its columns hold, instead of what is found.
    - `groups`: a column that is no input, whose equal values stay on one side of the split; `time`: a column by which
      the last rows are held out. Only one of `groups`, `time` and `test` can be given.
    - `ignore`: columns to leave out, "a,b" or patterns such as "x_*".

    Raises DataError, with the line, for a cell, column or row that does not fit, and ConfigError for options that the
    format does not have.
    """
    given = [name for name, value in (("groups", groups), ("time", time), ("test", test)) if value is not None]
    if len(given) > 1:
        raise ConfigError(f"{given[0]}= and {given[1]}= both say what is held out; give one of them")
    check_dialect(path, dialect)

    def read() -> Frame:
        frame = read_table(path, dialect)
        ignored = frame.named(ignore)
        for name in (groups, time):
            if name is not None and frame.column(name).name in ignored:
                raise ConfigError(f"column {name!r} splits the rows, and ignore= leaves it out; take it out of ignore=")
        return frame.without(ignored)

    read_test = None if test is None else lambda: read_table(test, dialect)
    return prepare(read, target, parts or Split(), task, columns, groups=groups, time=time, read_test=read_test,
                   skip_bad=dialect is not None and dialect.skip_bad)  # fmt: skip


def prepare(
    read: Callable[[], Frame], target: str | None, parts: Split, task: Task | None = None,
    wanted: Readings | None = None, *,
    groups: str | None = None, time: str | None = None, read_test: Callable[[], Frame] | None = None,
    skip_bad: bool = False,
) -> Prepared:  # fmt: skip
    """A table as `table` prepares it; `read` and `read_test` are called again for `Prepared.raw`."""
    parts.check(read_test is not None)
    frame = read()
    names = [frame.data.columns[-1]] if target is None else frame.named(target)
    frame, notes = _learnable(frame, names)
    frame = frame.in_plain()
    kinds = readings(frame, wanted)
    if skip_bad:
        frame, said = _without_bad(frame, kinds)
        notes += said
    learned = Learned.of(frame, names, kinds, task)
    targets = learned.targets(frame)
    if read_test is None:
        train, held = (rows.numpy() for rows in _split(frame, parts, targets if learned.classes else None, groups, time,
                                                       kinds))  # fmt: skip
    else:
        train, held = np.arange(len(frame)), None
    inputs = [n for n in frame.data.columns if n not in (*names, groups)]
    frame = with_values(frame, inputs, kinds)
    notes += totals(frame, {name: kinds[name] for name in (*inputs, *names)})
    columns, left_out = _fitted(frame, inputs, kinds, train)
    if groups is not None:
        left_out[groups] = "it groups the rows"
    if filled := [f["name"] for f in columns if frame.column(f["name"]).null_count()]:
        notes.append(f"missing values are filled in {some(filled)}")
    fitted: dict[str, Any] = {"columns": columns, "targets": learned.json}
    if learned.task == "regression":
        fitted |= scale(targets[train])
    own, *others = _sides(frame, columns, targets, dict(kinds), [train] if held is None else [train, held])
    if read_test is not None:
        tested, held_kinds, said = _test(read_test(), fitted, names, skip_bad)
        others = [apply(fitted, tested, held=held_kinds)]
        notes += said

    def held_out() -> Frame:
        if read_test is not None:
            return _test(read_test(), fitted, names, skip_bad)[0]
        frame = with_targets(read(), names)
        if skip_bad:
            frame = _without_bad(frame.in_plain(), kinds)[0]
        return frame.take(held)

    notes = [learned.note(targets), _about_columns(columns), *notes]
    classes = tuple(learned.classes or (names if len(names) > 1 else ()))
    counts = Columns(columns).counts
    sizes = {"categories": tuple(counts)} if counts else {}
    about = tuple(overview(frame, kinds, columns, left_out, learned, targets))
    sides = Tensors(own), Tensors(others[0])
    return Prepared(*sides, learned.task, classes, sizes, tuple(notes), fitted, held_out, about)


def _split(
    frame: Frame, parts: Split, labels: Any, groups: str | None, time: str | None, kinds: Mapping[str, Reading]
) -> Any:
    return parts.rows(
        len(frame), labels=labels, groups=None if groups is None else _groups(frame, groups, kinds[groups]),
        time=None if time is None else _times(frame, time, kinds[time]),
    )  # fmt: skip


def _groups(frame: Frame, name: str, reading: Reading) -> np.ndarray:
    """The groups of rows (N,); a row without one is a group of its own."""
    if reading.kind == OTHER:
        raise DataError(f"{frame.path}: column {name!r} can't group the rows: {reading.note}")
    texts, own = frame.column(name).cast(package().String), package().Series([f"\0{i}" for i in range(len(frame))])
    groups: np.ndarray = texts.zip_with(texts.is_not_null(), own).to_numpy()
    return groups


def _times(frame: Frame, name: str, reading: Reading) -> np.ndarray:
    """A column by which rows are ordered (N,). Raises DataError for one without an order, and for a missing value."""
    if reading.kind not in WORDS:
        raise DataError(f"{frame.path}: column {name!r} has no dates, times or numbers, by which time= orders the rows")
    read = values(frame, name, reading)
    if np.isnan(read).any():
        raise frame.refuse(int(np.isnan(read).argmax()), name, "is no time; fill it in or remove the row")
    return read


def _test(
    frame: Frame, fitted: Mapping[str, Any], names: Sequence[str], skip_bad: bool
) -> tuple[Frame, dict[str, Reading], list[str]]:
    """The rows of a test file that `apply` takes, what its columns hold, and notes."""
    frame, notes = _learnable(frame, names)
    held: dict[str, Reading] = {}
    if skip_bad:
        frame, lines = readable(frame, fitted, targets=True, held=held)
        notes += [left_out_rows(lines, frame.unit)] if lines else []
    if not len(frame):
        raise DataError(f"{frame.path} has no rows that can be read")
    for name, new in unknown(frame, fitted["columns"]).items():
        notes.append(unknown_values(name, Counter(new), len(frame)))
    return frame, held, [f"{frame.path}: {note}" for note in notes]


def apply(
    fitted: Mapping[str, Any], frame: Frame, *, targets: bool = True, held: dict[str, Reading] | None = None
) -> dict[str, Tensor]:
    """New rows, encoded like the training rows; without `targets`, inputs alone. `held` is as for `encode.raw`.

    Raises DataError for a missing column, a cell of another kind, and an unknown class.
    """
    held = reread(frame, _known(fitted, targets), {} if held is None else held)
    found = Learned(**fitted["targets"]).targets(frame, held) if targets else None
    [tensors] = _sides(frame, fitted["columns"], found, held, [np.arange(len(frame))])
    return tensors


def readable(
    frame: Frame, fitted: Mapping[str, Any], *, targets: bool, held: dict[str, Reading]
) -> tuple[Frame, tuple[int, ...]]:
    """The rows that `apply` can read, and the lines of the others."""
    kinds = _known(fitted, targets)
    reread(frame, kinds, held)
    return _without(frame, unreadable(frame, {name: held[name] for name in kinds}))


def _known(fitted: Mapping[str, Any], targets: bool) -> dict[str, Reading]:
    return known(fitted["columns"]) | (Learned(**fitted["targets"]).readings if targets else {})


def _sides(
    frame: Frame, fitted: list[Fitted], targets: Any, held: dict[str, Reading], sides: Sequence[np.ndarray]
) -> list[dict[str, Tensor]]:
    """Some rows, encoded, for each of several sets of them, whose indices rise. A block of all at a time, so that the
    rows are in memory once."""
    encode = Columns(fitted)
    found: list[dict[str, np.ndarray]] = [{} for _ in sides]
    for begin in range(0, max(len(frame), 1), BLOCK):
        read = raw(frame.slice(begin, BLOCK), fitted, held)
        with one_thread():
            inputs, categories = encode(*read)
        block = {"inputs": inputs.numpy(), **({"categories": categories.numpy()} if encode.counts else {})}
        for rows, arrays in zip(sides, found, strict=True):
            first, end = np.searchsorted(rows, (begin, begin + BLOCK))
            for name, array in block.items():
                if name not in arrays:
                    arrays[name] = np.empty((len(rows), *array.shape[1:]), array.dtype)
                np.take(array, rows[first:end] - begin, axis=0, out=arrays[name][first:end], mode="clip")
    if targets is not None:
        for rows, arrays in zip(sides, found, strict=True):
            arrays["targets"] = targets[rows]
    return [{name: torch.from_numpy(array) for name, array in arrays.items()} for arrays in found]


def with_targets(frame: Frame, names: Sequence[str]) -> Frame:
    """The rows that have all their targets."""
    rows = np.logical_and.reduce([frame.column(name).is_not_null().to_numpy() for name in names])
    return frame if rows.all() else frame.take(np.flatnonzero(rows))


def _without_bad(frame: Frame, kinds: Mapping[str, Reading]) -> tuple[Frame, list[str]]:
    """The rows that can be read, and a note on the others."""
    frame, lines = _without(frame, unreadable(frame, kinds))
    return frame, [left_out_rows(lines, frame.unit)] if lines else []


def _without(frame: Frame, bad: np.ndarray) -> tuple[Frame, tuple[int, ...]]:
    lines = tuple(sorted([*frame.skipped, *frame.lines[bad].tolist()]))
    return (frame.take(np.flatnonzero(~bad)) if bad.any() else frame), lines


def _learnable(frame: Frame, names: Sequence[str]) -> tuple[Frame, list[str]]:
    """The rows that have all their targets, and the notes on the file. Raises DataError if there are none."""
    rows = with_targets(frame, names)
    if not len(rows):
        raise DataError(f"{frame.path}: column {names[0]!r}, which is to be learned, has no values")
    missing = len(frame) - len(rows)
    return rows, [*frame.notes, *([without_targets(missing, names)] if missing else [])]


def _fitted(
    frame: Frame, names: Sequence[str], kinds: Mapping[str, Reading], rows: np.ndarray
) -> tuple[list[Fitted], dict[str, str]]:
    """The fitted columns, and the reasons why others are left out."""
    fits = {name: fit(frame, name, kinds[name], rows) for name in names}
    left_out = {name: f for name, f in fits.items() if isinstance(f, str)}
    columns = [f for f in fits.values() if not isinstance(f, str)]
    if not columns:
        why = "; ".join(f"column {name!r} is left out: {reason}" for name, reason in left_out.items())
        raise DataError(f"{frame.path} has no column that says anything: {why or 'it has the target alone'}")
    return columns, left_out


def _about_columns(fitted: Sequence[Fitted]) -> str:
    words = {NUMBER: "numbers", TRUTH: "true or false", DATE: "dates", TIME: "times of day", CATEGORY: "categories",
             TEXT: "texts"}  # fmt: skip
    by_kind = {word: [f["name"] for f in fitted if f["kind"] == kind] for kind, word in words.items()}
    each = [f"{len(n)} column{'s' * (len(n) > 1)} of {word} ({some(n)})" for word, n in by_kind.items() if n]
    scaled = any(f["kind"] not in (CATEGORY, TEXT) for f in fitted)
    return f"{', '.join(each)}{'; scaled by the training rows' if scaled else ''}"
