"""Files: all reading and writing of the library and the command. Everything here raises OSError, which callers explain.

Writes are atomic, also between processes: into a temporary name beside the target, then fsync, then rename. Reads take
regular files only, up to a size. With `links=False`, as in the folders of runs and the cache, no link is followed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

MAKING = ".making-"
"""Prefix of temporary names. Their writer holds a lock on them; leftovers of a killed process are unlocked."""
MOST = 256 << 20
"""Largest size of a file read at once, such as a config or a log, in bytes."""


def opened(path: Path, *, links: bool = True) -> BufferedReader:
    """Open a regular file to read. Opening another kind, such as a FIFO, may block for ever."""
    return os.fdopen(_open(path, os.O_RDONLY | os.O_NONBLOCK, links), "rb")


def plain(path: Path, *, links: bool = True) -> Path:
    """The same path, checked to be a readable regular file, for libraries that open it themselves."""
    os.close(_open(path, os.O_RDONLY | os.O_NONBLOCK, links))
    return path


def read(path: Path, *, most: int = MOST, links: bool = True) -> bytes:
    """The content of a file of at most `most` bytes."""
    with opened(path, links=links) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise OSError(None, f"is larger than {most:,} bytes", str(path))
        return file.read()


def parsed(path: Path) -> Any:
    """The content of a JSON file. Raises ValueError if it is not JSON, or nested too deep."""
    try:
        return json.loads(read(path))
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def updated(path: Path, mode: int = 0o666) -> IO[bytes]:
    """Open a regular file to read and change in place; created if missing. Symbolic and hard links are refused, because
    writing through them changes a file elsewhere."""
    handle = _open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, False, _allowed(path.parent, mode))
    if os.fstat(handle).st_nlink > 1:
        os.close(handle)
        raise OSError(None, "has another name as well, a hard link; remove it", str(path))
    return os.fdopen(handle, "r+b")


def _open(path: Path, flags: int, links: bool, mode: int = 0) -> int:
    try:
        handle = os.open(path, flags | os.O_CLOEXEC | (0 if links else os.O_NOFOLLOW), mode)
    except OSError:
        if not links and path.is_symlink():
            raise OSError(None, "is a link, which is not followed here; remove it", str(path)) from None
        raise
    except ValueError as e:  # a name with a NUL
        raise OSError(None, str(e), str(path)) from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(None, "is not a regular file", str(path))
    return handle


def _allowed(folder: Path, mode: int) -> int:
    """Permissions of a new file in a folder: at most the folder's own."""
    return mode & (folder.stat().st_mode | 0o700)


def folder(path: Path, mode: int = 0o777, *, links: bool = True) -> Path:
    """Create a folder and its parents if missing."""
    if not links and path.is_symlink():
        raise OSError(None, "is a link, which is not followed here; remove it", str(path))
    if not path.is_dir():
        folder(path.parent, mode)
        path.mkdir(_allowed(path.parent, mode), exist_ok=True)
        with suppress(PermissionError):  # a parent that may not be listed
            flush(path.parent)
    return path


def flush(path: Path) -> None:
    """Fsync a file, or a folder's list of files."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _temporary(path: Path, mode: int, folder: bool = False) -> Iterator[tuple[Path, int]]:
    """A locked temporary file or folder beside `path`, with its handle; removed at the end unless renamed."""
    tidy(path.parent)
    mode = _allowed(path.parent, mode)
    while True:
        work = path.with_name(MAKING + secrets.token_hex(8))
        if folder:
            work.mkdir(mode)
            try:
                handle = os.open(work, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                remove(work)
                raise
        else:
            handle = os.open(work, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if work.exists():
            break
        os.close(handle)  # another process removed it before it was locked
    try:
        yield work, handle
    finally:
        os.close(handle)
        remove(work)


@contextmanager
def writing(path: Path, *, new: bool = False, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """A file to write, which atomically becomes `path` after fsync, unless an error is raised.

    With `new`, raises FileExistsError if `path` exists by then.
    """
    with _temporary(path, mode) as (work, handle):
        with os.fdopen(os.dup(handle), "w+b") as file:
            yield file
        os.fsync(handle)
        if new and path.exists():
            raise FileExistsError(errno.EEXIST, "was made by another process meanwhile", str(path))
        parent = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)  # it may fail, so it comes before the file's rename
        try:
            work.replace(path)
            os.fsync(parent)
        finally:
            os.close(parent)


def scratch(folder: Path) -> IO[bytes]:
    """A nameless temporary file in a folder, removed when it is closed or the process ends."""
    return tempfile.TemporaryFile(dir=folder)  # the caller closes it


def replace(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Atomically write a file, after fsync."""
    with writing(path, mode=mode) as file:
        file.write(content)


@contextmanager
def making(path: Path, mode: int = 0o777) -> Iterator[Path]:
    """A temporary folder beside `path`, to fill and `put`; else removed."""
    with _temporary(path, mode, folder=True) as (work, _):
        yield work


def put(work: Path, path: Path) -> None:
    """Atomically replace `path` by a folder, after fsync."""
    for file in (*work.iterdir(), work):
        flush(file)
    with making(path) as aside:
        if os.path.lexists(path):
            path.rename(aside / path.name)
        work.rename(path)
        flush(path.parent)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with its content; errors are ignored."""
    for _ in range(2):  # some disks fail once
        with suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        if not os.path.lexists(path):
            return


def tidy(folder: Path) -> None:
    """Remove leftovers of killed processes from a folder."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in [e for e in entries if e.name.startswith(MAKING)]:
            with suppress(OSError):
                handle = os.open(entry.path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    remove(Path(entry.path))
                finally:
                    os.close(handle)


def sha256(path: Path, *, links: bool = True) -> str:
    """The hash of a file's content."""
    with opened(path, links=links) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum(facts: Mapping[str, Any]) -> str:
    """The hash of facts as JSON, without their own "checksum"."""
    rest = {k: v for k, v in facts.items() if k != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
