"""Reading data files: no more than fits in memory, and with errors that name the file. Nothing here can run code."""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast
from zipfile import ZipFile, ZipInfo

import numpy as np

from pipeline import files, memory
from pipeline.errors import DataError, first_line

BLOCK = 1 << 20


@contextmanager
def reading(path: str | Path, wrong: str | None = None) -> Iterator[None]:
    """Raise any error within as a DataError: `path` can't be read, or else is `wrong`."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as e:  # each reader has errors of its own
        if wrong is None or isinstance(e, OSError):
            raise DataError(f"can't read {path}: {getattr(e, 'strerror', None) or e or type(e).__name__}") from e
        raise DataError(f"{path} {wrong} ({first_line(e)})") from e


@contextmanager
def unpacked(path: Path) -> Iterator[IO[bytes]]:
    """A file to read from, gzipped or not."""
    with reading(path), files.opened(path) as file:
        if path.suffix != ".gz":
            yield file
            return
        with gzip.open(file) as inner:
            yield cast("IO[bytes]", inner)


def whole(path: Path, copies: float = 1) -> bytes:
    """A file's content, gzipped or not, if so many further copies of it fit in memory."""
    blocks: list[bytes] = []
    size, room = 0, memory.free()
    with unpacked(path) as file:
        while block := file.read(BLOCK):
            blocks.append(block)
            size += len(block)
            if size * (copies + 1) > room:
                least = max(size, path.stat().st_size)
                memory.check(least * (copies + 1), f"{path}, of at least {memory.size(least)},")
                break
    return b"".join(blocks)


def archive(path: Path) -> dict[str, np.ndarray]:
    """The arrays in an .npz file."""
    wrong = "is no .npz archive of plain arrays; write it with numpy.savez(path, inputs=..., targets=...)"
    with reading(path, wrong), files.opened(path) as file, ZipFile(file) as zipped:
        memory.check(sum(member.file_size for member in zipped.infolist()), str(path))
        return {member.filename.removesuffix(".npy"): _array(zipped, member) for member in zipped.infolist()}


def _array(zipped: ZipFile, member: ZipInfo) -> np.ndarray:
    """An array, if it has the size that its header declares: numpy would allocate that."""
    with zipped.open(member) as file:
        old = np.lib.format.read_magic(file) == (1, 0)
        shape, _, dtype = (np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0)(file)
        if math.prod(shape) * dtype.itemsize > (size := member.file_size - file.tell()):
            raise ValueError(f"{member.filename} declares {shape} of {dtype}, but holds {size:,} bytes")
    with zipped.open(member) as file:
        array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
        return array
