"""Data that come with installed packages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import frozen

from cli.recipes.data.base import Data

if TYPE_CHECKING:
    from pipeline.sources import Prepared, Split

SMALL = {"lr": 0.1}
"""For tables, whose steps are few and noisy. No weight decay: 0.01 in SGD hides rare classes and many categories."""


@frozen
class Digits(Data):
    """1,797 handwritten digits of 8x8."""

    bundled: ClassVar[bool] = True

    def prepare(self, split: Split) -> Prepared:
        from pipeline import sources

        train, held_out = sources.digits(parts=split)
        return sources.Prepared(train, held_out, "classification", train.classes)


@frozen
class Random(Data):
    """1,000 random samples of 10 classes, which can only be memorized."""

    bundled: ClassVar[bool] = True

    def prepare(self, split: Split) -> Prepared:
        from pipeline import sources

        split.check(True)
        train, held_out = sources.random(seed=split.seed), sources.random(200, seed=split.seed + 1)
        return sources.Prepared(train, held_out, "classification", train.classes)


@frozen
class Sklearn(Data):
    """Small data sets of scikit-learn's: `sklearn:wine`."""

    prefers: ClassVar[Mapping[str, Any]] = SMALL
    model: ClassVar[str | None] = "table"

    @property
    def title(self) -> str:
        return self.source.partition(":")[2]

    def prepare(self, split: Split) -> Prepared:
        from pipeline import sources

        return sources.sklearn(self.title, split)
