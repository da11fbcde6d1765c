"""End a command: errors of the machine (disk, memory, output) in one line, and an exit code. Imports no torch."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper
from typing import Any

_ERRNOS = {
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOMEM,
    errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR,
}  # fmt: skip
"""Errors of the machine. ENOENT is not among them: a missing file may be a bug of ours."""
_MEMORY = (
    "can't allocate memory",
    "Cannot allocate memory",
    "not enough memory",
    "bad_alloc",
    "can't start new thread",
    "can't spawn worker thread",
    "could not spawn threads",
    "could not create a primitive",
)
_DISK = ("No space left on device", "Input/output error", "Disk quota exceeded", "Read-only file system",
         "File too large", "Too many open files")  # fmt: skip
DEPTH = 8
"""Causes of an error to examine."""


def machine_error(error: BaseException) -> str | None:
    """The message of an error of the machine, in one line; None for any other error."""
    e: BaseException | None = error
    for _ in range(DEPTH):
        if e is None:
            return None
        if isinstance(e, OSError) and (e.errno in _ERRNOS or (e.errno == errno.EBADF and _stdout_closed())):
            return f"can't use {e.filename or 'the output'}: {os.strerror(e.errno or 0)}"
        text = (str(e).strip() or " ").splitlines()[0]
        if isinstance(e, MemoryError) or any(word in str(e) for word in _MEMORY):
            more = f" ({text})" if text.strip() else ""
            return f"there is too little memory{more}: use a smaller model, batch or file"
        if any(word in str(e) for word in _DISK):
            return text
        e = e.__cause__ or e.__context__
    return None


def _stdout_closed() -> bool:
    return fcntl.fcntl(1, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY


def shown(text: str) -> str:
    """A text with its control characters escaped. The library is imported only for a text that has some."""
    if text.replace("\n", "").isprintable():
        return text
    from pipeline.text import shown

    return shown(text)


def say(message: str) -> None:
    """Print the reason for the end of a command, if stderr is open."""
    with suppress(OSError, ValueError):
        sys.stderr.write(f"pipe: {shown(message)}\n")
        sys.stderr.flush()


def with_outputs(command: Callable[[], None]) -> None:
    """Run a command and exit with its code, or with an error's code if its output can't be written."""
    _open_outputs()
    code: Any = 0
    try:
        command()
    except SystemExit as e:  # click replaces an output whose reader is gone by a PacifyFlush
        code = 141 if "PacifyFlush" in type(sys.stdout).__name__ else e.code
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError) as e:
            if not code and stream is sys.stdout and not isinstance(e, BrokenPipeError):
                say(machine_error(e) or str(e))
            code = code or (141 if isinstance(e, BrokenPipeError) else 2)
            with suppress(OSError, ValueError):  # else it would raise again when the interpreter exits
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


def _open_outputs() -> None:
    """Make all standard streams usable.

    A closed descriptor is filled, so that no file that the command opens gets its number. Writing to a closed stdout
    fails, which ends the command; errors to a closed stderr are lost.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_WRONLY if number == 2 else os.O_RDONLY)
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  # never closed
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  # as above
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            with suppress(OSError, ValueError):
                stream.reconfigure(errors="backslashreplace")
