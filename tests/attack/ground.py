"""Where an attack takes place: a folder of its own, commands in forked children, and what is wrong with how they end.

torch is imported once, by the process that forks. A child is `pipe` as a user has it, but for that.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import resource
import select
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LONGEST = 10.0
"""Seconds after which a command hangs."""
MOST = 3 << 30
"""Bytes that a command may ask for, beyond what it has from the start."""
TRACEBACK = re.compile(
    r"Traceback \(most recent|Fatal Python error|Exception ignored|panicked at|terminate called|Segmentation fault"
)
ENDS = {0, 2}
"""Exit codes: done, and said what is wrong."""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
OPEN, CREATE, READ, WRITE, SYNC, RENAME, MAKE, REMOVE, LINK, CUT = range(10)
CALLS = ("open to read", "open to write", "read", "write", "fsync", "rename", "mkdir", "unlink", "link", "truncate")
FAIL, PART, KILL = range(3)


@dataclass(frozen=True)
class Attack:
    """What is tried. `go` reports on its ground what does not hold."""

    kind: str
    command: str
    name: str
    go: Callable[[Ground], None] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Fault:
    """Which calls on files below the ground fail: the n-th of some kinds, with an error, once or from there on."""

    kinds: tuple[int, ...] = ()
    n: int = 0
    error: int = errno.EIO
    action: int = FAIL
    lasting: bool = False
    journal: bool = False


@dataclass
class Said:
    """How a command ended."""

    args: tuple[str, ...]
    code: int
    out: str
    err: str
    calls: list[int]
    """How many of each kind it made on files below the ground."""

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL


@dataclass
class Problem:
    kind: str
    what: str
    args: tuple[str, ...] = ()
    err: str = ""


class Ground:
    """A folder in which attacks are made, one after the other; beside it the runs that were made once."""

    def __init__(self, root: Path, made: Path) -> None:
        self.root, self.made = root, made
        self.here, self.victim, self.beside = root / "here", root / "victim", root / "beside"
        self.problems: list[Problem] = []
        self._known: dict[Any, Any] = {}
        self.fresh()

    def fresh(self) -> None:
        """An empty folder, and beside it files that nothing may change."""
        for folder in (self.here, self.victim, self.beside):
            if folder.exists():
                os.chmod(folder, 0o700)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        (self.victim / "folder").mkdir()
        for name in ("file", "other", "folder/file"):
            (self.victim / name).write_text("mine\n")
        os.chmod(self.victim / "file", 0o640)
        self.seal()
        self.problems = []

    def seal(self) -> None:
        """Remember what the victims are now."""
        self._sealed = self._victims()

    def _victims(self) -> dict[str, Any]:
        found = {}
        for path in sorted(self.victim.rglob("*")):
            status = path.lstat()
            content = path.read_bytes() if path.is_file() and not path.is_symlink() else None
            found[str(path.relative_to(self.victim))] = status.st_mode, content, content and status.st_mtime_ns
        return found

    def attack(self, attack: Attack) -> list[Problem]:
        """What is wrong after an attack."""
        self.fresh()
        try:
            attack.go(self)
        except Exception:
            self.problems.append(Problem("harness", traceback.format_exc()))
        after = self._victims()
        if after != self._sealed:
            names = sorted(k for k in {*after, *self._sealed} if after.get(k) != self._sealed.get(k))
            self.fault("outside", f"files outside were changed: {', '.join(names)}")
        return self.problems

    def copy(self, name: str, to: str | None = None) -> Path:
        """A run that was made, in the folder of the attack."""
        target = self.here / (to or name)
        if (self.made / name).is_dir():
            shutil.copytree(self.made / name, target, symlinks=True)
        else:
            shutil.copy2(self.made / name, target)
        return target

    def fault(self, kind: str, what: str, said: Said | None = None) -> None:
        self.problems.append(Problem(kind, what, said.args if said else (), said.err[-3000:] if said else ""))

    def once(self, key: Any, make: Callable[[Ground], Any]) -> Any:
        """What `make` gives on an empty ground, worked out once."""
        if key not in self._known:
            inner = Ground(self.root / f"known-{len(self._known)}", self.made)
            self._known[key] = make(inner)
            if inner.problems:
                raise RuntimeError(f"{key}: {inner.problems}")
            shutil.rmtree(inner.root, ignore_errors=True)
        return self._known[key]

    def pipe(
        self, *args: str, ok: Sequence[int] | None = None, fault: Fault | None = None,
        before: Callable[[], None] | None = None, clean: bool = False, call: Callable[[], None] | None = None,
    ) -> Said:  # fmt: skip
        """Run a command here, or a function in its place, and report what none may do: hang, or end in a traceback."""
        said = self._run(args, fault, before, call)
        if said.code == -signal.SIGXCPU:
            self.fault("hang", f"no end after {LONGEST:.0f} s", said)
        elif TRACEBACK.search(said.err) or TRACEBACK.search(said.out):
            self.fault("traceback", _last(said.err), said)
        elif said.code not in (ENDS if ok is None else ok) and not (said.killed and fault and fault.action == KILL):
            self.fault("exit code", f"{said.code}", said)
        elif said.code == 2 and len(said.err.strip().splitlines()) not in range(1, 7):
            self.fault("words", f"{len(said.err.strip().splitlines())} lines are said", said)
        if clean and (found := CONTROL.search(said.out + said.err)):
            self.fault("control", f"{found[0]!r} reaches the terminal", said)
        return said

    def _run(
        self,
        args: Sequence[str],
        fault: Fault | None,
        before: Callable[[], None] | None,
        call: Callable[[], None] | None,
    ) -> Said:
        files = [self.beside / name for name in ("out", "err", "calls", "journal")]
        for path in files:
            path.unlink(missing_ok=True)
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if not child:
            _child(args, self, files, fault, before, call)
        watch = os.pidfd_open(child)
        code = None
        busy = os.getloadavg()[0] / (os.cpu_count() or 1)  # where others compute, it takes longer
        if not select.select([watch], [], [], LONGEST * min(max(busy, 1), 3))[0]:
            code = -signal.SIGXCPU  # stands for a hang
            os.killpg(child, signal.SIGKILL)
        os.close(watch)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out, err, calls = (
            path.read_bytes().decode(errors="surrogateescape") if path.exists() else "" for path in files[:3]
        )
        return Said(tuple(args), ended if code is None else code, out, err, [int(n) for n in calls.split()])


def _child(
    args: Sequence[str], ground: Ground, files: Sequence[Path], fault: Fault | None, before: Callable[[], None] | None,
    call: Callable[[], None] | None,
) -> None:  # fmt: skip
    """The command, in a process of its own; does not return."""
    code = 1
    try:
        os.setsid()
        end_with_parent()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MOST
        resource.setrlimit(resource.RLIMIT_AS, (size, size))  # what reads /dev/zero may not take the machine with it
        os.chdir(ground.here)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for handle, path in ((1, files[0]), (2, files[1])):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), handle)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115  # open to the end
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  # open to the end
        sys.stderr = open(2, "w", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115  # as those
        sys.argv = ["pipe", *args]
        from cli.main import main

        if before:
            before()
        counted = os.open(files[2], os.O_WRONLY | os.O_CREAT, 0o600) if fault else None
        if fault:
            arm(ground, fault, files[3])
        try:
            (call or main)()
            code = 0
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else int(e.code is not None)
        except BaseException:
            traceback.print_exc()
        try:  # as the interpreter does at its end
            if sys.stdout is not None:
                sys.stdout.flush()
        except (OSError, ValueError):
            code = 120
            print(f"Exception ignored on flushing sys.stdout:\n{traceback.format_exc()}", file=sys.stderr)
        if counted is not None:
            os.write(counted, " ".join(map(str, counts())).encode())
        if sys.stderr is not None:
            sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code & 255)


def end_with_parent() -> None:
    """Have this process killed when the one that forked it ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def arm(ground: Ground, fault: Fault, journal: Path) -> None:
    """Let calls of this process fail."""
    log, kept = (str(journal).encode(), str(ground.beside).encode()) if fault.journal else (None, None)
    mask = sum(1 << kind for kind in fault.kinds)
    ctypes.CDLL(None).attack_arm(
        os.path.realpath(ground.here).encode(), mask, fault.n, fault.error, fault.action, int(fault.lasting), log, kept
    )


def counts() -> list[int]:
    """The calls on files below the ground since it was armed, which ends it."""
    found = (ctypes.c_long * len(CALLS))()
    ctypes.CDLL(None).attack_counts(found)
    return list(found)


def warm(root: Path, files: Callable[[Path], None]) -> None:
    """Import and use all that a command needs, so that children start with it; no thread may be left, and
    polars, which has threads from its import on, is left to the children."""
    import torch

    torch.set_num_threads(1)
    from cli.main import main

    here, out = os.getcwd(), os.dup(1)
    argv = sys.argv
    (root / "warm").mkdir()
    files(root / "warm")
    os.chdir(root / "warm")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for args in (
        "train --data digits --epochs 1 --no-compile --hidden 8 --out r -q",
        "train --data digits --epochs 1 --no-compile --hidden 8 --ensemble 2 --out e -q",
        "sweep --data digits --epochs 1 --no-compile --hidden 8 --lr 0.1,0.3 --out s -q",
        "eval r --json", "report r", "export r --format weights", "runs .", "plot r", "show --data digits",
        "cache",
    ):  # fmt: skip
        sys.argv = ["pipe", *args.split()]
        try:
            main()
        except SystemExit as e:
            if e.code:
                raise RuntimeError(f"{args} ended with {e.code}") from None
    sys.stdout.flush()
    os.dup2(out, 1)
    os.chdir(here)
    sys.argv = argv
    alive = [t.name for t in threading.enumerate()]
    tasks = os.listdir("/proc/self/task")
    if len(tasks) > 1:
        names = [Path(f"/proc/self/task/{t}/comm").read_text().strip() for t in tasks]
        raise RuntimeError(f"threads are left, with which no process may fork: {alive}, {names}")


def _last(err: str) -> str:
    """The place of ours where a traceback ends, and its last line."""
    lines = err.strip().splitlines() or ["nothing said"]
    places = re.findall(r'File "[^"]*?/((?:cli|pipeline)/[^"]+)", line (\d+)', err)
    last = next((line for line in reversed(lines) if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", line)), lines[-1])
    return f"{last[:160]} at {':'.join(places[-1]) if places else '?'}"


def elapsed(start: float) -> str:
    return f"{time.monotonic() - start:.0f} s"
