"""Files: all that the library and the command read and write goes through here. All raise OSError; the caller says why.

What is written is made under a name of its own beside its place, put on the disk, and then renamed: it is the old file
or the new one, never a part, of several processes too. What is read is a regular file, no larger than it may be. With
`links=False`, as inside the folders of runs and of the cache, no link is followed.
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
"""What is not whole yet has a name that begins so. Who makes it holds its lock, so that others know it from what a
process left that was killed."""
MOST = 256 << 20
"""Bytes of a file that is read as a whole, such as a config or a log."""


def opened(path: Path, *, links: bool = True) -> BufferedReader:
    """A regular file to read from: to open another kind may wait for ever."""
    return os.fdopen(_open(path, os.O_RDONLY | os.O_NONBLOCK, links), "rb")


def plain(path: Path, *, links: bool = True) -> Path:
    """The same path, if it is a regular file that can be read, for libraries that open it themselves."""
    os.close(_open(path, os.O_RDONLY | os.O_NONBLOCK, links))
    return path


def read(path: Path, *, most: int = MOST, links: bool = True) -> bytes:
    """What a file holds, if that is at most so many bytes."""
    with opened(path, links=links) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise OSError(None, f"is larger than {most:,} bytes", str(path))
        return file.read()


def parsed(path: Path, *, links: bool = True) -> Any:
    """What a JSON file holds. Raises ValueError if it is none, or nested too deep."""
    try:
        return json.loads(read(path, links=links))
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def updated(path: Path, mode: int = 0o666) -> IO[bytes]:
    """A regular file to read and change in place, made if it is not there; neither a link, nor one that has another
    name as well: what is written into it would change a file elsewhere."""
    handle = _open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, False, _allowed(path.parent, mode))
    if os.fstat(handle).st_nlink > 1:
        os.close(handle)
        raise OSError(None, "has another name as well (a hard link); remove it", str(path))
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
        raise OSError(None, "is no plain file", str(path))
    return handle


def _allowed(folder: Path, mode: int) -> int:
    """Permissions of what is made in a folder: by the umask, but never more than the folder's."""
    return mode & (folder.stat().st_mode | 0o700)


def folder(path: Path, mode: int = 0o777, *, links: bool = True) -> Path:
    """A folder, made with those above it if it is not there."""
    if not links and path.is_symlink():
        raise OSError(None, "is a link, which is not followed here; remove it", str(path))
    if not path.is_dir():
        folder(path.parent, mode)
        path.mkdir(_allowed(path.parent, mode), exist_ok=True)
        with suppress(PermissionError):  # one that may not be listed
            flush(path.parent)
    return path


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _begun(path: Path, mode: int, folder: bool = False) -> Iterator[tuple[Path, int]]:
    """Something new beside `path`, under a name of its own, and its handle; what was not renamed is removed."""
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
        os.close(handle)  # another process took it for one that was left, before it had its lock
    try:
        yield work, handle
    finally:
        os.close(handle)
        remove(work)


@contextmanager
def writing(path: Path, *, new: bool = False, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """A file to be written, which becomes `path` once it is whole and on the disk; nothing does if an error is raised.

    If it has to be `new`, FileExistsError is raised where there is one by then.
    """
    with _begun(path, mode) as (work, handle):
        with os.fdopen(os.dup(handle), "w+b") as file:
            yield file
        os.fsync(handle)
        if new and path.exists():
            raise FileExistsError(errno.EEXIST, "was made by another process meanwhile", str(path))
        where = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)  # what can fail does before the file is in its place
        try:
            work.replace(path)
            os.fsync(where)
        finally:
            os.close(where)


def scratch(folder: Path) -> IO[bytes]:
    """A file without a name in a folder, which goes when it is closed, or when the process ends."""
    return tempfile.TemporaryFile(dir=folder)  # the caller closes it


def replace(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write a file so that it is the old one or the new one, never a part."""
    with writing(path, mode=mode) as file:
        file.write(content)


@contextmanager
def making(path: Path, mode: int = 0o777) -> Iterator[Path]:
    """A new folder beside `path`, to be filled and put; if it was not, it is removed."""
    with _begun(path, mode, folder=True) as (work, _):
        yield work


def put(work: Path, path: Path) -> None:
    """Let a folder that was made be `path`, in place of what is there, once all of it is on the disk."""
    for made in (*work.iterdir(), work):
        flush(made)
    with making(path) as aside:
        if os.path.lexists(path):
            path.rename(aside / path.name)
        work.rename(path)
        flush(path.parent)


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder, as far as that is possible."""
    for _ in range(2):  # a disk may fail once
        with suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        if not os.path.lexists(path):
            return


def tidy(folder: Path) -> None:
    """Remove from a folder what processes left there that were killed while they made it."""
    with suppress(OSError), os.scandir(folder) as found:
        for entry in [e for e in found if e.name.startswith(MAKING)]:
            with suppress(OSError):
                handle = os.open(entry.path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    remove(Path(entry.path))
                finally:
                    os.close(handle)


def sha256(path: Path, *, links: bool = True) -> str:
    """The hash of what a file holds."""
    with opened(path, links=links) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum(facts: Mapping[str, Any]) -> str:
    """The hash of facts that are written as JSON, but for a checksum among them."""
    rest = {k: v for k, v in facts.items() if k != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
