"""Program: the functions that train and evaluate, of one run or of several side by side.

    train    tree, shard -> tree, metrics       one step
    measure  tree, sums, shard -> sums          one batch of an evaluation
    finish   sums -> results                    its metrics

`Single` is the program of a pipeline. `on_mesh` makes it the program of one of several processes, `members` of many
runs, `joint` of an ensemble: each takes a program and returns one. `compile` takes any, and so does `fit`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from pipeline.description import Description
from pipeline.element import Element
from pipeline.mesh import Shard
from pipeline.state import Batch, State
from pipeline.tree import Tree

if TYPE_CHECKING:
    from pipeline.programs.single import Single

Sums = dict[str, Tree]
"""Sums of metrics by the names of their stages."""
Seed = int | tuple[int, ...]
"""Seed of the order of samples; one per member, if members have orders of their own."""


class Program(Protocol):
    """The interface used by `fit` and `compile`. A tree is a State's; all functions are pure."""

    @property
    def pipe(self) -> Description:
        """Stages of one run."""

    @property
    def single(self) -> Single:
        """Program of one run."""

    @property
    def members(self) -> int:
        """Models trained side by side."""

    @property
    def runs(self) -> int | None:
        """Results of each metric; None for one number."""

    @property
    def orders(self) -> int | None:
        """Orders of samples, if the members have their own."""

    def init(self, seed: int = 0, *, steps: int | None = None, batch: Batch | None = None) -> State: ...

    def train(self, tree: dict[str, Tree], shard: Shard) -> tuple[dict[str, Tree], dict[str, Tensor]]: ...

    def zeros(self) -> Sums:
        """Sums of an evaluation before its first batch."""

    def measure(self, tree: dict[str, Tree], sums: Sums, shard: Shard) -> Sums: ...

    def finish(self, sums: Mapping[str, Tree]) -> dict[str, Any]: ...

    def seed(self, tree: Mapping[str, Tree]) -> Seed: ...

    def member(self, state: State, i: int) -> State:
        """State of one run."""

    def stacked(self, states: Iterable[State]) -> State:
        """State of all runs; the inverse of `member`."""

    def of(self, stages: Sequence[Element]) -> Program:
        """The same program of other stages."""

    def same(self, other: Program) -> bool:
        """Whether graphs compiled for the other program are valid for this one."""
