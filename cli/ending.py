"""Ending: report errors of the machine (disk, memory, output) in one line, with an exit code. Imports no torch."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper
from typing import Any

_FULL = {
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOMEM,
    errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR,
}  # fmt: skip
"""What the machine refuses; a file that is not there may be our own mistake."""
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
MOST = 8
"""Errors behind an error that are looked at."""


def words(error: BaseException) -> str | None:
    """Why the machine does not let a command go on, in one line; None for any other error."""
    found: BaseException | None = error
    for _ in range(MOST):
        if found is None:
            return None
        if isinstance(found, OSError) and (found.errno in _FULL or (found.errno == errno.EBADF and _closed())):
            return f"can't use {found.filename or 'the output'}: {os.strerror(found.errno or 0)}"
        text = (str(found).strip() or " ").splitlines()[0]
        if isinstance(found, MemoryError) or any(word in str(found) for word in _MEMORY):
            more = f" ({text})" if text.strip() else ""
            return f"there is too little memory{more}: take a smaller model, batch or file, or give it more"
        if any(word in str(found) for word in _DISK):
            return text
        found = found.__cause__ or found.__context__
    return None


def shown(text: str) -> str:
    """A text as a terminal may show it; the library is only imported for one that needs it."""
    if text.replace("\n", "").isprintable():
        return text
    from pipeline.text import shown

    return shown(text)


def say(message: str) -> None:
    """Say why a command ends, if there is somebody to hear it."""
    with suppress(OSError, ValueError):
        sys.stderr.write(f"pipe: {shown(message)}\n")
        sys.stderr.flush()


def with_outputs(command: Callable[[], None]) -> None:
    """Run a command, and end it by its own exit code, or by that of what could not be written.

    What was closed before it began is not opened again under the same number by a file that it writes.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # to write to the output fails then; errors are not said, but that does not end a command
            os.open(os.devnull, os.O_WRONLY if number == 2 else os.O_RDONLY)
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  # as long as the process
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  # as above
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            with suppress(OSError, ValueError):
                stream.reconfigure(errors="backslashreplace")
    code: Any = 0
    try:
        command()
    except SystemExit as e:  # click has put this in the place of an output whose reader has gone
        code = 141 if "PacifyFlush" in type(sys.stdout).__name__ else e.code
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError) as e:
            if not code and stream is sys.stdout and not isinstance(e, BrokenPipeError):
                say(words(e) or str(e))
            code = code or (141 if isinstance(e, BrokenPipeError) else 2)
            with suppress(OSError, ValueError):  # or it would raise once more when the interpreter ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


def _closed() -> bool:
    return fcntl.fcntl(1, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
