"""Data sets in files: NumPy archives, tables as CSV, and the IDX format of MNIST. Nothing here can run code."""

from __future__ import annotations

import csv as csv_format
import gzip
import math
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import DataError, did_you_mean
from pipeline.sources.tensors import Tensors, as_tensor


def _open(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as e:
        raise DataError(f"can't read {path}: {getattr(e, 'strerror', None) or e}") from None


def npz(path: str | Path, inputs: str = "inputs", targets: str = "targets") -> Tensors:
    """A NumPy archive with two arrays: inputs (N, ...) and targets (N, ...), under these names."""
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except OSError as e:
        raise DataError(f"can't read {path}: {e.strerror or e}") from None
    except (ValueError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
        raise DataError(
            f"{path} is no .npz archive of plain arrays; write it with numpy.savez(path, inputs=..., targets=...)"
        ) from None
    for name in (inputs, targets):
        if name not in arrays:
            raise DataError(f"{path} holds no array {name!r}{did_you_mean(name, arrays)}")
    return labelled(as_tensor(inputs, arrays[inputs]), arrays[targets])


def csv(path: str | Path, target: str | None = None) -> Tensors:
    """A table with a header row and numbers: the column `target` (by default the last) is learned from the others.

    Targets that are whole numbers or words are classes, others are values: inputs (N, D) float32, targets (N,).
    """
    path = Path(path)
    text = _open(path).decode("utf-8-sig", "replace")
    separator = max(",;\t", key=text.partition("\n")[0].count)
    table = csv_format.reader(text.splitlines(), delimiter=separator, skipinitialspace=True)
    try:
        lines = [(table.line_num, row) for row in table if row]
    except csv_format.Error as e:
        raise DataError(f"{path}, line {table.line_num}: {e}") from None
    if len(lines) < 2:
        raise DataError(f"{path} is empty: a table needs a header row and at least one sample")
    header = lines[0][1]
    if len(header) < 2:
        raise DataError(f"{path} has one column, but needs at least one of inputs and one of targets")
    target = header[-1] if target is None else target
    if target not in header:
        raise DataError(f"{path} has no column {target!r}{did_you_mean(target, header)}")
    column = header.index(target)
    inputs = np.empty((len(lines) - 1, len(header)), np.float32)
    for i, (number, row) in enumerate(lines[1:]):
        if len(row) != len(header):
            raise DataError(f"{path}, line {number}: {len(row)} columns, but the header has {len(header)}")
        for j, cell in enumerate(row):
            try:
                inputs[i, j] = 0.0 if j == column else float(cell)
            except ValueError:
                raise DataError(f"{path}, line {number}, column {header[j]!r}: {cell!r} is not a number") from None
    inputs = np.delete(inputs, column, axis=1)
    labels = np.array([row[column] for _, row in lines[1:]])
    try:
        return labelled(torch.from_numpy(inputs), labels.astype(np.float64))
    except ValueError:
        return labelled(torch.from_numpy(inputs), labels)


def idx(images: str | Path, labels: str | Path | None = None) -> Tensors:
    """A pair of IDX files, gzipped or not: inputs (N, 1, H, W) float32 in [0, 1], targets (N,) int64.

    Without `labels`, the name is made from that of the images, as in train-images-idx3-ubyte ->
    train-labels-idx1-ubyte. Format: Y. LeCun, C. Cortes, C. Burges, The MNIST database, "File formats".
    """
    images = Path(images)
    if labels is None:
        labels = images.with_name(images.name.replace("images-idx3", "labels-idx1"))
    pixels, targets = _idx(images), _idx(Path(labels))
    if pixels.ndim != 3 or targets.ndim != 1:
        raise DataError(f"{images} and {labels} hold {pixels.ndim}-d and {targets.ndim}-d data, not images and labels")
    return labelled(torch.from_numpy(pixels).float().div_(255.0).unsqueeze(1), targets)


def _idx(path: Path) -> np.ndarray:
    raw = _open(path)
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] != 0x08 or len(raw) < 4 + 4 * raw[3]:
        raise DataError(f"{path} is no IDX file of unsigned bytes")
    shape = struct.unpack(f">{raw[3]}I", raw[4 : 4 + 4 * raw[3]])
    data = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    if data.size != math.prod(shape):
        raise DataError(f"{path} is cut short: it declares shape {shape}, but holds {data.size} bytes")
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
        classes = tuple(str(c) for c in range(int(targets.max()) + 1))
        return Tensors({"inputs": inputs, "targets": torch.from_numpy(targets.astype(np.int64))}, classes)
    names, codes = np.unique(targets, return_inverse=True)
    return Tensors(
        {"inputs": inputs, "targets": torch.from_numpy(codes.astype(np.int64))}, tuple(str(n) for n in names)
    )
