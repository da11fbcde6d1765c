"""About: what is known of a run's data, so that its model can be used on others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import asdict, frozen

from cli.recipes.model.base import Fixed
from cli.recipes.setting import refusal

if TYPE_CHECKING:
    from pipeline.sources import Prepared

FORMAT = 1


@frozen(eq=False)
class About:
    """The task and the shapes, the names of classes, and what was fitted to the training samples."""

    fixed: Fixed
    classes: tuple[str, ...]
    """Of classes, several labels, or several values."""
    notes: tuple[str, ...]
    fitted: Mapping[str, Any]

    @classmethod
    def of(cls, fixed: Fixed, data: Prepared) -> About:
        return cls(fixed, data.classes, data.notes, data.fitted)

    @property
    def json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def read(cls, found: Any, path: Path) -> About:
        """From what is in a run's data.json. Raises ConfigError where that is something else."""
        try:
            if found.get("format", FORMAT) != FORMAT:
                raise refusal(f"{path} has format {found['format']!r}, which this version does not know; update it")
            fixed: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in found["fixed"].items()}
            return cls(Fixed(**fixed), tuple(found["classes"]), tuple(found["notes"]), found["fitted"])
        except (AttributeError, KeyError, TypeError):
            raise refusal(f"{path} is not what a run writes; is it damaged?") from None

    @property
    def task(self) -> str:
        return self.fixed.task

    @property
    def target(self) -> str:
        """What is learned, by the name of its column, where it has one."""
        names: list[str] = self.fitted.get("targets", {}).get("names", ["targets"])
        return ", ".join(names)
