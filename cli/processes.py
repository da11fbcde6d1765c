"""One command in several processes, started by torchrun or --processes, on one machine or more.

The first process prints and writes for all. An error is printed once, by the process that has it. All of them end when
their launcher ends, however that happens.
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

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

NOTES, LAUNCHER = "PIPE_NOTES", "PIPE_LAUNCHER"
"""Environment variables: the port of the launcher's store, and the launcher's process id. Notes in the store stay
readable for restarted processes."""
FOLDER, ENDED = "folder", "ended"
"""Notes: the folder of the run, and the exit code of an error that a restart can't fix."""


def count() -> int:
    """Number of processes that run this command."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def first() -> bool:
    """Whether this process prints and writes."""
    return int(os.environ.get("RANK", "0")) == 0


def agreed(value: Any) -> Any:
    """The value of the first process, on all processes."""
    if count() == 1:
        return value
    from pipeline import mesh

    return mesh.broadcast(value)


def launch(processes: int, restarts: int, arguments: list[str]) -> None:
    """Run `pipe` with these arguments in several processes, and exit with their exit code.

    torchrun's agent restarts all of them if one dies.
    """
    if "RANK" in os.environ:
        from cli.recipes.setting import refusal

        raise refusal("--processes starts processes, and torchrun has started this one; leave one of the two out")
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("agent.server.api", "multiprocessing.api"):  # the processes print their errors themselves
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
        with _environment(processes, notes.port):
            elastic_launch(config, sys.executable)("-u", "-m", "cli.main", *arguments)
    except SignalException as e:
        sys.exit(128 + int(e.sigval))
    except ChildFailedError as e:
        _exit_like(*e.get_first_failure(), notes, processes)


def _exit_like(rank: int, failure: ProcessFailure, notes: TCPStore, processes: int) -> NoReturn:
    """Exit as the first process that failed."""
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
def _environment(processes: int, port: int) -> Iterator[None]:
    """Set the environment variables of processes to start."""
    before = dict(os.environ)
    # PYTHONSAFEPATH: else "-m" would import modules from the current folder first, which may be a stranger's.
    os.environ |= {NOTES: str(port), LAUNCHER: str(os.getpid()), "PYTHONSAFEPATH": "1"}
    os.environ.setdefault("OMP_NUM_THREADS", str(max(len(os.sched_getaffinity(0)) // processes, 1)))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def watch() -> None:
    """Kill this process and its children once the launcher has ended."""
    launcher = int(os.environ.get(LAUNCHER, os.getppid()))  # torchrun does not set it

    def wait() -> None:
        with suppress(OSError, AttributeError):  # Linux: returns at once when the launcher ends
            select.select([os.pidfd_open(launcher)], [], [])
        while os.getppid() == launcher:
            time.sleep(0.2)
        os.killpg(0, signal.SIGKILL)  # the launcher gave each process a session of its own

    threading.Thread(target=wait, daemon=True).start()


def stopping() -> list[int]:
    """Signals besides SIGINT that ask a process to stop: SIGTERM, and SIGHUP unless under nohup."""
    return [n for n in (signal.SIGTERM, signal.SIGHUP) if n == signal.SIGTERM or signal.getsignal(n) != signal.SIG_IGN]


def interrupted(number: int, _: Any) -> NoReturn:
    """Signal handler: end a command as Ctrl-C does; a second signal kills it."""
    signal.signal(number, signal.SIG_DFL)
    drop_closed_outputs()
    raise KeyboardInterrupt(number)


def drop_closed_outputs() -> None:
    """Redirect stdout and stderr to /dev/null if their terminal or reader is gone."""
    for file in (1, 2):
        (poll := select.poll()).register(file, 0)
        if poll.poll(0):
            os.dup2(os.open(os.devnull, os.O_WRONLY), file)


@contextmanager
def silent() -> Iterator[None]:
    """Without what C++ writes to stderr: torch's profiler notes there that it begins and ends."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def note(name: str, value: str) -> None:
    """Write a note for later restarts of these processes. The first one stays: a run may have others inside."""
    if noted(name) is None and NOTES in os.environ:
        _notes(int(os.environ[NOTES])).set(name, value)


def noted(name: str, notes: TCPStore | None = None) -> str | None:
    """The note of these processes' earlier start."""
    if notes is None and NOTES in os.environ:
        notes = _notes(int(os.environ[NOTES]))
    return notes.get(name).decode() if notes is not None and notes.check([name]) else None


def _notes(port: int, server: int | None = None) -> TCPStore:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch does not list it

    return TCPStore("127.0.0.1", port, None, server is not None, wait_for_workers=False, master_listen_fd=server)


def restarted() -> bool:
    """Whether these processes replace ones that died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def says(message: str) -> bool:
    """Whether this process is to print an error: the first one that asks."""
    if count() == 1:
        return True
    from pipeline import mesh

    return mesh.claimed("failed", message)


def is_lost(error: BaseException) -> bool:
    """Whether an error says that another process is gone or does not answer."""
    if count() == 1:
        return False
    words = ("gloo", "NCCL", "onnection", "imed out", "imeout", "TCPStore", "peer")
    while error.__cause__ is not None:  # a stage may have wrapped it
        error = error.__cause__
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
