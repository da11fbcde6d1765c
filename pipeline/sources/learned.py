"""The rule for what is learned, for all formats: the task of the targets, their classes, scale, and arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from attrs import asdict, evolve, frozen

from pipeline.errors import DataError, did_you_mean
from pipeline.sources.columns import CATEGORY, NUMBER, OTHER, TRUTH, Reading, are_long, are_truths, names, values
from pipeline.sources.frame import Frame, package
from pipeline.sources.prepared import Task
from pipeline.sources.reread import reread
from pipeline.text import some

FEW = 20
"""Whole numbers of at most this many different values are classes."""
MANY = 1000
"""So are numbers from 0 on without a gap, up to this many."""
ROWS = 5
"""Samples that each class of numbers has on average."""


def task_of(values: np.ndarray) -> Task:
    """The task of numbers: (N,) are classes if they are whole and few, else values; (N, L) of 0 and 1 are several
    labels, others values."""
    if values.ndim > 1:
        return "several labels" if np.isin(values, (0, 1)).all() else "regression"
    if (values != np.round(values)).any():
        return "regression"
    found = np.unique(values)
    numbered = len(found) <= MANY and np.array_equal(found, np.arange(len(found)))
    most = max(len(values) // ROWS, 2) if numbered else min(FEW, max(len(values) // ROWS, 2))
    return "classification" if len(found) <= most else "regression"


def scale(targets: np.ndarray) -> dict[str, Any]:
    """Mean and standard deviation of each value of the training targets, for `Prepared.fitted`."""
    values = targets.reshape(len(targets), -1).astype(np.float64)
    return {"target_mean": values.mean(0).tolist(), "target_std": np.maximum(values.std(0), 1e-12).tolist()}


@frozen
class Learned:
    """Target columns: their task, and, for other rows, how they were read and the classes."""

    names: Sequence[str]
    task: Task
    kinds: Sequence[str]
    forms: Sequence[str]
    classes: Sequence[str] = ()
    units: Sequence[str] = ()

    @classmethod
    def of(cls, frame: Frame, targets: Sequence[str], readings: Mapping[str, Reading], task: Task | None) -> Learned:
        """The task of some columns, unless it is given: texts and truth values are classes; for numbers, see `task_of`.

        Raises DataError if they can't be learned.
        """
        read = {name: readings[name] for name in targets}
        for name, reading in read.items():
            if reading.kind == OTHER:
                raise DataError(f"{frame.path}: column {name!r} can't be learned: {reading.note}")
        if task == "language modelling":
            raise DataError(f"{frame.path}: a column has no next tokens to learn; leave out task=")
        worded = [name for name, r in read.items() if r.kind not in (NUMBER, TRUTH)]
        single = read[targets[0]]
        if task is None and len(targets) == 1 and single.kind != NUMBER:
            task = "classification"
        if task == "classification" and len(targets) > 1:
            raise DataError(f"{frame.path}: a class is one column, and {', '.join(targets)} are {len(targets)}")
        if worded and task != "classification":
            first = frame.data[worded[0]][0]
            raise DataError(f"{frame.path}: column {worded[0]!r} holds {first!r} and the like, which are no numbers")
        if task is None:
            columns = [values(frame, name, r) for name, r in read.items()]
            task = task_of(np.stack(columns, 1) if len(columns) > 1 else columns[0])
        if task == "classification" and single.kind == NUMBER and are_long(frame.column(targets[0])):
            read[targets[0]] = single = Reading(CATEGORY)
        kinds, forms, units = zip(*((r.kind, r.form, r.unit) for r in read.values()), strict=True)
        learned = cls(tuple(read), task, kinds, forms, units=units)
        return learned if task != "classification" else evolve(learned, classes=_classes(frame, targets[0], single))

    @property
    def json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def readings(self) -> dict[str, Reading]:
        units = self.units or [""] * len(self.names)
        columns = zip(self.names, self.kinds, self.forms, units, strict=True)
        return {name: Reading(kind, form, unit=unit) for name, kind, form, unit in columns}

    def targets(self, frame: Frame, held: dict[str, Reading] | None = None) -> np.ndarray:
        """Classes (N,) int64, values (N,) or (N, M) float32, or several labels (N, L) float32 of 0 and 1. `held` keeps
        what the columns of a file hold, from block to block.

        Raises DataError for an unknown class, a label other than 0 and 1, a blank, and a cell of another kind.
        """
        held = reread(frame, self.readings, {} if held is None else held)
        readings = [held[name] for name in self.names]
        if self.task == "classification":
            return self._codes(frame, self.names[0], readings[0])
        read = [values(frame, name, r) for name, r in zip(self.names, readings, strict=True)]
        for name, column in zip(self.names, read, strict=True):
            labels = self.task == "several labels"
            bad = ~np.isin(column, (0, 1)) if labels else np.isnan(column)
            if bad.any():
                why = "is no label, 0 or 1; of values, task='regression'" if labels else "is missing; remove the row"
                raise frame.refuse(int(bad.argmax()), name, why)
        return (np.stack(read, 1) if len(read) > 1 else read[0]).astype(np.float32)

    def _codes(self, frame: Frame, name: str, reading: Reading) -> np.ndarray:
        pl = package()
        if reading.kind == TRUTH and len(self.classes) == 2 and are_truths(frame.column(name)):
            return values(frame, name, reading).astype(np.int64)
        texts = names(frame, name, reading)
        codes = texts.cast(pl.Enum(list(self.classes)), strict=False).to_physical().cast(pl.Int64)
        if codes.is_null().any():
            row = int(codes.is_null().arg_max() or 0)
            near = did_you_mean(str(texts[row]), self.classes)
            raise frame.refuse(row, name, f"is no class that the training data have{near}")
        array: np.ndarray = codes.to_numpy().copy()
        return array

    def note(self, targets: np.ndarray) -> str:
        """The decision, in words."""
        about = f"{len(self.names)} labels"
        if self.task == "classification":
            about = f"{len(self.classes)} classes ({some(self.classes)})"
        if self.task == "regression":
            about = f"values from {targets.min():.4g} to {targets.max():.4g}"
        return f"target {', '.join(map(repr, self.names))}: {about}"


def _classes(frame: Frame, name: str, reading: Reading) -> tuple[str, ...]:
    """Names of classes in order: of a type with names, theirs; of numbers, by value; of truth values, false first; of
    texts, by letters."""
    if (dtype := frame.data[name].dtype) == package().Enum:
        return tuple(dtype.categories)  # type: ignore[attr-defined]  # of an Enum
    texts = names(frame, name, reading)
    order = values(frame, name, reading) if reading.kind in (NUMBER, TRUTH) else texts.to_numpy()
    first = {text: order[i] for text, i in zip(texts.unique(maintain_order=True), texts.arg_unique(), strict=True)}
    found = sorted(first, key=lambda text: first[text])
    if reading.kind == TRUTH and len(set(first.values())) == 2 < len(found):  # such as True and TRUE
        found = [next(t for t in found if first[t] == truth) for truth in (0.0, 1.0)]
    learned = f"{frame.path}: column {name!r}, which is to be learned,"
    if len(found) > max(len(frame) / 2, 2):
        many = f"{len(found):,} different values in {len(frame):,} rows"
        raise DataError(f"{learned} has {many}; name another one by target=")
    if len(found) < 2:
        raise DataError(f"{learned} is {found[0]!r} in each row")
    return tuple(found)
