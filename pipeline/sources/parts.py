"""Tables in several files: the files of a list, a pattern or a folder, and one Frame of their rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path

import numpy as np
from attrs import evolve, field, frozen

from pipeline.errors import DataError
from pipeline.sources.columns import CATEGORY, Reading, names
from pipeline.sources.files import in_archive, reading
from pipeline.sources.frame import Frame, package
from pipeline.sources.split import HELD_OUT, TRAIN


def expand(source: str | Path) -> list[Path]:
    """The files of `a.csv`, `a.csv,b.csv`, `part-*.csv`, or a folder. Raises DataError if there are none."""
    path, text = Path(source), str(source)
    with reading(path):
        if path.is_dir():
            found = sorted(f for f in path.iterdir() if not f.name.startswith((".", "_")))
            if other := next((f for f in found if not f.is_file()), None):
                raise DataError(f"{path} is a folder of more than files: {other.name}; give a pattern, as {path}/*.csv")
            if not found:
                raise DataError(f"{path} is a folder without files")
            _check_parts(path, found)
            return found
        if path.exists() or in_archive(path):
            return [path]
        if "," in text:
            return [file for part in text.split(",") if part.strip() for file in expand(part.strip())]
        if has_magic(text):
            files = sorted(Path(name) for name in glob(text, recursive=True))
            if not files:
                raise DataError(f"no file has a name like {text}")
            return files
    return [path]


def _check_parts(folder: Path, found: Sequence[Path]) -> None:
    """Refuse the parts of a split as one table."""
    names = {part: file for file in found for part in re.split(r"[^a-z]+", file.name.lower())}
    train, held = (next((names[n] for n in known if n in names), None) for known in (TRAIN, HELD_OUT))
    if train is not None and held is not None:
        instead = f"give {train} as data and {held} as test, or {folder}/* for one table of both"
        raise DataError(f"{folder} has the parts of a split, {train.name} and {held.name}: {instead}")


@frozen(eq=False)
class Several(Frame):
    """The rows of several files."""

    files: tuple[str, ...] = ()
    file: np.ndarray = field(factory=lambda: np.empty(0, np.int32))
    """(N,) position of each row's file."""

    def take(self, rows: np.ndarray) -> Frame:
        return evolve(self, data=self.data[rows], lines=self.lines[rows], file=self.file[rows])

    def refuse(self, row: int, name: str, why: str) -> DataError:
        here = slice(row, row + 1)
        one = Frame(self.files[self.file[row]], self.data.select(name)[here], self.lines[here], self.unit)
        return one.refuse(0, name, why)


def joined(source: str | Path, frames: Sequence[Frame]) -> Frame:
    """One Frame of some blocks, of one file or of several. A column that is text in any of them is text.

    Raises DataError for columns of types that do not go together.
    """
    pl = package()
    types = {name: {frame.data[name].dtype for frame in frames} for name in frames[0].data.columns}
    data = []
    for frame in frames:
        texts = [
            n
            for n, kinds in types.items()
            if len(kinds) > 1 and pl.String in kinds and frame.data[n].dtype != pl.String
        ]
        data.append(frame.data.with_columns(names(frame, n, Reading(CATEGORY)).alias(n) for n in texts))
    with reading(source, "has columns of different types"):
        whole = pl.concat(data, how="vertical_relaxed")  # in chunks: as one, the rows would be in memory twice
    paths = tuple(dict.fromkeys(frame.path for frame in frames))
    decimal = frames[0].decimal if len({frame.decimal for frame in frames}) == 1 else None
    options = {
        "path": str(source) if len(paths) > 1 else paths[0], "data": whole, "unit": frames[0].unit, "decimal": decimal,
        "lines": np.concatenate([frame.lines for frame in frames]), "missing": frames[0].missing,
        "skipped": tuple(line for frame in frames for line in frame.skipped),
        "notes": tuple(dict.fromkeys(note for frame in frames for note in frame.notes)),
    }  # fmt: skip
    if len(paths) == 1:
        return Frame(**options)
    file = np.concatenate([np.full(len(frame), paths.index(frame.path), np.int32) for frame in frames])
    return Several(**options, files=paths, file=file)
