"""Data that come with what is installed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import frozen

from cli.recipes.data.base import Data
from cli.recipes.setting import refusal

if TYPE_CHECKING:
    from pipeline.sources import Prepared, Split

SKLEARN = ("digits", "wine", "iris", "breast_cancer", "diabetes")
SMALL = {"lr": 0.1, "weight_decay": 0.01}
"""What tables of some hundred rows are learned best by; more is learned by heart."""


@frozen
class Digits(Data):
    """1,797 handwritten digits of 8x8."""

    def prepare(self, parts: Split) -> Prepared:
        from pipeline import sources

        train, held_out = sources.digits(parts=parts)
        return sources.Prepared(train, held_out, "classification", train.classes)


@frozen
class Random(Data):
    """1,000 random samples of 10 classes, which can be learned by heart only."""

    def prepare(self, parts: Split) -> Prepared:
        from pipeline import sources

        train, held_out = sources.random(seed=parts.seed), sources.random(200, seed=parts.seed + 1)
        return sources.Prepared(train, held_out, "classification", train.classes)


@frozen
class Sklearn(Data):
    """Small data sets of scikit-learn's: `sklearn:wine`."""

    prefers: ClassVar[Mapping[str, Any]] = SMALL

    @property
    def title(self) -> str:
        return self.source.partition(":")[2]

    def prepare(self, parts: Split) -> Prepared:
        from pipeline import sources

        if self.title not in SKLEARN:
            raise refusal(f"scikit-learn brings no data {self.title!r}", self.title, SKLEARN)
        return sources.sklearn(self.title, parts)
