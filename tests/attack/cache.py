"""Kept programs that are damaged, foreign, or linked elsewhere are never run, and keeping one that fails does no harm.

The programs are two small libraries: one that says nothing, and a stranger's, which leaves a mark when it is loaded.
"""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.attack import damage, links
from tests.attack.faults import ERRORS
from tests.attack.ground import CALLS, KILL, Attack, Fault, Ground
from tests.attack.made import CHANGES

SOURCE = """
#include <fcntl.h>
void aoti_torch_delete_tensor_object(void *p) {}
int pipeline_permute(void) { return 0; }
int run(void) { return 0; }
__attribute__((constructor)) void loaded(void) { if (%d) creat("RAN", 0600); }
"""
IDENTITY = {"graph": "one", "torch": "2"}
FILES = ("step.so", "package.json")
COMMANDS = ("find", "keep", "list", "verify", "clear")


def attacks(plan: Ground) -> Iterator[Attack]:
    _make(plan)
    for command in COMMANDS:
        for file in FILES:
            for change, (times, _) in damage.CHANGES.items():
                for n in range(times):
                    yield _attack(command, f"{change} {n}: {file}", partial(_damage, file, change, n))
            for other in ("stranger", "gone"):
                yield _attack(command, f"of another: {file} of {other}", partial(_swap, file, other))
            for way in links.WAYS:
                yield _attack(command, f"{way}: {file}", partial(_link, file, way))
        for way in links.WAYS:
            for file in ("", "..", "../measured.json", "../inductor", "../.making-0"):
                if (file, way) == ("..", "a link to a copy"):  # a cache that its owner keeps elsewhere
                    continue
                yield _attack(command, f"{way}: {file or 'the package'}", partial(_link, file, way))
        for file in ("step.so", "package.json", "", "..", "../.."):
            for mode in (0o770, 0o777, 0o702):
                yield _attack(
                    command, f"a stranger's, mode {mode:o}: {file or 'the package'}", partial(_open, file, mode)
                )
            if os.getuid() == 0:
                yield _attack(command, f"a stranger's, owned: {file or 'the package'}", partial(_owned, file))
    calls = plan.once("keep", lambda ground: ground.pipe("keep", before=_env(ground), call=_keep, fault=Fault()).calls)
    for kind, number in enumerate(calls):
        for n in range(1, number + 1):
            for error in ERRORS[kind]:
                for lasting in (False, True):
                    name = f"{CALLS[kind]} {n}{' and all after' if lasting else ''}: {os.strerror(error)}"
                    yield Attack("cache", "keep", name, partial(_fault, Fault((kind,), n, error, 0, lasting)))
    for n in range(1, sum(calls[kind] for kind in CHANGES) + 1):
        yield Attack("cache", "keep", f"kill at change {n}", partial(_fault, Fault(CHANGES, n, action=KILL)))


def _make(plan: Ground) -> None:
    for name, marks in (("own", 0), ("stranger", 1)):
        (plan.made / f"{name}.c").write_text(SOURCE % marks)
        library = plan.made / f"{name}.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, plan.made / f"{name}.c"], check=True)
        plan.fresh()
        shutil.copy2(library, plan.here / "own.so")
        plan.pipe("keep", before=_env(plan), call=_keep, ok=[0])
        if plan.problems:
            raise RuntimeError(f"no program can be kept: {plan.problems}")
        (plan.here / "top").rename(plan.made / f"top-{name}")
    (plan.made / "own.so").chmod(0o700)


def _env(ground: Ground) -> Callable[[], None]:
    def before() -> None:
        os.environ["PIPE_CACHE"] = str(ground.here / "top" / "cache")
        if not (ground.here / "own.so").exists():
            shutil.copy2(ground.made / "own.so", ground.here / "own.so")

    return before


def _keep() -> None:
    from pipeline.compile import cache as storage
    from pipeline.compile.backends.library import Library

    storage.keep(Library(ctypes.CDLL(os.path.abspath("own.so")), "run", (), ()), IDENTITY, "step", "batch", 1)


def _find() -> None:
    from pipeline.compile import cache as storage

    found = storage.find(IDENTITY)
    if found is not None:
        try:
            found.load()
        except OSError as e:
            print(f"not loaded: {e}")
            return
    print("found" if found else "none")


def _attack(command: str, name: str, change: Callable[[Ground, Path], None]) -> Attack:
    return Attack("cache", command, name, partial(_try, command, change))


def _package(ground: Ground, of: str = "own") -> Path:
    shutil.copytree(ground.made / f"top-{of}", ground.here / "top", symlinks=True)
    [package] = [p.parent for p in (ground.here / "top" / "cache").glob("*/package.json")]
    return package


def _try(command: str, change: Callable[[Ground, Path], None], ground: Ground) -> None:
    change(ground, _package(ground))
    _judged(ground, command)


def _judged(ground: Ground, command: str) -> None:
    calls = {"find": _find, "keep": _keep}
    args = (command,) if command in calls else ("cache", command)
    said = ground.pipe(*args, ok=[0, 1, 2], before=_env(ground), call=calls.get(command))
    if command != "clear":
        ground.pipe("find", before=_env(ground), call=_find)
    if (ground.here / "RAN").exists():
        ground.fault("ran", "a stranger's program was loaded", said)


def _damage(file: str, change: str, n: int, ground: Ground, package: Path) -> None:
    content = damage.CHANGES[change][1]((package / file).read_bytes(), random.Random(f"{file} {change} {n}"))
    (package / file).unlink() if content is None else (package / file).write_bytes(content)


def _swap(file: str, other: str, ground: Ground, package: Path) -> None:
    if other == "gone":
        shutil.rmtree(package)
        package.write_text("")
    else:
        there = ground.made / f"top-{other}" / package.relative_to(ground.here / "top")
        shutil.copy2(there / file, package / file)


def _link(file: str, way: str, ground: Ground, package: Path) -> None:
    path = Path(os.path.normpath(package / file))
    if path.exists():
        path.rename(ground.beside / "before")
    links.WAYS[way](path, ground)


def _foreign(ground: Ground, package: Path, file: str) -> Path:
    """A package of a stranger's that is whole, at the same key."""
    shutil.rmtree(ground.here / "top")
    return Path(os.path.normpath(_package(ground, "stranger") / file))


def _open(file: str, mode: int, ground: Ground, package: Path) -> None:
    _foreign(ground, package, file).chmod(mode)


def _owned(file: str, ground: Ground, package: Path) -> None:
    os.chown(_foreign(ground, package, file), links.NOBODY, links.NOBODY)


def _fault(fault: Fault, ground: Ground) -> None:
    ground.pipe("keep", before=_env(ground), call=_keep, fault=fault, ok=[0])
    ground.pipe("find", before=_env(ground), call=_find, ok=[0])
    ground.pipe("keep", before=_env(ground), call=_keep, ok=[0])
    said = ground.pipe("find", before=_env(ground), call=_find, ok=[0])
    if said.code == 0 and "found" not in said.out:
        ground.fault("lost", "nothing is kept any more", said)
