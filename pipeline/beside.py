"""Work in a process forked from this one: it has a copy of the memory, and gives back files alone."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import tempfile
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from pipeline import files

LONGEST = 600.0
"""Seconds to wait for the process: a lock that another thread held during the fork is never released in it."""
_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ENDED = os.WEXITED | os.WNOHANG | os.WNOWAIT if hasattr(os, "WNOWAIT") else 0


class Beside:
    """A process that calls a function once. It prints nothing, holds no file of this process open, and ends with it."""

    def __init__(self, work: Callable[[], Any]) -> None:
        folder = Path(tempfile.mkdtemp(prefix="pipe-train-"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of other threads, as above
            # A signal between the fork and its handling would raise in both processes.
            before, parent = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS), os.getpid()
            try:
                pid = os.fork()
                if pid == 0:
                    _run(work, parent, folder, before)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._pid = pid
        self._end = weakref.finalize(self, _end, parent, pid, folder)

    def wait(self) -> None:
        """Wait until the function has returned or failed."""
        limit = time.monotonic() + LONGEST
        with suppress(ChildProcessError):
            while self._end.alive and time.monotonic() < limit and not os.waitid(os.P_PID, self._pid, _ENDED):
                time.sleep(0.01)
        self._end()


def possible() -> bool:
    """Whether this system has processes of this kind."""
    return sys.platform == "linux"


def _end(parent: int, pid: int, folder: Path) -> None:
    if os.getpid() != parent:  # a process that another fork made has a copy of the finalizer
        return
    with suppress(ProcessLookupError, ChildProcessError):  # if a program has the system forget its children
        os.kill(pid, signal.SIGKILL)  # it may have ended, but its number is taken until waitpid
        os.waitpid(pid, 0)
    files.remove(folder)


def _run(work: Callable[[], Any], parent: int, folder: Path, mask: set[Any]) -> NoReturn:
    """The whole life of the process, whatever fails: it never goes on as a copy of the program."""
    try:
        _alone(parent, folder, mask)
        # OpenMP's threads did not come along; a new thread starts its own.
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    finally:
        os._exit(0)


def _alone(parent: int, folder: Path, mask: set[Any]) -> None:
    """Detach the process from its parent, except that it ends with it."""
    ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    os.nice(19)  # the parent's training comes first
    gc.freeze()  # garbage from before the fork is the parent's to finalize
    for caught in _SIGNALS:
        signal.signal(caught, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for output in range(3):
        os.dup2(nowhere, output)
    os.closerange(3, max(map(int, os.listdir("/proc/self/fd"))) + 1)  # a lock is held while any process has its file
    sys.stdout = sys.stderr = os.fdopen(1, "w", closefd=False)  # a program may have put another file there
    tempfile.tempdir = str(folder)
