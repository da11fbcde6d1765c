"""IDX files, the format of MNIST. Source: Y. LeCun, C. Cortes, C. Burges, The MNIST database, "File formats"."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import torch

from pipeline import memory
from pipeline.errors import DataError
from pipeline.sources.files import OPENERS, unpacked
from pipeline.sources.prepared import Prepared
from pipeline.sources.split import Split, split
from pipeline.sources.tensors import Tensors


def images_idx(path: str | Path, *, parts: Split | None = None) -> Prepared:
    """Images and labels: a file of images with its labels beside it, or a folder of the usual four files, gzipped or
    not, `train-images-idx3-ubyte` and so on, of which `t10k` is held out."""
    path = Path(path)
    first = _usual(path, "train") if path.is_dir() else path
    if first is None:
        raise DataError(f"{path} has no train-images-idx3-ubyte, nor one with .gz or with a dot before idx3")
    train, last = idx(first), _usual(path, "t10k")
    (parts or Split()).check(last is not None)
    if last is None:
        train, held_out = split(train, parts=parts)
        notes = ("no t10k files: a share is held out",) * path.is_dir()
        return Prepared(train, held_out, "classification", train.classes, notes=notes)
    held_out = idx(last)
    most = int(held_out.tensors["targets"].max())
    if most >= len(train.classes):
        raise DataError(f"{last} has the class {most}, but the training labels end at {len(train.classes) - 1}")
    return Prepared(train, held_out, "classification", train.classes)


def idx(images: str | Path, labels: str | Path | None = None) -> Tensors:
    """A pair of IDX files, gzipped or not: inputs (N, 1, H, W) float32 in [0, 1], targets (N,) int64.

    The default name of the labels is train-labels-idx1-ubyte for train-images-idx3-ubyte, and so on.
    """
    images = Path(images)
    if labels is None:
        labels = images.with_name(images.name.replace("images", "labels").replace("idx3", "idx1"))
    inputs, targets = idx_images(images).tensors["inputs"], _read(Path(labels))
    if targets.ndim != 1:
        raise DataError(f"{labels} holds {targets.ndim}-d data, not labels")
    classes = map(str, range(int(targets.max()) + 1)) if len(targets) else ()
    return Tensors({"inputs": inputs, "targets": torch.from_numpy(targets).long()}, tuple(classes))


def idx_images(path: Path) -> Tensors:
    """The images alone: inputs (N, 1, H, W) float32 in [0, 1]."""
    pixels = _read(path)
    if pixels.ndim != 3:
        raise DataError(f"{path} holds {pixels.ndim}-d data, not images")
    return Tensors({"inputs": torch.from_numpy(pixels).float().div_(255.0).unsqueeze(1)})


def _usual(folder: Path, side: str) -> Path | None:
    """The file of training or test images, under one of its usual names."""
    names = [f"{side}-images{dot}idx3-ubyte{end}" for dot in "-." for end in ("", ".gz")]
    return next((folder / name for name in names if (folder / name).exists()), None)


def _read(path: Path) -> np.ndarray:
    with unpacked(path) as file:
        magic = file.read(4)
        sizes = file.read(4 * magic[3]) if len(magic) == 4 else b""
        if len(magic) < 4 or magic[:3] != b"\0\0\x08" or len(sizes) < 4 * magic[3]:
            raise DataError(f"{path} is no IDX file of unsigned bytes")
        shape = struct.unpack(f">{magic[3]}I", sizes)
        count = math.prod(shape)
        declared = f"it declares {shape}, {count:,} bytes"
        most = count if path.suffix.lower() in OPENERS else min(count, path.stat().st_size)
        memory.check(2 * most, f"{path}: {declared}, which")
        data = np.frombuffer(file.read(most + 1), np.uint8)
    if data.size > count:
        raise DataError(f"{path} is too long: {declared}, but holds more")
    if data.size < count:
        raise DataError(f"{path} is cut short: {declared}, but holds {data.size:,}")
    return data.reshape(shape).copy()
