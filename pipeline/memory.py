"""Memory: what is free now, and what can't be made in it."""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path

from pipeline import files
from pipeline.errors import DataError

PAGE = resource.getpagesize()


def free() -> int:
    """Bytes that this process may still take: of the machine, of its container, and of its own limit."""
    found = [1 << 62]
    with suppress(OSError, StopIteration):
        lines = files.read(Path("/proc/meminfo")).decode().splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    with suppress(OSError, ValueError, KeyError):  # a container without a limit says "max"
        limit, used = (int(files.read(Path(f"/sys/fs/cgroup/memory.{n}"))) for n in ("max", "current"))
        stat = dict(line.split() for line in files.read(Path("/sys/fs/cgroup/memory.stat")).decode().splitlines())
        found.append(limit - used + int(stat["inactive_file"]))  # cached files give way
    with suppress(OSError):
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        used = int(files.read(Path("/proc/self/statm")).split()[0]) * PAGE
        found += [] if limit == resource.RLIM_INFINITY else [limit - used]
    return max(min(found), 0)


def check(need: float, what: str, *, instead: str = "", error: type[Exception] = DataError) -> None:
    """Raise an error if so many bytes are not free.

    >>> check(1 << 20, "a file of 1 MB")
    """
    if need > (there := free()):
        raise error(f"{what} needs {size(need)} of memory, and {size(there)} are free{instead and f'; {instead}'}")


def size(count: float) -> str:
    """Bytes in words.

    >>> size(1.2e12), size(20)
    ('1.2 TB', '20 bytes')
    """
    if count < 1000:
        return f"{count:.0f} bytes"
    power = next((p for p in (3, 6, 9, 12, 15, 18) if count < 1000 * 0.9995 * 10.0**p), 18)
    return f"{count / 10.0**power:.3g} {['kB', 'MB', 'GB', 'TB', 'PB', 'EB'][power // 3 - 1]}"
