"""The process is killed at the n-th call that changes the disk, or the power goes: the run ends as it would have."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.attack import made
from tests.attack.faults import TRAIN, _prepare, _whole, differ, settle
from tests.attack.ground import KILL, PART, WRITE, Attack, Fault, Ground
from tests.attack.made import CHANGES

WAYS = ("kill", "half a write, then kill", "power: all", "power: data", "power: names")
AFTER = {
    "predict csv": ("run", ("predict", "run", "--data", "rows.npz", "--out", "out.csv")),
    "predict parquet": ("run", ("predict", "run", "--data", "rows.npz", "--out", "out.parquet")),
    "predict npz": ("run", ("predict", "run", "--data", "rows.npz", "--out", "out.npz")),
    "export": ("run", ("export", "run", "--format", "weights", "--out", "out.safetensors")),
    "report": ("run", ("report", "run", "--out", "out.html")),
    "plot": ("run", ("plot", "run", "--out", "out.svg")),
}


def attacks(plan: Ground) -> Iterator[Attack]:
    for name in TRAIN:
        for word, folder, args in (
            (f"train {name}", None, made.start(name)),
            (f"resume {name}", f"{name}-half", made.goon(name)),
        )[: 1 if name == "folds" else 2]:
            for n in _numbers(plan, word, folder, args):
                for way in WAYS:
                    yield Attack("kills", word, f"{way} at change {n}", partial(_train, name, folder, args, n, way))
    for word, (folder, args) in AFTER.items():
        for n in _numbers(plan, word, folder, args):
            for way in WAYS[:3]:
                yield Attack("kills", word, f"{way} at change {n}", partial(_after, folder, args, n, way))


def _numbers(plan: Ground, word: str, folder: str | None, args: tuple[str, ...]) -> range:
    def count(ground: Ground) -> list[int]:
        _prepare(ground, folder, args)
        return ground.pipe(*args, ok=[0], fault=Fault()).calls

    calls = plan.once((word, "calls"), count)
    return range(1, sum(calls[kind] for kind in CHANGES) + 1)


def _train(run: str, folder: str | None, args: tuple[str, ...], n: int, way: str, ground: Ground) -> None:
    _prepare(ground, folder, args)
    _stop(ground, args, n, way)
    settle(ground, run, None)


def _stop(ground: Ground, args: tuple[str, ...], n: int, way: str) -> None:
    if way.startswith("half"):  # what is written of the n-th is a part, and then the disk is full for ever
        ground.pipe(*args, fault=Fault((WRITE,), n, errno.ENOSPC, PART, lasting=True))
        return
    ground.pipe(*args, fault=Fault(CHANGES, n, action=KILL, journal=way.startswith("power")))
    if way.startswith("power"):
        cut(ground, way.partition(": ")[2])


def _after(folder: str, args: tuple[str, ...], n: int, way: str, ground: Ground) -> None:
    _prepare(ground, folder, args)
    wanted = ground.once((args, "result"), partial(_whole, folder, args))
    _stop(ground, args, n, way)
    name = args[args.index("--out") + 1]
    if (ground.here / name).exists() and made.result(ground, ground.pipe("--version")).get(name) != wanted[name]:
        ground.fault("wrong", f"a part of {name} is left")
    for path in ground.here.glob("out*"):
        path.unlink()
    again = ground.pipe(*args)
    if (found := made.result(ground, again)) != wanted:
        ground.fault("lost", differ(found, wanted), again)
    if left := made.left(ground.here):
        ground.fault("left", f"left behind: {left}", again)


def cut(ground: Ground, what: str) -> None:
    """Take back what is not on the disk: of files what came after their last fsync ("data"), of folders what came
    after theirs ("names"), or both ("all")."""
    steps = [line.split("\t") for line in (ground.beside / "journal").read_text().splitlines()]
    if what != "names":
        _lose_data(ground.beside, steps)
    if what != "data":
        _lose_names(ground.beside, steps)


def _lose_data(kept: Path, steps: list[list[str]]) -> None:
    state: dict[str, tuple[int, str | None, bool]] = {}  # by name: size on the disk, copy of before, written since
    for kind, path, other, number in steps:
        if kind == "create":
            state[path] = 0, None, True
        elif kind == "change":
            state.setdefault(path, (-1, number, False))
        elif kind == "write":
            size, copy, _ = state.get(path, (0, None, True))
            state[path] = size, copy, True
        elif kind == "sync":
            state[path] = int(number), None, False
        elif kind == "rename":
            for name in [n for n in state if n == path or n.startswith(path + "/")]:
                state[other + name[len(path) :]] = state.pop(name)
        elif kind in ("remove", "rmdir"):
            state.pop(path, None)
    for path, (size, copy, dirty) in state.items():
        if dirty and os.path.isfile(path) and not os.path.islink(path):
            if copy is not None:
                shutil.copyfile(kept / copy, path)
            else:
                os.truncate(path, min(size, os.path.getsize(path)))


def _lose_names(kept: Path, steps: list[list[str]]) -> None:
    pending: list[list[str]] = []
    for step in steps:
        kind, path, other, _ = step
        if kind == "names":
            pending = [s for s in pending if path not in (os.path.dirname(s[1]), os.path.dirname(s[2]))]
        elif kind in ("create", "make", "rename", "remove"):
            pending.append(step)
    for kind, path, other, number in reversed(pending):
        if kind == "create" and os.path.lexists(path) and not os.path.isdir(path):
            os.unlink(path)
        elif kind == "make":
            shutil.rmtree(path, ignore_errors=True)
        elif kind == "rename" and os.path.lexists(other):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.rename(other, path)
            if number != "0":
                shutil.copyfile(kept / number, other)
        elif kind == "remove" and number != "0" and os.path.isdir(os.path.dirname(path)):
            shutil.copyfile(kept / number, path)
