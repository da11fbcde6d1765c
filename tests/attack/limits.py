"""Little memory, few files, small files, outputs that are closed or full, and an environment without what is usual."""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.attack import made
from tests.attack.ground import Attack, Ground

ABORTS = r"memory allocation of \d+ bytes failed|std::bad_alloc|<jemalloc>"
"""Said by the libraries of C++ and Rust, where there is no memory: nobody can catch that."""
Limit = Callable[[Ground], None]


def _memory(more: int) -> Limit:
    def limit(ground: Ground) -> None:
        import polars  # noqa: F401  # more than all of these limits by itself

        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + more, now + more))

    return limit


def _files(n: int) -> Limit:
    return lambda ground: resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + n,) * 2)


def _size(n: int) -> Limit:
    def limit(ground: Ground) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python has it
        resource.setrlimit(resource.RLIMIT_FSIZE, (n, n))

    return limit


def _to(handle: int, path: str) -> Limit:
    def limit(ground: Ground) -> None:
        os.dup2(os.open(path, os.O_WRONLY), handle)

    return limit


def _pipe(handle: int) -> Limit:
    def limit(ground: Ground) -> None:
        read, write = os.pipe()
        os.dup2(write, handle)
        os.close(read)
        os.close(write)

    return limit


def _closed(handle: int) -> Limit:
    def limit(ground: Ground) -> None:
        os.close(handle)
        setattr(sys, ("stdin", "stdout", "stderr")[handle], None)  # as the interpreter has it then

    return limit


def _no_folder(ground: Ground) -> None:
    gone = ground.beside / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()


def _without(name: str, value: str | None = None) -> Limit:
    def limit(ground: Ground) -> None:
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value

    return limit


def _cache(kind: str) -> Limit:
    def limit(ground: Ground) -> None:
        path = ground.beside / "cache"
        if kind == "link":
            path.symlink_to(ground.victim / "folder")
        elif kind == "file":
            path.write_text("")
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            path.mkdir()
            path.chmod(0o777)
        os.environ["PIPE_CACHE"] = str(path)

    return limit


LIMITS: dict[str, Limit] = {
    **{f"{n} MB more of memory": _memory(n << 20) for n in (0, 1, 4, 16, 48, 96)},
    **{f"{n} more files open": _files(n) for n in (0, 1, 2, 4)},
    **{f"files of {n} bytes": _size(n) for n in (700, 1000, 3000, 9000)},
    "stdout is full": _to(1, "/dev/full"),
    "stderr is full": _to(2, "/dev/full"),
    "stdout has no reader": _pipe(1),
    "stderr has no reader": _pipe(2),
    "stdin is closed": _closed(0),
    "stdout is closed": _closed(1),
    "stderr is closed": _closed(2),
    "the working folder is gone": _no_folder,
    "no HOME": _without("HOME"),
    "HOME is a file": _without("HOME", "/dev/null"),
    "TMPDIR is missing": _without("TMPDIR", "/nowhere"),
    "no PATH": _without("PATH", ""),
    "a foreign locale": _without("LC_ALL", "xx_YY"),
    "the cache is a link": _cache("link"),
    "the cache is a file": _cache("file"),
    "the cache is a FIFO": _cache("fifo"),
    "the cache may be written by all": _cache("open"),
    "the cache has no name that can be": _without("PIPE_CACHE", "\udcff/x" * 900),
}
COMMANDS = {
    "train": made.start("run"),
    "train ensemble": made.start("ensemble"),
    "sweep": made.start("sweep"),
    "train table": made.start("table"),
    "predict csv": ("predict", "table", "--data", "table.csv", "--out", "out.csv"),
    "predict parquet": ("predict", "run", "--data", "rows.npz", "--out", "out.parquet"),
    "predict npz": ("predict", "run", "--data", "rows.npz", "--out", "out.npz"),
    "show": ("show", "--data", "arrays.npz"),
    "init": ("init", "table.csv", "--out", "out.toml"),
    "cache": ("cache",),
    "cache verify": ("cache", "verify"),
    "sample": ("sample", "text", "--count", "20"),
    "bench": ("bench", "--data", "arrays.npz", "--no-compile", "--seconds", "0.05", "--json"),
    **{word: args for word, args in made.commands("run").items() if word != "predict"},
    "predict": ("predict", "table", "--data", "table.csv"),
}


def attacks(plan: Ground) -> Iterator[Attack]:
    for word, args in COMMANDS.items():
        for limit in LIMITS:
            yield Attack("limits", word, limit, partial(_try, args, limit))


def _try(args: tuple[str, ...], limit: str, ground: Ground) -> None:
    made.data(ground)
    for name in ("run", "table", "text"):
        ground.copy(name)
    out = ("stdout", "stderr", "stdin")
    ends = (0, 1, 2, 120, 141) if limit.startswith(out) else (0, 2)  # 141: nobody reads, 120: nothing could be said
    said = ground.pipe(*args, ok=(*ends, -signal.SIGABRT), before=partial(LIMITS[limit], ground))
    if said.code == -signal.SIGABRT and not re.search(ABORTS, said.err):
        ground.fault("exit code", f"{said.code}", said)
