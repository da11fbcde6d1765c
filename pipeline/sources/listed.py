"""Images whose targets are beside them: in a table of paths, or in a tar archive in the format of WebDataset."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from attrs import evolve, frozen

from pipeline.errors import DataError
from pipeline.sources import files
from pipeline.sources.cells import kinds_of, series
from pipeline.sources.columns import readings
from pipeline.sources.formats import suffix, table_blocks
from pipeline.sources.frame import Frame, package
from pipeline.sources.learned import Learned
from pipeline.sources.parts import expand, joined
from pipeline.sources.pixels import SUFFIXES, Item

TARGETS = ("cls", "label", "class", "target", "txt", "json")
"""Usual names of targets in an archive, the first of which is learned."""


@frozen(eq=False)
class Listed:
    """Images with a row of a table each."""

    items: Sequence[Item]
    frame: Frame
    names: Sequence[str]
    """Columns that may be targets; the last is learned by default."""
    column: str = ""
    """The column of the paths in a table."""
    untargeted: int = 0
    """Images without targets, which `with_targets` left out."""

    def targets(self, names: str | None) -> list[str]:
        """The columns to learn. Raises DataError if there are none."""
        if not self.names:
            raise DataError(f"{self.frame.path} has no targets")
        return [self.names[-1]] if names is None else self.frame.named(names)

    def learned(self, names: Sequence[str]) -> Learned:
        """How these columns are learned."""
        frame = evolve(self.frame, data=self.frame.data.select(names))
        return Learned.of(frame, names, readings(frame), "classification" if [*names] == ["cls"] else None)

    def take(self, rows: np.ndarray) -> Listed:
        return evolve(self, items=[self.items[i] for i in rows.tolist()], frame=self.frame.take(rows))

    def with_targets(self, names: Sequence[str]) -> Listed:
        """The images that have these targets. Raises DataError if none has."""
        known = np.logical_and.reduce([self.frame.column(name).is_not_null().to_numpy() for name in names])
        if not known.any():
            raise DataError(f"{self.frame.path}: column {names[0]!r}, which is to be learned, has no values")
        return evolve(self.take(np.flatnonzero(known)), untargeted=int((~known).sum()))


def is_listed(path: Path) -> bool:
    """Whether a path names images by a table or an archive, and is no image itself."""
    return not path.is_dir() and path.suffix.lower() not in SUFFIXES


def listed(path: Path, column: str | None = None) -> Listed:
    """The images of a table or an archive; `column` has the paths, if it is known.

    Raises DataError for a file that has no images, and for a path, with its line, that is no file.
    """
    return _archive(path) if suffix(path.name) in (".tar", ".tgz") else _table(path, column)


def _table(path: Path, column: str | None) -> Listed:
    items: list[Item] = []
    frames: list[Frame] = []
    for frame in table_blocks(path):
        column = column or _paths(frame)
        names = frame.column(column).to_list()
        here = [Path(frame.path).parent / (name or "") for name in names]
        for row, item in enumerate(here):
            if not item.is_file():
                raise frame.refuse(row, column, f"is no file beside {frame.path}")
        items += here
        frames.append(frame)
    if not items:
        raise DataError(f"{path} has no images")
    whole = joined(path, frames)
    return Listed(items, whole, [name for name in whole.data.columns if name != column], column or "")


def _paths(frame: Frame) -> str:
    """The column whose texts are all names of images."""
    for name in frame.data.columns:
        seen = frame.column(name).drop_nulls()
        if len(seen) and seen.dtype == package().String and all(Path(s).suffix.lower() in SUFFIXES for s in seen):
            return name
    raise DataError(f"{frame.path} has no column of names of images, such as cat/001.png")


def _archive(source: Path) -> Listed:
    """Samples are the files of one name up to the first dot: `000.jpg` with `000.cls`, `.txt` or `.json`."""
    items: dict[str, Item] = {}
    cells: dict[str, dict[str, Any]] = {}
    for path in expand(source):
        for name, content in files.tar(path):
            folder, _, file = name.rpartition("/")
            key, _, end = file.partition(".")
            sample = f"{path}/{folder}/{key}" if folder else f"{path}/{key}"
            if key and f".{end.lower()}".endswith((*SUFFIXES,)):
                if sample in items:
                    raise DataError(f"{sample} has two images; give one for each sample")
                items[sample] = (f"{path}/{name}", content)
            elif key and end.lower() in ("cls", "txt", "json"):
                cells.setdefault(sample, {}).update(_cells(f"{path}/{name}", end.lower(), content))
    if lone := next((sample for sample in cells if sample not in items), None):
        raise DataError(f"{lone} has a target, but no image")
    if not items:
        raise DataError(f"{source} has no images")
    columns: dict[str, list[Any]] = {name: [] for row in cells.values() for name in row}
    for sample in items:
        for name, column in columns.items():
            column.append(cells.get(sample, {}).get(name))
    data = package().DataFrame([series(name, column, kinds_of(column)) for name, column in columns.items()])
    names = [name for name in reversed(TARGETS) if name in columns] or [*columns]
    return Listed([*items.values()], Frame(str(source), data, np.arange(len(items)) + 1, "sample"), names)


def _cells(name: str, end: str, content: bytes) -> Mapping[str, Any]:
    with files.reading(name, "is no target: a number, a text, or JSON"):
        text = content.decode().strip()
        if end == "cls":
            return {"cls": int(text)}
        value = json.loads(text) if end == "json" else text
        return value if isinstance(value, dict) else {end: value}
