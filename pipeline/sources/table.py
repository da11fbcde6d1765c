"""Tables: one column, or several, learned from the others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.errors import DataError, did_you_mean
from pipeline.sources.encode import CATEGORY, DATE, NUMBER, TRUTH, Columns, Fitted, fit, kind_of, numbers, raw
from pipeline.sources.formats import read_table
from pipeline.sources.frame import Frame, floats, is_present, package
from pipeline.sources.prepared import Prepared, Task
from pipeline.sources.split import Split
from pipeline.sources.tensors import Tensors

FEW = 20
"""Whole numbers of at most this many different values are classes, if each has ROWS rows on average."""
ROWS = 5
SHOWN = 4


def table(
    path: str | Path, *, target: str | None = None, test: str | Path | None = None, parts: Split | None = None,
    task: Task | None = None, header: bool | None = None, groups: str | None = None, time: str | None = None,
    ignore: Collection[str] = (),
) -> Prepared:  # fmt: skip
    """A table as .csv, .tsv, .csv.gz or .parquet: `target`, one column (the last by default) or several "a,b", is
    learned from the others.

    Batches have `inputs` (B, D) float32, `targets`, and, if there are columns of text or dates, `categories` (B, C)
    int64. Numbers have mean 0 and deviation 1 over the training rows; a missing number becomes the mean, marked by a
    column of 0 and 1; a missing or new category becomes 0. Text, true and false, and whole numbers of few values are
    classes; other numbers are values in their own units, with `target_mean` and `target_std` of the training rows in
    `fitted`; several columns of 0 and 1 are labels. `task` overrules that.

    - `test`: a file of the held-out rows, instead of a split.
    - `groups`: a column that is no input, whose equal values stay on one side of the split; `time`: a column by which
      the last rows are held out.
    - `ignore`: columns to leave out.

    Raises DataError, with the line, for a cell, column or row that does not fit.
    """

    def read() -> Frame:
        frame = read_table(path, header)
        for name in (*ignore, groups, time):
            if name:
                frame.column(name)
        return frame.without(ignore)

    read_test = None if test is None else lambda: read_table(test, header)
    return prepare(read, target, parts or Split(), task, groups=groups, time=time, read_test=read_test)


def prepare(
    read: Callable[[], Frame], target: str | None, parts: Split, task: Task | None = None, *,
    groups: str | None = None, time: str | None = None, read_test: Callable[[], Frame] | None = None,
) -> Prepared:  # fmt: skip
    """A table as `table` prepares it; `read` and `read_test` are called again for `Prepared.raw`."""
    frame = read()
    names = [frame.data.columns[-1]] if target is None else [t.strip() for t in target.split(",")]
    notes = [*frame.notes]
    count = len(frame)
    frame = _some_with_targets(frame, names)
    if len(frame) < count:
        notes.append(f"{count - len(frame):,} rows without {' or '.join(map(repr, names))} are left out")
    learned = _learned(frame, names, task)
    task = learned["task"]
    targets = _targets(frame, learned)
    if read_test is None:
        train, held = (rows.numpy() for rows in _split(frame, parts, targets if learned.get("classes") else None,
                                                       groups, time))  # fmt: skip
    else:
        train, held = np.arange(len(frame)), None
    columns = _fitted(frame, [n for n in frame.data.columns if n not in (*names, groups)], train, notes)
    fitted: dict[str, Any] = {"columns": columns, "targets": learned}
    if task == "regression":
        values = targets[train].reshape(len(train), -1).astype(np.float64)
        fitted |= {"target_mean": values.mean(0).tolist(), "target_std": np.maximum(values.std(0), 1e-12).tolist()}
    data = _encoded(frame, columns, targets)
    if held is None:
        sides = data, apply(fitted, read_test())  # type: ignore[misc]  # there is one
    else:
        sides = data.take(torch.from_numpy(train)), data.take(torch.from_numpy(held))

    def held_out() -> Frame:
        frame = with_targets((read_test or read)(), names)
        return frame if held is None else frame.take(held)

    notes = [_about_targets(targets, learned), _about_columns(columns), *notes]
    classes = tuple(learned.get("classes", names if len(names) > 1 else ()))
    counts = Columns(columns).counts
    return Prepared(*sides, task, classes, {"categories": tuple(counts)} if counts else {}, tuple(notes), fitted,
                    held_out)  # fmt: skip


def _split(frame: Frame, parts: Split, labels: Any, groups: str | None, time: str | None) -> Any:
    return parts.rows(
        len(frame), labels=labels,
        groups=None if groups is None else frame.column(groups).cast(package().String).fill_null("").to_numpy(),
        time=None if time is None else np.nan_to_num(numbers(frame, time, kind_of(frame.column(time)))),
    )  # fmt: skip


def apply(fitted: Mapping[str, Any], frame: Frame, *, targets: bool = True) -> Tensors:
    """New rows, encoded like the training rows; without `targets`, inputs alone.

    Raises DataError for a missing column, a cell of another kind, and an unknown class.
    """
    learned = fitted["targets"]
    if targets:
        frame = _some_with_targets(frame, learned["names"])
    return _encoded(frame, fitted["columns"], _targets(frame, learned) if targets else None)


def _encoded(frame: Frame, fitted: list[Fitted], targets: Any) -> Tensors:
    encode = Columns(fitted)
    inputs, categories = encode(*raw(frame, fitted))
    tensors = {"inputs": inputs, **({"categories": categories} if encode.counts else {})}
    return Tensors(tensors if targets is None else {**tensors, "targets": torch.from_numpy(targets)})


def with_targets(frame: Frame, names: Sequence[str]) -> Frame:
    """The rows that have all their targets."""
    rows = np.logical_and.reduce([is_present(frame.column(name)).to_numpy() for name in names])
    return frame if rows.all() else frame.take(np.flatnonzero(rows))


def _some_with_targets(frame: Frame, names: Sequence[str]) -> Frame:
    rows = with_targets(frame, names)
    if not len(rows):
        raise DataError(f"{frame.path}: column {names[0]!r}, which is to be learned, has no values")
    return rows


def _learned(frame: Frame, names: Sequence[str], task: Task | None) -> dict[str, Any]:
    """The task of the targets, and their classes."""
    kinds = [kind_of(frame.data[n]) for n in names]
    if len(names) > 1:
        truths = all(k == TRUTH or (k == NUMBER and _whole(frame, n, 2)) for k, n in zip(kinds, names, strict=True))
        task = task or ("several labels" if truths else "regression")
        if task == "classification":
            raise DataError(f"{frame.path}: a class is one column, and {', '.join(names)} are {len(names)}")
    elif task is None:
        few = kinds[0] != NUMBER or _whole(frame, names[0], min(FEW, len(frame) // ROWS))
        task = "classification" if few else "regression"
    learned = {"names": list(names), "task": task, "kinds": kinds}
    if task == "classification":
        learned["classes"] = _classes(frame, names[0], kinds[0])
    if task == "regression":
        for name, kind in zip(names, kinds, strict=True):
            if kind not in (NUMBER, TRUTH):
                first = frame.data[name][0]
                raise DataError(f"{frame.path}: column {name!r} holds {first!r} and the like, which are no numbers")
    return learned


def _whole(frame: Frame, name: str, most: int) -> bool:
    """Whether a column holds whole numbers of at most `most` different values; if `most` is 2, 0 and 1."""
    values = np.unique(numbers(frame, name, NUMBER))
    if most <= 2 and not set(values.tolist()) <= {0.0, 1.0}:
        return False
    return len(values) <= most and np.array_equal(values, np.round(values))


def _names(frame: Frame, name: str, kind: str) -> Any:
    """A column's values as names of classes: a whole number without a decimal point."""
    pl, column = package(), frame.data[name]
    if kind != NUMBER:
        return column.cast(pl.String)
    values = floats(column)
    return values.cast(pl.Int64, strict=False).cast(pl.String).fill_null(values.cast(pl.String))


def _classes(frame: Frame, name: str, kind: str) -> list[str]:
    classes: list[str] = sorted(_names(frame, name, kind).unique().to_list(), key=float if kind == NUMBER else None)
    learned = f"{frame.path}: column {name!r}, which is to be learned,"
    if len(classes) > max(len(frame) / 2, 2):
        many = f"{len(classes):,} different values in {len(frame):,} rows"
        raise DataError(f"{learned} has {many}; name another one by target=")
    if len(classes) < 2:
        raise DataError(f"{learned} is {classes[0]!r} in each row")
    return classes


def _targets(frame: Frame, learned: Mapping[str, Any]) -> Any:
    """Targets as an array: classes (N,) int64, values (N,) or (N, M) float32, or labels (N, L) float32."""
    names, kinds = learned["names"], learned["kinds"]
    if learned["task"] == "classification":
        pl, texts = package(), _names(frame, names[0], kinds[0])
        codes = texts.cast(pl.Enum(learned["classes"]), strict=False).to_physical().cast(pl.Int64)
        if codes.is_null().any():
            row = int(codes.is_null().arg_max() or 0)
            near = did_you_mean(str(texts[row]), learned["classes"])
            raise frame.refuse(row, names[0], f"is no class that the training data have{near}")
        return codes.to_numpy().copy()
    values = np.stack([numbers(frame, n, k) for n, k in zip(names, kinds, strict=True)], 1).astype(np.float32)
    return values if len(names) > 1 else values[:, 0].copy()


def _fitted(frame: Frame, names: Sequence[str], rows: np.ndarray, notes: list[str]) -> list[Fitted]:
    columns: list[Fitted] = []
    for name in names:
        fitted = fit(frame, name, rows)
        if isinstance(fitted, str):
            notes.append(f"column {name!r} is left out: {fitted}")
        else:
            columns.append(fitted)
    if not columns:
        raise DataError(f"{frame.path} has no column that says anything: {'; '.join(notes)}")
    if filled := [f["name"] for f in columns if not is_present(frame.data[f["name"]]).all()]:
        notes.append(f"missing values are filled in {_some(filled)}")
    return columns


def _about_targets(targets: Any, learned: Mapping[str, Any]) -> str:
    about = f"{len(learned['names'])} labels"
    if learned["task"] == "classification":
        about = f"{len(learned['classes'])} classes ({_some(learned['classes'])})"
    if learned["task"] == "regression":
        about = f"values from {targets.min():.4g} to {targets.max():.4g}"
    return f"target {', '.join(map(repr, learned['names']))}: {about}"


def _about_columns(fitted: Sequence[Fitted]) -> str:
    words = {NUMBER: "numbers", TRUTH: "true or false", DATE: "dates", CATEGORY: "categories"}
    by_kind = {word: [f["name"] for f in fitted if f["kind"] == kind] for kind, word in words.items()}
    each = [f"{len(n)} column{'s' * (len(n) > 1)} of {word} ({_some(n)})" for word, n in by_kind.items() if n]
    return f"{', '.join(each)}; scaled by the training rows"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + ", ..." * (len(names) > SHOWN)
