"""A kind of data: its settings, the recognition of its files, and their reader."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import frozen

from cli.recipes.setting import bounded, refusal, setting

if TYPE_CHECKING:
    from cli.recipes.data_card import About
    from pipeline.sources import Prepared, Rows, Split


def share(_: object, attribute: object, value: float) -> None:
    if not 0 < value < 1:
        raise refusal(f"--held-out {value} is out of range: it must be between 0 and 1")


bounded(share, exclusiveMinimum=0, exclusiveMaximum=1)


@frozen
class Data:
    """The data to train on."""

    prefers: ClassVar[Mapping[str, Any]] = {}
    """Settings of the optimizer, if none is chosen and the model prefers none."""
    model: ClassVar[str | None] = None
    """The model, if none is chosen, instead of the default of all data."""
    bundled: ClassVar[bool] = False
    """Whether its name alone is a source."""
    ends: ClassVar[tuple[str, ...]] = ()
    """Endings of its files' names."""

    source: str = setting("digits", "", fixed=True)
    held_out: float = setting(0.2, "held-out share of the samples", share, fixed=True)

    @classmethod
    def is_file(cls, source: str) -> bool:
        """Whether a source names a file of this kind."""
        return source.lower().endswith(cls.ends)

    @classmethod
    def is_folder(cls, names: Collection[str]) -> bool:
        """Whether a folder with such names is of this kind."""
        return False

    @property
    def path(self) -> Path:
        """The file or folder, without the kind before it."""
        return without_kind(self.source)

    @property
    def title(self) -> str:
        """Its share of a run's name."""
        return self.path.stem or "data"

    def prepare(self, split: Split) -> Prepared:
        """The training and the held-out data. Raises DataError for unreadable data."""
        raise NotImplementedError

    def others(self, about: About, *, targets: bool) -> Iterator[Rows]:
        """All samples in order, prepared as the data of a run were.

        Raises DataError for unreadable data, and ConfigError for another kind of data.
        """
        raise refusal(f"{self.source} is no other data: give a file or a folder of the kind that was learned")


def without_kind(source: str) -> Path:
    """The file or folder of a source."""
    return Path(source.partition(":")[2] if kind_prefix(source) else source)


def kind_prefix(source: str) -> str:
    """The kind before a source, such as `table:houses.txt`, or nothing."""
    kind, colon, rest = source.partition(":")
    return kind if colon and rest and kind.isidentifier() else ""
