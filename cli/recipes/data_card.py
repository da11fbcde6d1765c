"""About: facts about a run's data, for predictions on other data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import asdict, frozen

from cli.recipes.model.base import Fixed
from cli.recipes.setting import refusal
from cli.recipes.task import TASKS

if TYPE_CHECKING:
    from pipeline.sources import Prepared

FORMAT = 1


def _texts(values: Any) -> bool:
    return isinstance(values, tuple | list) and all(isinstance(v, str) for v in values)


def _counts(values: Any) -> bool:
    return isinstance(values, tuple | list) and all(type(v) is int and 0 < v < 2**40 for v in values)


def _numbers(values: Any) -> bool:
    return isinstance(values, tuple | list) and all(type(v) in (int, float) and abs(v) < 1e300 for v in values)


def _is_column(c: Any) -> bool:
    if c["kind"] == "category":
        return _texts((c["name"], *c["categories"]))
    if c["kind"] == "text":
        return _texts((c["name"], *c["words"])) and _counts((c["length"],))
    known = c["kind"] in ("number", "truth", "date", "time") and type(c["missing"]) is bool
    known &= type(c.get("hours", False)) is bool
    return known and _texts((c["name"], c["form"], c.get("unit", ""))) and _numbers((c["mean"], c["std"]))


@frozen(eq=False)
class About:
    """The task, the shapes, the names of classes, and the values fitted to the training samples."""

    fixed: Fixed
    classes: tuple[str, ...]
    """Names of classes, of several labels, or of several values."""
    notes: tuple[str, ...]
    fitted: Mapping[str, Any]

    @classmethod
    def of(cls, fixed: Fixed, data: Prepared) -> About:
        return cls(fixed, data.classes, data.lines, data.fitted)

    @property
    def json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def read(cls, found: Any, path: Path) -> About:
        """From a run's data.json. Raises ConfigError if that holds anything else."""
        try:
            if found["format"] != FORMAT:
                raise refusal(f"{path} has format {found['format']!r}, which this version does not know; update it")
            fixed: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in found["fixed"].items()}
            about = cls(Fixed(**fixed), tuple(found["classes"]), tuple(found["notes"]), found["fitted"])
            if not about._fits():
                raise TypeError
            return about
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            raise refusal(f"{path} is not what a run writes; is it damaged?") from None

    def _fits(self) -> bool:
        """Whether all values have the types that a run writes, and none is missing for its kind of data."""
        f, fitted = self.fixed, self.fitted
        good = _texts((*self.classes, *self.notes, *f.values, f.source)) and f.task in TASKS.values()
        good &= type(f.floats) is bool and isinstance(f.inputs, tuple)
        # A table of nothing but categories and texts has no numbers.
        shape = () if f.inputs == (0,) and f.sizes.get("categories") else f.inputs
        good &= _counts((*shape, f.outputs))
        good &= _counts((f.sizes.get("vocabulary", 1), f.sizes.get("context", 1)))
        good &= all(_counts(c if isinstance(c, tuple | list) else (c,)) for c in f.sizes.get("categories", ()))
        good &= all(_numbers(fitted.get(key, [])) for key in ("target_mean", "target_std"))
        good &= all(type(fitted.get(key, True)) is bool for key in ("log_outputs", "bytes"))
        targets = fitted.get("targets", {})
        good &= all(_texts(targets.get(key, [])) for key in ("names", "kinds", "forms", "classes", "units"))
        good &= "targets" not in fitted or (targets["task"] in TASKS.values() and len(targets["names"]) > 0)
        good &= all(map(_is_column, fitted.get("columns", [])))
        good &= "mode" not in fitted or (fitted["mode"] in ("L", "RGB") and len(fitted["size"]) == 2)
        good &= _texts((fitted.get("column", ""),))
        good &= _counts((*fitted.get("size", ()), fitted.get("white", 1)))
        if "tokenizer" in fitted:
            good &= _texts([fitted["tokenizer"] or "", fitted.get("alphabet", "")])
            good &= _counts((fitted["vocabulary"], fitted["context"]))
            good &= fitted["tokenizer"] != "characters" or len(fitted["alphabet"]) == fitted["vocabulary"]
        return bool(good)

    @property
    def task(self) -> str:
        return self.fixed.task

    @property
    def target(self) -> str:
        """The name of the target column, if it has one."""
        names: list[str] = self.fitted.get("targets", {}).get("names", ["targets"])
        return ", ".join(names)


def check_alike(abouts: Sequence[About | None]) -> None:
    """Raise ConfigError unless some runs learned the same from their data: task, classes and number of outputs."""
    if len({None if a is None else (a.task, a.classes, a.fixed.outputs) for a in abouts}) > 1:
        raise refusal("the runs learned other classes than the first, so they have no mean; take each alone")
