"""Data sets in files: NumPy archives, and the IDX format of MNIST. Nothing here can run code."""

from __future__ import annotations

import gzip
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from zipfile import ZipFile, ZipInfo

import numpy as np
import torch
from torch import Tensor

from pipeline import files, memory
from pipeline.errors import DataError, did_you_mean
from pipeline.sources.prepared import Prepared
from pipeline.sources.split import Split, split
from pipeline.sources.tensors import Tensors, as_tensor
from pipeline.stage import first_line

BLOCK = 1 << 20
CLASSES = 1 << 24
"""More are no classes: each has a name and an output of the model."""


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
    with reading(path, wrong), files.opened(path) as file, ZipFile(file) as found:
        memory.check(sum(part.file_size for part in found.infolist()), str(path))
        return {part.filename.removesuffix(".npy"): _array(found, part) for part in found.infolist()}


def _array(found: ZipFile, part: ZipInfo) -> np.ndarray:
    with found.open(part) as file:
        old = np.lib.format.read_magic(file) == (1, 0)
        shape, _, kind = (np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0)(file)
        if math.prod(shape) * kind.itemsize > (there := part.file_size - file.tell()):
            raise ValueError(f"{part.filename} declares {shape} of {kind}, but holds {there:,} bytes")
    with found.open(part) as file:
        array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
        return array


@contextmanager
def unpacked(path: Path) -> Iterator[IO[bytes]]:
    """A file to read from, gzipped or not."""
    with reading(path), files.opened(path) as file:
        if path.suffix != ".gz":
            yield file
            return
        with gzip.open(file) as inner:
            yield inner  # type: ignore[misc]  # it reads bytes


def whole(path: Path, times: float = 1) -> bytes:
    """All that a file holds, gzipped or not, if so many times as much fits in memory."""
    found: list[bytes] = []
    count, room = 0, memory.free()
    with unpacked(path) as file:
        while block := file.read(BLOCK):
            found.append(block)
            count += len(block)
            if count * (times + 1) > room:
                least = max(count, path.stat().st_size)
                memory.check(least * (times + 1), f"{path}, of at least {memory.size(least)},")
                break
    return b"".join(found)


def numbered(most: int, path: Any = "the data") -> tuple[str, ...]:
    """The names of classes that are numbers up to one."""
    if most >= CLASSES:
        raise DataError(f"{path}: class {most} would make {most + 1:,} classes; number them from 0 without gaps")
    return tuple(map(str, range(most + 1)))


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
    classes = numbered(int(targets.max())) if len(targets) else ()
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
    with unpacked(path) as file:
        raw = file.read(4)
        sizes = file.read(4 * raw[3]) if len(raw) == 4 else b""
        if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] != 0x08 or len(sizes) < 4 * raw[3]:
            raise DataError(f"{path} is no IDX file of unsigned bytes")
        shape = struct.unpack(f">{raw[3]}I", sizes)
        declared = f"it declares {shape}, {math.prod(shape):,} bytes"
        most = math.prod(shape) if path.suffix == ".gz" else min(math.prod(shape), path.stat().st_size)
        memory.check(2 * most, f"{path}: {declared}, which")
        data = np.frombuffer(file.read(most + 1), np.uint8)
    if data.size != math.prod(shape):
        more = data.size > math.prod(shape)
        raise DataError(f"{path} is {'too long' if more else 'cut short'}: {declared}, but holds "
                        f"{'more' if more else f'{data.size:,}'}")  # fmt: skip
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
