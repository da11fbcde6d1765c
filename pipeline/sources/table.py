"""Tables: a column, or several, learned from the others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import evolve

from pipeline.errors import DataError, did_you_mean
from pipeline.sources import encode as columns
from pipeline.sources.csv import Cells, blocks, floats, package, read, there
from pipeline.sources.encode import CATEGORY, NUMBER, TRUTH, Fitted
from pipeline.sources.prepared import Prepared, Task
from pipeline.sources.split import Split
from pipeline.sources.tensors import Tensors

FEW = 20
"""Whole numbers of so many different values at most, each of them on several rows, are classes."""
ROWS = 5
"""On so many rows on average."""
SHOWN = 4


def table(
    path: str | Path, *, target: str | None = None, test: str | Path | None = None, parts: Split | None = None,
    task: Task | None = None, header: bool | None = None, groups: str | None = None, time: str | None = None,
    ignore: Collection[str] = (),
) -> Prepared:  # fmt: skip
    """A table as .csv, .tsv, .csv.gz or .parquet: `target`, one column (the last by default) or several "a,b", is
    learned from the others.

    Batches have `inputs` (B, D) float32, `targets`, and, where there are columns of text or dates, `categories` (B, C)
    int64. Numbers have mean 0 and deviation 1 over the training rows, a missing one is their mean, and a column of 0
    and 1 says where some are; a category that is missing or new is 0. Text, true and false, and whole numbers of few
    values are classes to learn; other numbers are values in their own units, whose mean and deviation over the training
    rows are fitted as `target_mean` and `target_std`; several columns of 0 and 1 are labels. `task` says otherwise.

    - `test`: another file, which is held out, instead of a part.
    - `groups`: a column whose equal values stay in one part; `time`: one by which the last rows are held out. The first
      is no input.
    - `ignore`: columns that are left out.

    Raises DataError, with the line, for what does not fit.
    """

    def cells() -> Cells:
        found = read(path, header)
        for name in (*ignore, *([groups] if groups else []), *([time] if time else [])):
            found.column(name)
        return evolve(found, columns={n: c for n, c in found.columns.items() if n not in ignore})

    return prepare(
        cells, target, parts or Split(), task, groups=groups, time=time,
        test=None if test is None else lambda: read(test, header),
    )  # fmt: skip


def prepare(
    again: Callable[[], Cells], target: str | None, parts: Split, task: Task | None = None, *,
    groups: str | None = None, time: str | None = None, test: Callable[[], Cells] | None = None,
) -> Prepared:  # fmt: skip
    """A table as `table` prepares it. `again` and `test` read it, as often as it is needed."""
    cells = again()
    names = [next(reversed(cells.columns))] if target is None else [t.strip() for t in target.split(",")]
    notes = [*cells.notes]
    cells = _with_targets(cells, names, notes)
    learned = _learned(cells, names, task)
    task = learned["task"]
    targets = _targets(cells, learned)
    if test is not None:
        train = np.arange(len(cells))
    else:
        rows, held = parts.rows(
            len(cells), labels=targets if task == "classification" else None,
            groups=None if groups is None else cells.column(groups).cast(package().String).fill_null("").to_numpy(),
            time=None if time is None else columns.numbers(cells, time, columns.kind_of(cells.column(time)))[0],
        )  # fmt: skip
        train = rows.numpy()
    fitted = _fitted(cells, [n for n in cells.columns if n not in (*names, groups)], train, notes)
    scales: dict[str, Any] = {}
    if task == "regression":
        values = targets[train].reshape(len(train), -1).astype(np.float64)
        scales = {"target_mean": values.mean(0).tolist(), "target_std": np.maximum(values.std(0), 1e-12).tolist()}
    known = {"columns": fitted, "targets": learned, **scales}
    whole, counts = _tensors(cells, fitted, targets)
    parts_of = [whole, apply(known, test())] if test is not None else [
        Tensors({n: t[i] for n, t in whole.tensors.items()}, whole.classes) for i in (rows, held)]  # fmt: skip

    def raw() -> Cells:
        found = _with_targets((test or again)(), names, [])
        return found if test is not None else found.only(held.numpy())

    notes = [_about(targets, learned), *_kinds(fitted), *notes]
    classes = tuple(learned.get("classes", names if len(names) > 1 else ()))
    sizes = {"categories": tuple(counts)} if counts else {}
    return Prepared(parts_of[0], parts_of[1], task, classes, sizes, tuple(notes), known, raw)


def apply(fitted: Mapping[str, Any], cells: Cells, *, targets: bool = True) -> Tensors:
    """Other rows of such a table, prepared as those were that were fitted: without `targets`, inputs alone.

    Raises DataError for a column that is missing, a cell that is of another kind, and a class that was not there.
    """
    learned = fitted["targets"]
    if targets:
        cells = _with_targets(cells, learned["names"], [])
    return _tensors(cells, fitted["columns"], _targets(cells, learned) if targets else None)[0]


def _tensors(cells: Cells, fitted: list[Fitted], targets: Any) -> tuple[Tensors, list[int]]:
    scale = columns.Columns(fitted)
    inputs, categories = scale(*columns.raw(cells, fitted))
    tensors = {"inputs": inputs, **({"categories": categories} if scale.counts else {})}
    if targets is not None:
        tensors["targets"] = torch.from_numpy(targets)
    return Tensors(tensors), scale.counts


def stream(
    path: str | Path, fitted: Mapping[str, Any], *, targets: bool, header: bool | None = None
) -> Iterator[tuple[Cells, Tensors]]:
    """Other rows of such a table, in a file of any size: stretches of it as they are there, and prepared; with
    `targets`, of the rows that have them."""
    for cells in blocks(path, header):
        if targets:
            rows = _present(cells, fitted["targets"]["names"])
            if not rows.any():
                continue
            cells = cells.only(np.flatnonzero(rows))
        yield cells, apply(fitted, cells, targets=targets)


def _with_targets(cells: Cells, names: Sequence[str], notes: list[str]) -> Cells:
    """The rows that have all their targets."""
    found = _present(cells, names)
    if not found.any():
        raise DataError(f"{cells.path}: column {names[0]!r}, which is to be learned, has no values")
    if not found.all():
        notes.append(f"{(~found).sum():,} rows without {' or '.join(map(repr, names))} are left out")
        return cells.only(np.flatnonzero(found))
    return cells


def _present(cells: Cells, names: Sequence[str]) -> np.ndarray:
    """Which rows have all of these columns."""
    found = np.ones(len(cells), dtype=bool)
    for name in names:
        found &= there(cells.column(name)).to_numpy()
    return found


def _learned(cells: Cells, names: Sequence[str], task: Task | None) -> dict[str, Any]:
    """What there is to learn of the targets: the task, and the classes."""
    kinds = [columns.kind_of(cells.columns[n]) for n in names]
    if len(names) > 1:
        truths = all(k == TRUTH or (k == NUMBER and _whole(cells, n, 2)) for k, n in zip(kinds, names, strict=True))
        task = task or ("several labels" if truths else "regression")
        if task == "classification":
            raise DataError(f"{cells.path}: a class is one column, and {', '.join(names)} are {len(names)}")
    elif task is None:
        few = kinds[0] != NUMBER or _whole(cells, names[0], min(FEW, len(cells) // ROWS))
        task = "classification" if few else "regression"
    if task == "regression":
        for name, kind in zip(names, kinds, strict=True):
            if kind not in (NUMBER, TRUTH):
                first = cells.columns[name][0]
                raise DataError(f"{cells.path}: column {name!r} holds {first!r} and the like, which are no values")
    if task != "classification":
        return {"names": list(names), "task": task, "kinds": kinds}
    classes = _classes(cells, names[0], kinds[0])
    if len(classes) > max(len(cells) / 2, 2):
        raise DataError(
            f"{cells.path}: column {names[0]!r}, which is to be learned, has {len(classes):,} different values in "
            f"{len(cells):,} rows; name another one by target="
        )
    if len(classes) < 2:
        raise DataError(f"{cells.path}: column {names[0]!r}, which is to be learned, is {classes[0]!r} in each row")
    return {"names": list(names), "task": task, "kinds": kinds, "classes": classes}


def _whole(cells: Cells, name: str, most: int) -> bool:
    """Whether a column holds whole numbers of so many different values at most."""
    values = columns.numbers(cells, name, NUMBER)[0]
    return bool(np.array_equal(values, np.round(values)) and len(np.unique(values)) <= most) and (
        most > 2 or set(values.tolist()) <= {0.0, 1.0}
    )


def _texts(cells: Cells, name: str, kind: str) -> Any:
    """A column's values as names of classes."""
    pl, column = package(), cells.columns[name]
    if kind != NUMBER:
        return column.cast(pl.String)
    numbers = floats(column)
    return numbers.cast(pl.Int64, strict=False).cast(pl.String).fill_null(numbers.cast(pl.String))


def _classes(cells: Cells, name: str, kind: str) -> list[str]:
    found: list[str] = _texts(cells, name, kind).unique().to_list()
    return sorted(found, key=float) if kind == NUMBER else sorted(found)


def _targets(cells: Cells, learned: Mapping[str, Any]) -> Any:
    """Targets as an array: classes (N,) int64, values (N,) or (N, M) float32, or labels (N, L) float32."""
    names, kinds = learned["names"], learned["kinds"]
    if learned["task"] == "classification":
        classes = learned["classes"]
        texts = _texts(cells, names[0], kinds[0])
        pl = package()
        codes = texts.cast(pl.Enum(classes), strict=False).to_physical().cast(pl.Int64)
        if codes.is_null().any():
            row = int(codes.is_null().arg_max() or 0)
            near = did_you_mean(str(texts[row]), classes)
            raise cells.refuse(row, names[0], f"is no class that the training data have{near}")
        return codes.to_numpy().copy()
    made = [columns.numbers(cells, n, k)[0] for n, k in zip(names, kinds, strict=True)]
    return np.stack(made, 1).astype(np.float32) if len(made) > 1 else made[0].astype(np.float32)


def _fitted(cells: Cells, names: Sequence[str], rows: np.ndarray, notes: list[str]) -> list[Fitted]:
    found: list[Fitted] = []
    filled: list[str] = []
    for name in names:
        learned = columns.fit(cells, name, rows)
        if isinstance(learned, str):
            notes.append(f"column {name!r} is left out: {learned}")
            continue
        found.append(learned)
        if not there(cells.columns[name]).all():
            filled.append(name)
    if not found:
        raise DataError(f"{cells.path} has no column that says anything: {'; '.join(notes)}")
    if filled:
        notes.append(f"missing values are filled in {_some(filled)}")
    return found


def _about(targets: Any, learned: Mapping[str, Any]) -> str:
    found = f"{len(learned['names'])} labels"
    if learned["task"] == "classification":
        found = f"{len(learned['classes'])} classes ({_some(learned['classes'])})"
    if learned["task"] == "regression":
        found = f"values from {targets.min():.4g} to {targets.max():.4g}"
    return f"target {', '.join(map(repr, learned['names']))}: {found}"


def _kinds(fitted: Sequence[Fitted]) -> list[str]:
    words = {NUMBER: "numbers", TRUTH: "true or false", columns.DATE: "dates", CATEGORY: "categories"}
    found = []
    for kind, word in words.items():
        names = [f["name"] for f in fitted if f["kind"] == kind]
        if names:
            found.append(f"{len(names)} column{'s' if len(names) > 1 else ''} of {word} ({_some(names)})")
    return [", ".join(found) + "; scaled by the training rows"]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
