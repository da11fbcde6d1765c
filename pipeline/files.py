"""Files: written so that they are whole or not there, and hashed. All raise OSError; the caller says more."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

MAKING = ".making-"
"""What is not whole yet has a name that begins so; where a process was killed, it may be removed."""


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace(path: Path, content: bytes) -> None:
    """Write a file so that it is the old one or the new one, never a part. One process at a time may write it."""
    work = path.with_name(MAKING + path.name)
    try:
        work.write_bytes(content)
        flush(work)
        work.replace(path)
        flush(path.parent)
    except OSError:
        with suppress(OSError):
            work.unlink()
        raise


@contextmanager
def making(path: Path, mode: int = 0o777) -> Iterator[Path]:
    """A new folder beside `path`, under a name of its own, to be filled and renamed; if it was not, it is removed."""
    work = path.with_name(MAKING + secrets.token_hex(8))
    try:
        work.mkdir(mode)
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def put(work: Path, path: Path) -> None:
    """Let a folder that was made be `path`, in place of what is there, once all of it is on the disk."""
    for made in (*work.iterdir(), work):
        flush(made)
    with making(path) as aside:
        if path.exists():
            path.rename(aside / path.name)
        work.rename(path)
        flush(path.parent)


def plain(path: Path) -> Path:
    """The same path, if it is a plain file: opening another kind may wait for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(None, "is no plain file", str(path))
    return path


def sha256(path: Path) -> str:
    """The hash of what a file holds."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum(facts: Mapping[str, Any]) -> str:
    """The hash of facts that are written as JSON, but for a checksum among them."""
    rest = {k: v for k, v in facts.items() if k != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
