"""The command in a process of its own, forked from one that has imported torch: that takes longer than most runs.

Signals, terminals, pipes and folders are those of a real process; how Python starts is what test_cli.py has of its own.
"""

import atexit
import fcntl
import os
import signal
import subprocess
import sys
import termios
import threading
from multiprocessing import forkserver, get_context, reduction
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parent.parent


class Passed:
    """A file descriptor, which the child gets as its own."""

    def __init__(self, number):
        self.number = number

    def __reduce__(self):
        return _received, (reduction.DupFd(self.number),)


def _received(sent):
    return sent.detach()


class Process:
    """`pipe` with these arguments or, with `code`, some Python in its place; as subprocess.Popen with pipes of text.

    `terminal` is a pseudo-terminal's descriptor, in place of the pipes; with `session`, it is the one that controls a
    new session. `signals` are the ways of some signals from the start.
    """

    def __init__(self, *args, cwd=".", env=None, code=None, input="", terminal=None, session=False, signals=()):
        ends = [] if terminal is not None else [os.pipe() for _ in range(3)]
        theirs = [terminal] * 3 if terminal is not None else [ends[0][0], ends[1][1], ends[2][1]]
        given = {**(os.environ if env is None else env)}
        told = (code, [*map(str, args)], str(Path(cwd).absolute()), given, session, terminal is not None, dict(signals))
        context = get_context("forkserver")
        context.set_forkserver_preload(["tests.forked_imports"])
        with mock.patch.dict(os.environ, PYTHONPATH=str(ROOT)):
            forkserver.ensure_running()
        self._process = context.Process(target=_begin, args=(*map(Passed, theirs), *told))
        self._process.start()
        self.pid = self._process.pid
        self.stdout = self.stderr = None
        if ends:
            for number in theirs:
                os.close(number)
            with os.fdopen(ends[0][1], "w") as file:
                file.write(input)
            self.stdout, self.stderr = (os.fdopen(end[0]) for end in ends[1:])

    def poll(self):
        return self._process.exitcode

    @property
    def returncode(self):
        return self._process.exitcode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("pipe", timeout)
        return self._process.exitcode

    def communicate(self, timeout=None):
        said = ["", ""]

        def read(place, file):
            said[place] = file.read()

        readers = [threading.Thread(target=read, args=a, daemon=True) for a in enumerate((self.stdout, self.stderr))]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
        return tuple(said)

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()
        self.wait()
        for file in (self.stdout, self.stderr):
            if file is not None:
                file.close()


def run(*args, timeout=300, **options):
    """The command, ended, with what it said."""
    with Process(*args, **options) as process:
        out, err = process.communicate(timeout)
        return subprocess.CompletedProcess(args, process.returncode, out, err)


def _begin(inside, out, error, code, args, cwd, env, session, terminal, signals):
    if session:
        os.setsid()
    for number, file in enumerate((inside, out, error)):
        os.dup2(file, number)
        os.close(file)
    if session and terminal:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", 1 if terminal else -1, closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)
    for number, way in signals.items():
        signal.signal(number, way)
    sys.argv = ["pipe", *args]
    try:
        if code is None:
            from cli.main import main

            main()
        else:
            exec(code, {"__name__": "__main__"})
    finally:
        atexit._run_exitfuncs()
