"""Data sets in files: NumPy archives, and the IDX format of MNIST. Nothing here can run code."""

from __future__ import annotations

import gzip
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import DataError, did_you_mean
from pipeline.sources.parts import Split, split
from pipeline.sources.prepared import Prepared
from pipeline.sources.tensors import Tensors, as_tensor
from pipeline.stage import first_line


@contextmanager
def reading(path: str | Path, wrong: str | None = None) -> Iterator[None]:
    """Raise DataError for what fails within: that a file can't be read, or what is `wrong` with it."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as e:  # each reader has errors of its own
        if wrong is None or isinstance(e, OSError):
            raise DataError(f"can't read {path}: {getattr(e, 'strerror', None) or e}") from None
        raise DataError(f"{path} {wrong} ({first_line(e)})") from None


def archive(path: Path) -> dict[str, np.ndarray]:
    """The arrays in an .npz file."""
    wrong = "is no .npz archive of plain arrays; write it with numpy.savez(path, inputs=..., targets=...)"
    with reading(path, wrong), np.load(path, allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def npz(path: str | Path, inputs: str = "inputs", targets: str = "targets") -> Tensors:
    """A NumPy archive with two arrays: inputs (N, ...) and targets (N, ...), under these names."""
    arrays = archive(Path(path))
    for name in (inputs, targets):
        if name not in arrays:
            raise DataError(f"{path} holds no array {name!r}{did_you_mean(name, arrays)}")
    return labelled(as_tensor(inputs, arrays[inputs]), arrays[targets])


def idx(images: str | Path, labels: str | Path | None = None) -> Tensors:
    """A pair of IDX files, gzipped or not: inputs (N, 1, H, W) float32 in [0, 1], targets (N,) int64.

    Without `labels`, the name is made from that of the images, as in train-images-idx3-ubyte ->
    train-labels-idx1-ubyte. Format: Y. LeCun, C. Cortes, C. Burges, The MNIST database, "File formats".
    """
    images = Path(images)
    if labels is None:
        labels = images.with_name(images.name.replace("images", "labels").replace("idx3", "idx1"))
    inputs, targets = idx_images(images).tensors["inputs"], _idx(Path(labels))
    if targets.ndim != 1:
        raise DataError(f"{labels} holds {targets.ndim}-d data, not labels")
    classes = tuple(map(str, range(int(targets.max()) + 1))) if len(targets) else ()
    return Tensors({"inputs": inputs, "targets": torch.from_numpy(targets).long()}, classes)


def idx_images(path: Path) -> Tensors:
    """The images alone: inputs (N, 1, H, W) float32 in [0, 1]."""
    pixels = _idx(path)
    if pixels.ndim != 3:
        raise DataError(f"{path} holds {pixels.ndim}-d data, not images")
    return Tensors({"inputs": torch.from_numpy(pixels).float().div_(255.0).unsqueeze(1)})


def images_idx(path: str | Path, *, parts: Split | None = None) -> Prepared:
    """Images and labels of the MNIST family: a file of images, whose labels lie beside it, or a folder of the usual
    four files, gzipped or not, `train-images-idx3-ubyte` and the like, whose `t10k` files are held out."""
    path = Path(path)
    if not path.is_dir():
        train, held_out = split(idx(path), parts=parts)
        return Prepared(train, held_out, "classification", train.classes)
    first, last = _usual(path, "train"), _usual(path, "t10k")
    if first is None:
        raise DataError(f"{path} has no train-images-idx3-ubyte, nor one with .gz or with a dot before idx3")
    train = idx(first)
    if last is None:
        train, held_out = split(train, parts=parts)
        return Prepared(train, held_out, "classification", train.classes, notes=("no t10k files: a part is held out",))
    held_out = idx(last)
    most = int(held_out.tensors["targets"].max())
    if most >= len(train.classes):
        raise DataError(f"{last} has the class {most}, but the training labels end at {len(train.classes) - 1}")
    return Prepared(train, held_out, "classification", train.classes)


def _usual(folder: Path, part: str) -> Path | None:
    """The file of images of a part, under one of its usual names."""
    names = [f"{part}-images{dot}idx3-ubyte{end}" for dot in "-." for end in ("", ".gz")]
    return next((folder / name for name in names if (folder / name).exists()), None)


def _idx(path: Path) -> np.ndarray:
    with reading(path):
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] != 0x08 or len(raw) < 4 + 4 * raw[3]:
        raise DataError(f"{path} is no IDX file of unsigned bytes")
    shape = struct.unpack(f">{raw[3]}I", raw[4 : 4 + 4 * raw[3]])
    data = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    if data.size != math.prod(shape):
        declared = f"it declares {shape}, {math.prod(shape):,} bytes"
        raise DataError(f"{path} is cut short: {declared}, but holds {data.size:,}")
    return data.reshape(shape).copy()


def labelled(inputs: Tensor, targets: np.ndarray) -> Tensors:
    """Whole numbers and words become classes 0..C-1, several integers a sample stay token ids, others become
    float32."""
    if targets.size == 0:
        raise DataError("the data set is empty: it has no samples")
    numeric = np.issubdtype(targets.dtype, np.number)
    if numeric and not np.all(np.isfinite(targets)):
        raise DataError("targets hold NaN or infinite values; remove or fill them first")
    if targets.ndim > 1 and np.issubdtype(targets.dtype, np.integer):
        return Tensors({"inputs": inputs, "targets": as_tensor("targets", targets)})
    if numeric and (targets.ndim != 1 or not np.array_equal(targets, np.round(targets))):
        return Tensors({"inputs": inputs, "targets": as_tensor("targets", targets).float()})
    if numeric and targets.min() >= 0 and targets.max() < max(len(targets), 2):
        names, codes = np.arange(int(targets.max()) + 1), targets
    else:
        names, codes = np.unique(targets, return_inverse=True)
    return Tensors({"inputs": inputs, "targets": torch.from_numpy(codes.astype(np.int64))}, tuple(map(str, names)))
