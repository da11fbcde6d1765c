"""Memory: how much is free, and return of unused memory to the system."""

from __future__ import annotations

import ctypes
import gc
import resource
from contextlib import suppress
from pathlib import Path

from pipeline import files
from pipeline.errors import DataError

PAGE = resource.getpagesize()

LARGE = 2**26
"""Bytes of tensors from which giving memory back to the system pays."""


def free() -> int:
    """Bytes that this process may still allocate: the least of the machine's, its container's and its own limit."""
    limits = [1 << 62]
    with suppress(OSError, StopIteration):
        lines = files.read(Path("/proc/meminfo")).decode().splitlines()
        limits.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    with suppress(OSError, ValueError, KeyError):  # a container without a limit says "max"
        limit, used = (int(files.read(Path(f"/sys/fs/cgroup/memory.{n}"))) for n in ("max", "current"))
        stat = dict(line.split() for line in files.read(Path("/sys/fs/cgroup/memory.stat")).decode().splitlines())
        limits.append(limit - used + int(stat["inactive_file"]))  # cached files can be dropped
    with suppress(OSError):
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        used = int(files.read(Path("/proc/self/statm")).split()[0]) * PAGE
        limits += [] if limit == resource.RLIM_INFINITY else [limit - used]
    return max(min(limits), 0)


def check(need: float, what: str, *, instead: str = "", error: type[Exception] = DataError) -> None:
    """Raise an error unless `need` bytes are free.

    >>> check(1 << 20, "a file of 1 MB")
    """
    if need > (available := free()):
        raise error(f"{what} needs {size(need)} of memory, and {size(available)} are free{instead and f'; {instead}'}")


def give_back() -> None:
    """Return freed memory to the system, such as the tens of megabytes in cycles that Inductor leaves."""
    gc.collect()
    trim()


def trim() -> None:
    """Return freed memory to the system, without collecting cycles first."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc
        trim(0)


def size(count: float) -> str:
    """Bytes in words.

    >>> size(1.2e12), size(20)
    ('1.2 TB', '20 bytes')
    """
    if count < 1000:
        return f"{count:.0f} bytes"
    power = next((p for p in (3, 6, 9, 12, 15, 18) if count < 1000 * 0.9995 * 10.0**p), 18)
    return f"{count / 10.0**power:.3g} {['kB', 'MB', 'GB', 'TB', 'PB', 'EB'][power // 3 - 1]}"
