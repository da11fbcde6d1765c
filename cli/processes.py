"""Processes: the same command run by several, which torchrun starts, on one machine or more.

The first process speaks and writes for all. Whatever goes wrong is said once, by the process that it went wrong in.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from cli.recipes.setting import refusal

NOTES = "PIPE_NOTES"
"""The variable that names a folder in which the processes of a run, and those restarted after them, leave notes."""
FOLDER, ENDED = "folder", "ended"
"""Notes: the folder of the run, and the exit code of one that is not to be restarted."""


def count() -> int:
    """How many processes run this command."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def first() -> bool:
    """Whether this is the one that speaks and writes."""
    return int(os.environ.get("RANK", "0")) == 0


def agreed(value: Any) -> Any:
    """The first process's value, in all of them."""
    if count() == 1:
        return value
    from pipeline import mesh

    return mesh.spread(value)


def launch(processes: int, restarts: int, arguments: list[str]) -> None:
    """Run `pipe` with these arguments in so many processes, by torchrun's agent, which restarts all of them where one
    dies, and end with their exit code."""
    if processes < 1 or restarts < 0:
        raise refusal("--processes takes a number of at least 1, and --restarts one of at least 0")
    if "RANK" in os.environ:
        raise refusal("--processes starts processes, and torchrun has started this one; leave one of the two out")
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("agent.server.api", "multiprocessing.api"):  # the processes speak for themselves
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL + 1)
    with tempfile.TemporaryDirectory(prefix="pipe-") as notes, _told(processes, notes):
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
            rdzv_endpoint="localhost:0", max_restarts=restarts, monitor_interval=0.1, start_method="spawn",
        )  # fmt: skip
        try:
            elastic_launch(config, sys.executable)("-u", "-m", "cli.main", *arguments)
        except SignalException as e:
            sys.exit(128 + int(e.sigval))
        except ChildFailedError as e:
            rank, failure = e.get_first_failure()
            ended = _read(Path(notes) / ENDED)
            if ended:
                sys.exit(int(ended))
            if failure.exitcode < 0:
                name = signal.Signals(-failure.exitcode).name
                folder = _read(Path(notes) / FOLDER)
                more = f"; go on with: pipe train --resume {folder} --processes {processes}" if folder else ""
                click.echo(f"pipe: process {rank} was killed ({name}){more}", err=True)
                sys.exit(1)
            sys.exit(failure.exitcode)


@contextmanager
def _told(processes: int, notes: str) -> Iterator[None]:
    """Within it, the environment has what processes that are started are to know."""
    before = dict(os.environ)
    os.environ[NOTES] = notes
    os.environ.setdefault("OMP_NUM_THREADS", str(max(len(os.sched_getaffinity(0)) // processes, 1)))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def note(name: str, value: str) -> None:
    """Leave a note for processes that are started in the place of these."""
    folder = os.environ.get(NOTES)
    if folder is not None:
        work = Path(folder) / f".{name}-{os.getpid()}"
        work.write_text(value, encoding="utf-8")
        work.replace(Path(folder) / name)


def noted(name: str) -> str | None:
    """A note of those before."""
    folder = os.environ.get(NOTES)
    return None if folder is None else _read(Path(folder) / name)


def _read(path: Path) -> str | None:
    with suppress(OSError):
        return path.read_text(encoding="utf-8")
    return None


def restarted() -> bool:
    """Whether processes before these died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def says(message: str) -> bool:
    """Whether this process is the one to say what went wrong: the first that has something to say."""
    if count() == 1:
        return True
    from pipeline import mesh

    return mesh.claimed("failed", message)


def is_lost(error: BaseException) -> bool:
    """Whether an error is that another process is gone, or does not answer."""
    if count() == 1:
        return False
    words = ("gloo", "NCCL", "onnection", "imed out", "imeout", "TCPStore", "peer")
    while error.__cause__ is not None:  # a stage may have met it
        error = error.__cause__
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
