"""Prepared: a data set with its task, split in two: the form in which `pipe train` gets all kinds of data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from attrs import field, frozen
from torch import Tensor

from pipeline.errors import DataError
from pipeline.sources.tensors import Source
from pipeline.state import Batch

Task: TypeAlias = Literal["classification", "several labels", "regression", "language modelling"]
"""Targets are a class (N,) int64; several labels (N, L) float32 of 0 and 1; values (N,) or (N, M) float32; the next
token at each position (N, T) int64."""


LEFT_OUT, TARGET = "left out", "target"


@frozen
class Column:
    """A decision on a column."""

    name: str
    kind: str
    """number, truth, date, time, category, target, or left out."""
    range: str
    """Smallest and largest value, or the first categories."""
    missing: int
    """Missing values, of all rows."""
    note: str = ""
    alarm: bool = False
    """Whether the note should be read first."""

    @property
    def remarkable(self) -> bool:
        """Whether the decision is more than its kind."""
        return self.alarm or self.kind == LEFT_OUT


@frozen(eq=False)
class Prepared:
    """Training and held-out samples with the same names, `inputs` and `targets` among them."""

    train: Source
    held_out: Source
    task: Task
    classes: tuple[str, ...] = ()
    """Names of the classes, labels or values."""
    sizes: Mapping[str, Any] = field(factory=dict)
    """Sizes that a model needs beyond the shapes, by the name of its option: `vocabulary`, or `categories`, one for
    each column."""
    notes: tuple[str, ...] = ()
    """Decisions about the data, a line each."""
    fitted: Mapping[str, Any] = field(factory=dict)
    """Values fitted to the training samples, such as means and category names, as JSON."""
    raw: Callable[[], Any] | None = None
    """Reads the held-out rows of a table again, as they are in the file."""
    columns: tuple[Column, ...] = ()
    """Decisions on the columns of a table, alarms first."""

    @property
    def lines(self) -> tuple[str, ...]:
        """Notes on the data and on its columns."""
        left = "is left out: "
        columns = [f"column {c.name!r} {left * (c.kind == LEFT_OUT)}{c.note}" for c in self.columns if c.remarkable]
        return (*self.notes, *columns)


def check_classes(name: Any, targets: Tensor, count: int, first: int = 0) -> None:
    """Raise DataError for a class (N,) outside of 0..count-1, of samples from number `first` on."""
    unknown = ((targets < 0) | (targets >= count)).nonzero().flatten()
    if len(unknown):
        at = f"target {int(targets[unknown[0]])} in sample {first + int(unknown[0])}"
        raise DataError(f"{name}: {at} is no class that the training data have")


@frozen(eq=False)
class Rows:
    """New samples, encoded like a run's."""

    beside: Mapping[str, Any]
    """Columns that identify each: cells of a table, file names, or row numbers."""
    batch: Batch
    skipped: tuple[int, ...] = ()
    """Rows among them that can't be read and are left out, by their numbers in the file."""
    unit: str = "line"
    """Unit of these numbers: "line" or "row"."""
    numbers: Any = None
    """(N,) int64 such numbers of the samples, if others may be left out."""
    unknown: Mapping[str, Sequence[str]] = field(factory=dict)
    """Values of categories that the run does not know, by column, one for each row that has one."""
    notes: tuple[str, ...] = ()
    """What else is left out or cut, a line each."""
    untargeted: int = 0
    """Rows among them without a target, which are left out."""
