"""Images in folders by class."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import ConfigError, DataError, did_you_mean
from pipeline.sources.files import reading
from pipeline.sources.pixels import Images, Item, header, part
from pipeline.sources.prepared import Prepared, Task
from pipeline.sources.split import Split
from pipeline.sources.tensors import Tensors
from pipeline.stage import is_count
from pipeline.text import shown

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}

HELD_OUT = ("val", "valid", "validation", "test")
"""Folders beside `train`, the first of which is held out."""

AUGMENT = {"none": "", "flip": "flip", "crop": "crop", "flip+crop": "flip crop", "auto": "flip crop"}

LOOK = 1000
"""Images whose sizes are read, of all, before any is decoded."""


def images(
    folder: str | Path, *, size: int | tuple[int, int] | None = None, test: str | Path | None = None,
    parts: Split | None = None, augment: str = "auto", workers: int = 0, mode: str | None = None,
) -> Prepared:  # fmt: skip
    """Images by class, as folder/class/*.png (jpg, bmp, gif, webp, tif; in folders of its own, too): inputs
    (N, C, H, W) float32 in [0, 1], targets (N,) int64.

    - `test`: a folder of the held-out ones, by class too; else folder/val or folder/test beside folder/train, else what
      `parts` says.
    - `size`: H and W, or both in one; images are scaled to cover it, and their centre is taken. By default their own,
      where all are alike and no side is above 512, else the median of the short sides, a multiple of 8 up to 224.
    - `mode`: "L" for grey images, C = 1, or "RGB"; by default grey where all are.
    - `augment`: "flip" (left and right, half of the time), "crop" (shifted by up to an eighth, reflected at the edges),
      "flip+crop", or "none": of training samples, anew in each epoch. "auto" is both, but none for grey images or below
      32 pixels.
    - `workers`: processes that decode and augment ahead.

    Images that take less than 1 GiB are kept in memory. Needs Pillow, without which it raises ConfigError. Raises
    DataError for a folder without images or classes, and for an image that can't be decoded, with its path.
    """
    folder = Path(folder)
    if augment not in AUGMENT:
        raise ConfigError(f"augment={augment!r} is unknown{did_you_mean(augment, AUGMENT)}")
    training, held, notes = _parts(folder, None if test is None else Path(test))
    found, others = by_class(training)
    classes = tuple(found)
    if len(classes) < 2:
        raise DataError(f"{training} has images of one class alone, {classes[0]!r}: there is nothing to tell apart")
    files, targets = _listed(found, classes)
    if held is None:
        rows = [r.tolist() for r in (parts or Split()).rows(len(files), labels=targets)]
        both = [([files[i] for i in r], targets[r]) for r in rows]
    else:
        apart, more = by_class(held)
        others += more
        for name in apart:
            if name not in classes:
                raise DataError(f"{held / name} is of a class that {training} has no images of"
                                f"{did_you_mean(name, classes)}")  # fmt: skip
        both = [(files, targets), _listed(apart, classes)]
    if others:
        notes = (*notes, f"{others} other file{'s' * (others > 1)} passed over")
    return prepared(both, classes, size=size, mode=mode, augment=augment, workers=workers, notes=notes)


def prepared(
    both: Sequence[tuple[Sequence[Item], Tensor]], classes: tuple[str, ...], *, size: int | tuple[int, int] | None,
    mode: str | None, augment: str, workers: int, notes: tuple[str, ...],
) -> Prepared:  # fmt: skip
    """Training and held-out images with their targets, as they are decoded and augmented."""
    if mode not in (None, "L", "RGB"):
        raise ConfigError(f'mode={mode!r} is unknown: "L" is grey, "RGB" is colours')
    items, targets = both[0]
    seen = [header(items[i]) for i in range(0, len(items), -(-len(items) // LOOK))]
    mode = mode or ("L" if all(grey for _, grey in seen) else "RGB")
    shape = _shape(size, [s for s, _ in seen])
    if augment == "auto" and (mode == "L" or min(shape) < 32):
        augment = "none"
    kinds = tuple(AUGMENT[augment].split())
    train, held_out = (
        part(Images(its, labels, shape, mode, kinds if k == 0 else ()), classes, workers)
        for k, (its, labels) in enumerate(both)
    )
    found = f"{len(items) + len(both[1][0]):,} images"
    if classes:
        counts = [f"{classes[c]} {n:,}" for c, n in sorted(Counter(targets.tolist()).items())]
        found += f" of {len(classes)} classes; to train on: {', '.join(counts[:10])}{', ...' * (len(counts) > 10)}"
    sizes = sorted({s for s, _ in seen}, key=lambda s: s[0] * s[1])
    least, most, used = ("{}x{}".format(*s) for s in (sizes[0], sizes[-1], shape))
    were = f"all {least}" if len(sizes) == 1 else f"of {least} to {most}"
    fit = "" if sizes == [shape] else f", scaled and cropped to {used}"
    looks = f"{'grey' if mode == 'L' else 'in colours'}, {were} (height x width){fit}"
    there = isinstance(train, Tensors) or train.reader.data.pixels is not None  # type: ignore[attr-defined]  # else it is Samples
    kept = "kept in memory" if there else "decoded as they are read"
    done = f"augmented in training: {' and '.join(kinds) or 'no'}; {kept}"
    task: Task = "classification" if classes else "regression"
    fitted = {"size": list(shape), "mode": mode}
    return Prepared(train, held_out, task, classes, notes=(found, looks, done, *notes), fitted=fitted)


def _shape(size: Any, found: Sequence[tuple[int, int]]) -> tuple[int, int]:
    if size is not None:
        height, width = size if isinstance(size, tuple | list) and len(size) == 2 else (size, size)
        if not (is_count(height) and is_count(width)):
            raise ConfigError(f"size={size!r} is not a positive whole number of pixels, or two of them")
        return height, width
    if len(set(found)) == 1 and max(found[0]) <= 512:
        return found[0]
    side = min(max(8 * round(float(np.median([min(s) for s in found])) / 8), 8), 224)
    return side, side


# -- what lies in a folder


def _parts(folder: Path, test: Path | None) -> tuple[Path, Path | None, tuple[str, ...]]:
    """The folders to train on and to hold out, with notes."""
    names = {f.name for f in _visible(folder) if f.is_dir()}
    # A class may be called train: then there are others.
    if "train" not in names or not names <= {"train", *HELD_OUT}:
        return folder, test, ()
    there = [folder / name for name in HELD_OUT if name in names]
    held = test or next(iter(there), None)
    return folder / "train", held, tuple(f"{f} is not read" for f in there if f != held)


def _visible(folder: Path) -> list[Path]:
    with reading(folder):
        return sorted(f for f in folder.iterdir() if not f.name.startswith("."))


def by_class(folder: Path) -> tuple[Mapping[str, list[Path]], int]:
    """The image files under each subfolder that has some, sorted, and how many other files there are."""
    found: dict[str, list[Path]] = {}
    loose, others = [], 0
    for top in _visible(folder):
        inside = _inside(top) if top.is_dir() else [top]
        pictures = [f for f in inside if _is_image(f)]
        others += len(inside) - len(pictures)
        if pictures and top.is_dir():
            found[shown(top.name)] = pictures
        else:
            loose += pictures
    if not found and loose:
        raise DataError(f"{folder} has images, but not by class: put those of each class in a folder of its own")
    if not found:
        raise DataError(f"{folder} has no images: put those of each class in a folder of its own, as .png or .jpg")
    return found, others + len(loose)


def files_in(folder: Path) -> list[Path]:
    """All image files in a folder and those in it, sorted."""
    _visible(folder)  # raises where it can't be read
    return [f for f in _inside(folder) if _is_image(f)]


def _inside(folder: Path) -> list[Path]:
    found: list[Path] = []
    for at, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        found += [Path(at, name) for name in sorted(names) if not name.startswith(".")]
    return found


def _is_image(path: Path) -> bool:
    # What is no plain file might be waited for for ever.
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _listed(found: Mapping[str, list[Path]], classes: tuple[str, ...]) -> tuple[list[Path], Tensor]:
    targets = [classes.index(name) for name, files in found.items() for _ in files]
    return [file for files in found.values() for file in files], torch.tensor(targets)
