"""What does not hold is found: each of these functions has a hole, and the attack has to report it."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.attack import links
from tests.attack.ground import CREATE, KILL, MAKE, PART, RENAME, SYNC, WRITE, Attack, Fault, Ground
from tests.attack.kills import cut


def attacks(plan: Ground) -> Iterator[Attack]:
    for wanted, go in HOLES.items():
        yield Attack("proof", wanted, go.__name__.strip("_"), partial(_found, wanted.partition(": ")[0], go))


def _found(wanted: str, go: Callable[[Ground], None], ground: Ground) -> None:
    """The problem is reported, and with that it is none."""
    problems = ground.attack(Attack("proof", "", "", go))
    ground.problems = [] if wanted in {p.kind for p in problems} else problems
    if not ground.problems and wanted not in {p.kind for p in problems}:
        ground.fault("missed", f"no {wanted} is reported")
    ground.victim.joinpath("file").write_text("mine\n")
    ground.seal()


def _write(path: str, content: str, *, sync: bool = False, names: bool = False) -> None:
    with open(f"{path}.tmp", "w") as file:
        file.write(content)
        file.flush()
        if sync:
            os.fsync(file.fileno())
    os.replace(f"{path}.tmp", path)
    if names:
        handle = os.open(".", os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    os.mkdir("after")


def _cut_off(ground: Ground, what: str, **how: bool) -> None:
    (ground.here / "a").write_text("old")
    fault = Fault((MAKE,), 1, action=KILL, journal=True)
    ground.pipe("write", call=partial(_write, "a", "new", **how), fault=fault)
    cut(ground, what)
    if (ground.here / "a").read_text() not in ("old", "new") or (
        what == "names" and (ground.here / "a").read_text() == "old"
    ):
        ground.fault("lost", f"a is {(ground.here / 'a').read_text()!r}")


def without_fsync(ground: Ground) -> None:
    _cut_off(ground, "data")


def without_fsync_of_the_folder(ground: Ground) -> None:
    _cut_off(ground, "names", sync=True)


def with_both(ground: Ground) -> None:
    for what in ("data", "names", "all"):
        _cut_off(ground, what, sync=True, names=True)
        os.rmdir(ground.here / "after") if (ground.here / "after").exists() else None
    if not ground.problems:
        ground.fault("held", "as it should")


def through_a_link(ground: Ground) -> None:
    links.WAYS["a link"](ground.here / "a", ground)
    ground.pipe("write", call=lambda: Path("a").write_text("x") and None)


def without_an_end(ground: Ground) -> None:
    ground.pipe("wait", call=lambda: time.sleep(60))


def with_a_traceback(ground: Ground) -> None:
    def full() -> None:
        _write("a", "x")

    ground.pipe("write", call=full, fault=Fault((WRITE,), 1, errno.ENOSPC))


def with_escapes(ground: Ground) -> None:
    ground.pipe("say", call=lambda: print("\x1b[31m"), clean=True)


def by_a_signal(ground: Ground) -> None:
    ground.pipe("abort", call=os.abort)


def with_nothing_said(ground: Ground) -> None:
    ground.pipe("end", call=lambda: sys.exit(2))


def all_calls_are_seen(ground: Ground) -> None:
    calls = ground.pipe("write", call=partial(_write, "a", "x", sync=True, names=True), fault=Fault()).calls
    if [calls[kind] for kind in (CREATE, WRITE, SYNC, RENAME, MAKE)] == [1, 1, 2, 1, 1]:
        ground.fault("held", "as it should")


def half_a_write(ground: Ground) -> None:
    def go() -> None:
        handle = os.open("a", os.O_WRONLY | os.O_CREAT)
        print(os.write(handle, b"1234"))

    if ground.pipe("write", call=go, fault=Fault((WRITE,), 1, errno.ENOSPC, PART)).out == "2\n":
        ground.fault("held", "as it should")


HOLES: dict[str, Callable[[Ground], None]] = {
    "lost: data": without_fsync,
    "lost: names": without_fsync_of_the_folder,
    "held: durable": with_both,
    "held: counts": all_calls_are_seen,
    "held: parts": half_a_write,
    "outside": through_a_link,
    "hang": without_an_end,
    "traceback": with_a_traceback,
    "control": with_escapes,
    "exit code": by_a_signal,
    "words": with_nothing_said,
}
