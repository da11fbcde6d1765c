"""What data are prepared from: their settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import frozen

from cli.recipes.setting import refusal, setting

if TYPE_CHECKING:
    from cli.recipes.data_card import About
    from pipeline.sources import Prepared, Rows, Split


def _share(_: object, attribute: object, value: float) -> None:
    if not 0 < value < 1:
        raise refusal(f"--held-out {value} is out of range: it must be between 0 and 1")


@frozen
class Data:
    """What to train on."""

    prefers: ClassVar[Mapping[str, Any]] = {}
    """Settings of the optimizer, where none is chosen, and the model prefers none."""

    source: str = setting("digits", "", fixed=True)
    held_out: float = setting(0.2, "share of the samples that is held out", _share, fixed=True)

    @property
    def path(self) -> Path:
        """The file or folder, without the kind in front of it."""
        return Path(self.source.partition(":")[2] if kind_prefix(self.source) else self.source)

    @property
    def title(self) -> str:
        """What a run is called by."""
        return self.path.stem or "data"

    def prepare(self, parts: Split) -> Prepared:
        """The data in two parts. Raises DataError for what can't be read."""
        raise NotImplementedError

    def others(self, about: About, *, targets: bool) -> Iterator[Rows]:
        """Its samples, all of them in their order, prepared as those were that a run was trained on.

        Raises DataError for what can't be read, and ConfigError where it is of another kind.
        """
        raise refusal(f"{self.source} is no other data: give a file or a folder of the kind that was learned")


def kind_prefix(source: str) -> str:
    """The kind in front of a source such as `table:houses.txt`, or nothing."""
    kind, colon, rest = source.partition(":")
    return kind if colon and rest and kind.isidentifier() else ""
