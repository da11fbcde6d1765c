"""Reading data files: no more than fits in memory, and with errors that name the file. Nothing here can run code."""

from __future__ import annotations

import bz2
import gzip
import lzma
import math
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from zipfile import ZipFile, ZipInfo

import numpy as np

from pipeline import files, memory
from pipeline.errors import DataError, PipeError, first_line, needs

BLOCK = 1 << 20


@contextmanager
def reading(path: str | Path, wrong: str | None = None) -> Iterator[None]:
    """Raise any error within as a DataError: `path` can't be read, or else is `wrong`."""
    try:
        yield
    except (PipeError, MemoryError):
        raise
    except BaseException as e:  # each reader has errors of its own; a panic of one in Rust is no Exception
        if not isinstance(e, Exception) and type(e).__name__ != "PanicException":
            raise
        if wrong is None or isinstance(e, OSError):
            raise DataError(f"can't read {path}: {getattr(e, 'strerror', None) or e or type(e).__name__}") from e
        raise DataError(f"{path} {wrong} ({first_line(e)})") from e


@contextmanager
def unpacked(path: Path) -> Iterator[IO[bytes]]:
    """A file to read from, decompressed by its first bytes. A path such as `data.zip/a.csv` is a file in an archive."""
    holder = in_archive(path)
    with ExitStack() as stack:
        stack.enter_context(reading(path))
        file: Any = stack.enter_context(files.opened(holder or path))
        if holder is not None:
            zipped = stack.enter_context(ZipFile(file))
            file = stack.enter_context(zipped.open(path.relative_to(holder).as_posix()))
        form = packing(file.peek(LONGEST)) or ""
        wanted = path.suffix.lower()
        if form != wanted and wanted in OPENERS:
            raise DataError(f"can't read {path}: its name ends in {wanted}, but its first bytes are of no such file")
        if form == ".zip":
            raise DataError(f"{path} is a zip archive: name a file in it, such as {path}/data.csv")
        yield file if not form else stack.enter_context(OPENERS[form](file))


def packing(first: bytes) -> str | None:
    """The suffix of a compressed file with these first bytes.

    >>> packing(b"BZh91AY&SY"), packing(b"x,y")
    ('.bz2', None)
    """
    return next((suffix for suffix, mark in MARKS.items() if re.match(mark, first, re.DOTALL)), None)


def in_archive(path: Path) -> Path | None:
    """The zip archive of a path into one, such as `data.zip/a.csv`."""
    with suppress(OSError, ValueError):  # a name that no file can have
        if not path.exists():
            return next((p for p in path.parents if p.is_file()), None)
    return None


def members(path: Path) -> list[str]:
    """The names of files in a zip archive, without macOS's own; none for another file."""
    with reading(path), files.opened(path) as file:
        if packing(file.peek(LONGEST)) != ".zip":
            return []
        with ZipFile(file) as zipped:
            names = [member.filename for member in zipped.infolist() if not member.is_dir()]
    return [name for name in names if not name.startswith(("__MACOSX/", ".")) and "/." not in name]


def _zstd(file: IO[bytes]) -> Any:
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]  # of Python 3.14
    except ModuleNotFoundError:
        with needs("files in .zst need Python 3.14, or backports.zstd", "backports.zstd"):
            from backports import zstd
    return zstd.open(file)


MARKS = {
    ".gz": rb"\x1f\x8b", ".bz2": rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", ".xz": rb"\xfd7zXZ\0", ".zst": rb"\x28\xb5\x2f\xfd",
    ".zip": rb"PK(\x03\x04|\x05\x06)",
}  # fmt: skip
"""The first bytes of compressed files by suffix."""
LONGEST = 10
"""Length of these."""
OPENERS: Mapping[str, Callable[[IO[bytes]], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _zstd,
}


def whole(path: Path, copies: float = 1) -> bytes:
    """A file's content, decompressed, if so many further copies of it fit in memory."""
    blocks: list[bytes] = []
    size, room = 0, memory.free()
    with unpacked(path) as file:
        while block := file.read(BLOCK):
            blocks.append(block)
            size += len(block)
            if size * (copies + 1) > room:
                least = max(size, (in_archive(path) or path).stat().st_size)
                memory.check(least * (copies + 1), f"{path}, of at least {memory.size(least)},")
                break
    return b"".join(blocks)


def inflated(path: Path) -> Iterator[tuple[str, bytes]]:
    """The content of each file in a zip archive, in blocks: what they hold, and not what they declare."""
    with reading(path), files.opened(path) as file, ZipFile(file) as zipped:
        for member in zipped.infolist():
            with zipped.open(member) as inner:
                while block := inner.read(BLOCK):
                    yield member.filename, block


def tar(path: Path) -> Iterator[tuple[str, bytes]]:
    """The names and contents of the files in a tar archive, compressed or not, as long as all of them fit in memory."""
    size, free = 0, memory.free()
    wrong = "is no tar archive, or cut short"
    with reading(path, wrong), unpacked(path) as file, tarfile.open(fileobj=file, mode="r|") as members:
        for member in members:
            if not member.isreg() or member.issparse():
                continue
            size += member.size
            if size > free:
                memory.check(size, f"{path}, of at least {memory.size(size)},")
            inner = members.extractfile(member)
            content = inner.read() if inner is not None else b""
            if len(content) < member.size:
                raise EOFError(f"{member.name} ends early")
            yield member.name, content


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
