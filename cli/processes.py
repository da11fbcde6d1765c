"""Processes: the same command run by several, which torchrun starts, on one machine or more.

The first process speaks and writes for all. Whatever goes wrong is said once, by the process that it went wrong in.
They end with their launcher, however that ends.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn

import click

from cli.recipes.setting import refusal

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore

NOTES, LAUNCHER = "PIPE_NOTES", "PIPE_LAUNCHER"
"""Variables: the port at which processes, and those restarted after them, leave notes in the launcher's memory, and
its id."""
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

    return mesh.broadcast(value)


def launch(processes: int, restarts: int, arguments: list[str]) -> None:
    """Run `pipe` with these arguments in so many processes, by torchrun's agent, which restarts all of them where one
    dies, and end with their exit code."""
    if processes < 1 or restarts < 0:
        raise refusal("--processes takes a number of at least 1, and --restarts one of at least 0")
    if "RANK" in os.environ:
        raise refusal("--processes starts processes, and torchrun has started this one; leave one of the two out")
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("agent.server.api", "multiprocessing.api"):  # the processes speak for themselves
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL + 1)
    server = socket.create_server(("127.0.0.1", 0))
    notes = _notes(server.getsockname()[1], server.detach())
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=restarts, monitor_interval=0.1, start_method="spawn",
        signals_to_handle=",".join(signal.Signals(n).name for n in (signal.SIGINT, signal.SIGQUIT, *stopping())),
        logs_specs=DefaultLogsSpecs(os.devnull),
    )  # fmt: skip
    try:
        with _told(processes, notes.port):
            elastic_launch(config, sys.executable)("-u", "-m", "cli.main", *arguments)
    except SignalException as e:
        sys.exit(128 + int(e.sigval))
    except ChildFailedError as e:
        rank, failure = e.get_first_failure()
        if ended := noted(ENDED, notes):
            sys.exit(int(ended))
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            folder = noted(FOLDER, notes)
            more = f"; go on with: pipe train --resume {folder} --processes {processes}" if folder else ""
            click.echo(f"pipe: process {rank} was killed ({name}){more}", err=True)
            sys.exit(1)
        sys.exit(failure.exitcode)


@contextmanager
def _told(processes: int, port: int) -> Iterator[None]:
    """Within it, the environment has what processes that are started are to know."""
    before = dict(os.environ)
    # "-m" would look for modules in the current folder first, which may be a stranger's.
    os.environ |= {NOTES: str(port), LAUNCHER: str(os.getpid()), "PYTHONSAFEPATH": "1"}
    os.environ.setdefault("OMP_NUM_THREADS", str(max(len(os.sched_getaffinity(0)) // processes, 1)))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def watch() -> None:
    """End, with all that this process has started, once the one that launched it has ended."""
    launcher = int(os.environ.get(LAUNCHER, os.getppid()))  # torchrun does not say

    def wait() -> None:
        with suppress(OSError, AttributeError):  # on Linux at once, before the others are missed
            select.select([os.pidfd_open(launcher)], [], [])
        while os.getppid() == launcher:
            time.sleep(0.2)
        os.killpg(0, signal.SIGKILL)  # launched as a session of its own

    threading.Thread(target=wait, daemon=True).start()


def stopping() -> list[int]:
    """Signals, besides Ctrl-C, that ask a process to stop: SIGHUP not under nohup."""
    return [n for n in (signal.SIGTERM, signal.SIGHUP) if n == signal.SIGTERM or signal.getsignal(n) != signal.SIG_IGN]


def interrupted(number: int, _: Any) -> NoReturn:
    """A handler that ends a command as Ctrl-C does; a second signal ends it at once."""
    signal.signal(number, signal.SIG_DFL)
    let_go()
    raise KeyboardInterrupt(number)


def let_go() -> None:
    """Write to nowhere from now on what would go to a closed terminal, or to a reader that has gone."""
    for file in (1, 2):
        (seen := select.poll()).register(file, 0)
        if seen.poll(0):
            os.dup2(os.open(os.devnull, os.O_WRONLY), file)


def note(name: str, value: str) -> None:
    """Leave a note for processes that are started in the place of these."""
    if NOTES in os.environ:
        _notes(int(os.environ[NOTES])).set(name, value)


def noted(name: str, notes: TCPStore | None = None) -> str | None:
    """A note of those before."""
    if notes is None and NOTES in os.environ:
        notes = _notes(int(os.environ[NOTES]))
    return notes.get(name).decode() if notes is not None and notes.check([name]) else None


def _notes(port: int, server: int | None = None) -> TCPStore:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch does not list it

    return TCPStore("127.0.0.1", port, None, server is not None, wait_for_workers=False, master_listen_fd=server)


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
