"""Prepared: a data set with what it is for, in two parts. What `pipe train` is given by each kind of data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

from attrs import field, frozen

from pipeline.sources.tensors import Source
from pipeline.state import Batch

Task: TypeAlias = Literal["classification", "several labels", "regression", "language modelling"]
"""What is learned of `targets`: a class (N,) int64; some of several labels (N, L) float32 of 0 and 1; values (N,) or
(N, M) float32; the next token at each place (N, T) int64."""


@frozen(eq=False)
class Prepared:
    """Samples to train on and samples held out, whose parts have the same names, `inputs` and `targets` among them."""

    train: Source
    held_out: Source
    task: Task
    classes: tuple[str, ...] = ()
    """Names of the classes, or of several labels or values."""
    sizes: Mapping[str, Any] = field(factory=dict)
    """What a model may need to know beyond the shapes, by the name that it asks for: `vocabulary`, or `categories`, how
    many there are in each column of them."""
    notes: tuple[str, ...] = ()
    """What was found and done, a line each."""
    fitted: Mapping[str, Any] = field(factory=dict)
    """What was learned of the training samples and is applied to any others, such as means and names of categories: as
    JSON has it."""
    raw: Callable[[], Any] | None = None
    """Reads the held-out samples of a table again, as they are in the file."""


@frozen(eq=False)
class Rows:
    """Some samples of other data, prepared as those of a run were."""

    beside: Mapping[str, Any]
    """What tells them apart, by name, a column each: cells of a table, file names, or their numbers."""
    batch: Batch
