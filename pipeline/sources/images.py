"""Images in folders by class, in a table, or in a tar archive."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import evolve
from torch import Tensor

from pipeline.element import is_count
from pipeline.errors import ConfigError, DataError, did_you_mean
from pipeline.sources.files import reading
from pipeline.sources.learned import Learned, scale
from pipeline.sources.listed import is_listed, listed
from pipeline.sources.pixels import SUFFIXES, WHITE, Images, Item, header, white_of
from pipeline.sources.prepared import Prepared, Task
from pipeline.sources.split import HELD_OUT, TRAIN, Split
from pipeline.sources.tensors import Tensors
from pipeline.text import shown, some

GREY = ("1", "L", "I", "F")
"""What Pillow's names of grey modes begin with."""
AUGMENT = {
    "none": (), "flip": ("flip",), "crop": ("crop",), "flip+crop": ("flip", "crop"), "alternate": ("alternate",),
    "alternate+crop": ("alternate", "crop"), "auto": ("flip", "crop"),
}  # fmt: skip
HEADERS = 1000
"""Number of images to read headers of, for the size and mode of all."""
TO_TRAIN, TO_HOLD_OUT = (rf"(^|[^a-z])({words})" for words in ("train|trn", "val|test|tst|dev|eval|hold"))
"""Names of folders that are the parts of the data if all have the same folders inside, such as seg_train."""
LARGEST, MEDIAN = 512, 224
"""Largest side, in pixels, of images that keep their size, and of the median that others are scaled to."""


def images(
    folder: str | Path, *, size: int | tuple[int, int] | None = None, test: str | Path | None = None,
    parts: Split | None = None, augment: str = "auto", workers: int = 0, mode: str | None = None,
    target: str | None = None,
) -> Prepared:  # fmt: skip
    """Images by class, as folder/class/*.png (jpg, bmp, gif, webp, tif; also in folders below): inputs (N, C, H, W)
    float32 in [0, 1], targets (N,) int64.

    Instead of a folder, a table, of any format of `formats.TABLES`, has a column of paths, relative to itself, and a
    column `target` (the last by default), learned as a table's is; a tar archive has samples `000.jpg` with `000.cls`,
    `.txt` or `.json`, as WebDataset writes them.

    - `test`: a folder of held-out images by class; by default folder/val or folder/test beside folder/train, else a
      share by `parts`.
    - `size`: H and W, or one number for both; images are scaled to cover it and cropped to the centre. By default their
      own size, if all have the same and no side is above 512, else the median short side, a multiple of 8 up to 224.
    - `mode`: "L" for grey images, C = 1, or "RGB"; by default grey if all are.
    - `augment`: "flip" (left and right, half of the time), "alternate" (half of them, then in the next epoch the other
      half), "crop" (a shift by up to an eighth, reflected at the edges), "flip+crop", "alternate+crop" or "none", of
      training samples, drawn again in each epoch. "auto" is flip+crop, but none for grey images or below 32 pixels.
    - `workers`: processes that decode and augment ahead.

    Images of less than 1 GiB are kept in memory. Raises ConfigError without Pillow, and DataError for a folder without
    images or classes, and for an image that can't be decoded, with its path.
    """
    if augment not in AUGMENT:
        raise ConfigError(f"augment={augment!r} is unknown{did_you_mean(augment, AUGMENT)}")
    options: dict[str, Any] = {"size": size, "mode": mode, "augment": augment, "workers": workers}
    parts = parts or Split()
    if is_listed(Path(folder)):
        return _of_listed(Path(folder), None if test is None else Path(test), target, parts, options)
    if target is not None:
        raise ConfigError(f"target={target!r} is a column of a table; the folders of {folder} are its classes")
    training, held, notes = _sides(Path(folder), None if test is None else Path(test))
    parts.check(held is not None)
    folders, others = by_class(training)
    classes = tuple(folders)
    if len(classes) < 2:
        raise DataError(f"{training} has images of one class alone, {classes[0]!r}: there is nothing to tell apart")
    files, targets = _listed(folders, classes)
    if held is None:
        rows = parts.rows(len(files), labels=targets)
        sides = [([files[i] for i in r.tolist()], targets[r]) for r in rows]
    else:
        held_out, more = by_class(held)
        others += more
        for name in held_out:
            if name not in classes:
                unknown = f"{held / name} is of a class that {training} has no images of"
                raise DataError(f"{unknown}{did_you_mean(name, classes)}")
        sides = [(files, targets), _listed(held_out, classes)]
    if others:
        notes = (*notes, f"{others} other file{'s' * (others > 1)} passed over")
    return prepared(sides, classes, **options, notes=notes)


def _of_listed(path: Path, test: Path | None, target: str | None, parts: Split, options: dict[str, Any]) -> Prepared:
    """Images in a table or an archive."""
    parts.check(test is not None)
    known = listed(path)
    names = known.targets(target)
    known = known.with_targets(names)
    sides = {"": known}
    learned = known.learned(names)
    targets = torch.from_numpy(learned.targets(known.frame))
    if test is None:
        rows = parts.rows(len(targets), labels=targets if learned.classes else None)
        pairs = [(known.take(r.numpy()), targets[r]) for r in rows]
    else:
        sides[f"{test}: "] = other = listed(test, known.column).with_targets(names)
        pairs = [(known, targets), (other, torch.from_numpy(learned.targets(other.frame)))]
    left_out = f"images without {' or '.join(map(repr, names))} are left out"
    counts = (f"{where}{side.untargeted:,} {left_out}" for where, side in sides.items() if side.untargeted)
    notes = (learned.note(targets.numpy()), *counts)
    classes, several = tuple(learned.classes), tuple(names) if len(names) > 1 else ()
    data = prepared([(side.items, t) for side, t in pairs], classes, **options, notes=notes)
    fitted = {**data.fitted, "targets": learned.json, "column": known.column}
    if learned.task == "regression":
        fitted |= scale(pairs[0][1].numpy())
    return evolve(data, task=learned.task, classes=classes or several, fitted=fitted)


def others(
    path: Path, fitted: Mapping[str, Any], *, targets: bool, classes: Sequence[str]
) -> tuple[Sequence[Item], Mapping[str, Any], Tensor | None, int]:
    """Other images than the training ones, with columns that identify each, and, if they are wanted, their targets,
    and the number of images that have none, which are left out.

    Raises DataError for an unknown class.
    """
    if is_listed(path):
        found = listed(path, fitted.get("column"))
        if targets and "targets" not in fitted:
            raise DataError(f"{path} is no folder of images by class, as the training data were")
        learned = Learned(**fitted["targets"]) if targets else None
        found = found if learned is None else found.with_targets(learned.names)
        beside = (
            found.frame.cells
            if found.column
            else {"file": [shown(item[0]) for item in found.items if isinstance(item, tuple)]}
        )
        codes = None if learned is None else torch.from_numpy(learned.targets(found.frame))
        return found.items, beside, codes, found.untargeted
    codes = None
    if targets:
        folders, _ = by_class(path)
        for name in folders:
            if name not in classes:
                raise DataError(f"{path / name} is of a class that was not learned{did_you_mean(name, classes)}")
        files, codes = _listed(folders, tuple(classes))
    else:
        files = [path] if path.is_file() else files_in(path)
    names = [shown(os.path.relpath(file, path) if path.is_dir() else str(file)) for file in files]
    return files, {"file": names}, codes, 0


def prepared(
    sides: Sequence[tuple[Sequence[Item], Tensor]], classes: tuple[str, ...], *, size: int | tuple[int, int] | None,
    mode: str | None, augment: str, workers: int, notes: tuple[str, ...],
) -> Prepared:  # fmt: skip
    """Training and held-out images with their targets, decoded and augmented as `images` does."""
    if mode not in (None, "L", "RGB"):
        raise ConfigError(f'mode={mode!r} is unknown: "L" is grey, "RGB" is colours')
    items, targets = sides[0]
    seen = [header(items[i]) for i in range(0, len(items), -(-len(items) // HEADERS))]
    mode = mode or ("L" if all(m.startswith(GREY) for _, m, _ in seen) else "RGB")
    white = white_of(items) if any(m.startswith("I") for _, m, _ in seen) else WHITE
    shape = _shape(size, [s for s, _, _ in seen])
    if any(several for _, _, several in seen):
        notes = ("some images have several frames, of which the first is read", *notes)
    kinds = AUGMENT["none" if augment == "auto" and (mode == "L" or min(shape) < 32) else augment]
    train = Images(items, targets, shape, mode, kinds, white).source(classes, workers)
    held_out = Images(*sides[1], shape, mode, white=white).source(classes, workers)
    count = f"{len(items) + len(sides[1][0]):,} images"
    if classes:
        each = [f"{classes[c]} {n:,}" for c, n in sorted(Counter(targets.tolist()).items())]
        count += f" of {len(classes)} classes; to train on: {some(each, 10)}"
    sizes = sorted({s for s, _, _ in seen}, key=lambda s: s[0] * s[1])
    least, most, used = ("{}x{}".format(*s) for s in (sizes[0], sizes[-1], shape))
    original = f"all {least}" if len(sizes) == 1 else f"of {least} to {most}"
    scaled = "" if sizes == [shape] else f", scaled and cropped to {used}"
    look = f"{'grey' if mode == 'L' else 'in colours'}, {original} (height x width){scaled}"
    in_memory = isinstance(train, Tensors) or train.reader.data.pixels is not None  # type: ignore[attr-defined]  # else it is Samples
    stored = "kept in memory" if in_memory else "decoded as they are read"
    how = f"augmented in training: {' and '.join(kinds) or 'no'}; {stored}"
    task: Task = "classification" if classes else "regression"
    fitted: dict[str, Any] = {"size": list(shape), "mode": mode}
    if any(m.startswith("I") for _, m, _ in seen):
        fitted["white"] = white
        notes = (f"images of more than 8 bits: white is {white}, of {white.bit_length()} bits", *notes)
    return Prepared(train, held_out, task, classes, notes=(count, look, how, *notes), fitted=fitted)


def _shape(size: Any, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    if size is not None:
        height, width = size if isinstance(size, tuple | list) and len(size) == 2 else (size, size)
        if not (is_count(height) and is_count(width)):
            raise ConfigError(f"size={size!r} is not a positive whole number of pixels, or two of them")
        return height, width
    if len(set(sizes)) == 1 and max(sizes[0]) <= LARGEST:
        return sizes[0]
    side = min(max(8 * round(float(np.median([min(s) for s in sizes])) / 8), 8), MEDIAN)
    return side, side


def _sides(folder: Path, test: Path | None) -> tuple[Path, Path | None, tuple[str, ...]]:
    """The folders to train on and to hold out, with notes."""
    parts = {f.name.lower(): f for f in _visible(folder) if f.is_dir()}
    trains = [f for name, f in parts.items() if name in TRAIN]
    beside = [parts[name] for name in HELD_OUT if name in parts]
    notes: tuple[str, ...] = ()
    if len(trains) == 1 and 0 < len(beside) < len(parts) - 1:
        parts = {name: f for name, f in parts.items() if f in (*trains, *beside) or _has_images(f)}
        if len(beside) + 1 < len(parts) and _common([*trains, *beside]):
            other = next(f for f in parts.values() if f not in (*trains, *beside))
            said = f"{folder} has the same classes in {trains[0].name} and {beside[0].name}, and images in {other.name}"
            raise DataError(f"{said}; name {trains[0]}, and the held-out images by test=")
    # If other folders are beside it, train is a class.
    if len(trains) != 1 or len(beside) + 1 < len(parts):
        common = _common([*parts.values()])
        trains = [f for name, f in parts.items() if common and re.search(TO_TRAIN, name)]
        beside = [f for name, f in parts.items() if common and f not in trains and re.search(TO_HOLD_OUT, name)]
        if len(trains) != 1 or len(beside) + 1 < len(parts) or not beside:
            names = ", ".join(shown(name) for name in sorted(common)[:3])
            asked = f"each of its folders has {names}: if those are the classes, name one folder, and another by --test"
            return folder, test, ((asked,) if common else ())
        notes = (f"{trains[0].name} is trained on",)
    held = test or next(iter(beside), None)
    return trains[0], held, (*notes, *(f"{f} is not read" for f in beside if f != held))


def _common(folders: Sequence[Path]) -> set[str]:
    """Names of folders, two or more, that are in each of several."""
    common: set[str] | None = None
    for folder in folders if len(folders) > 1 else ():
        inside = {f.name for f in _visible(folder) if f.is_dir()}
        common = inside if common is None else common & inside
        if len(common) < 2:
            return set()
    return common or set()


def _visible(folder: Path) -> list[Path]:
    with reading(folder):
        return sorted(f for f in folder.iterdir() if not f.name.startswith((".", "__MACOSX")))


def by_class(folder: Path) -> tuple[Mapping[str, list[Path]], int]:
    """The image files under each subfolder that has some, sorted, and the number of other files."""
    folders: dict[str, list[Path]] = {}
    loose, others = 0, 0
    for top in _visible(folder):
        inside = _inside(top) if top.is_dir() else [top]
        pictures = [f for f in inside if _is_image(f)]
        others += len(inside) - len(pictures)
        if pictures and top.is_dir():
            folders[shown(top.name)] = pictures
        else:
            loose += len(pictures)
    if not folders and loose:
        raise DataError(f"{folder} has images, but not by class: put the images of each class in a folder of its own")
    if not folders:
        raise DataError(f"{folder} has no images: put .png or .jpg files in a folder for each class")
    return folders, others + loose


def files_in(folder: Path) -> list[Path]:
    """All image files in a folder and below, sorted. Raises DataError if it can't be read."""
    _visible(folder)
    return [f for f in _inside(folder) if _is_image(f)]


def _inside(folder: Path) -> list[Path]:
    files: list[Path] = []
    for at, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        files += [Path(at, name) for name in sorted(names) if not name.startswith(".")]
    return files


def _has_images(folder: Path) -> bool:
    return any(_is_image(Path(at, name)) for at, _, names in os.walk(folder) for name in names)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()  # reading a FIFO may wait for ever


def _listed(folders: Mapping[str, list[Path]], classes: tuple[str, ...]) -> tuple[list[Path], Tensor]:
    targets = [classes.index(name) for name, files in folders.items() for _ in files]
    return [file for files in folders.values() for file in files], torch.tensor(targets)
