"""The n-th call on a file fails, for every command: afterwards the same command does what it would have done."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

from tests.attack import made
from tests.attack.ground import (
    CALLS,
    CREATE,
    CUT,
    LINK,
    MAKE,
    OPEN,
    PART,
    READ,
    REMOVE,
    RENAME,
    SYNC,
    WRITE,
    Attack,
    Fault,
    Ground,
    Said,
)

ERRORS = {
    OPEN: (errno.EIO, errno.EACCES, errno.EMFILE),
    CREATE: (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EMFILE),
    READ: (errno.EIO,),
    WRITE: (errno.ENOSPC, errno.EIO),
    SYNC: (errno.EIO, errno.ENOSPC),
    RENAME: (errno.EIO, errno.EACCES),
    MAKE: (errno.ENOSPC, errno.EROFS),
    REMOVE: (errno.EIO, errno.EACCES),
    LINK: (errno.EIO, errno.EPERM),
    CUT: (errno.EIO,),
}
TRAIN = ("run", "ensemble", "sweep", "folds", "table")
OTHER = {
    "show": ("show", "--data", "table.csv"),
    "init": ("init", "table.csv", "--out", "out.toml"),
    "bench": ("bench", "--data", "table.csv", "--no-compile", "--seconds", "0.05", "--json"),
    "predict csv": ("predict", "table", "--data", "table.csv", "--out", "out.csv"),
    "predict parquet": ("predict", "run", "--data", "rows.npz", "--out", "out.parquet"),
    "predict npz": ("predict", "run", "--data", "rows.npz", "--out", "out.npz"),
}


def attacks(plan: Ground) -> Iterator[Attack]:
    for name in TRAIN:
        yield from _each(plan, f"train {name}", name, None, made.start(name))
        if name != "folds":
            yield from _each(plan, f"resume {name}", name, f"{name}-half", made.goon(name))
    for name in ("run", "sweep"):
        for word, args in made.commands(name).items():
            if word not in ("train again", "resume", "sweep on", "eval last"):
                yield from _each(plan, f"{word} of a {name}", None, name, args)
    for word, args in OTHER.items():
        name = args[1] if args[0] == "predict" else None
        yield from _each(plan, word, None, name, args)


def _prepare(ground: Ground, folder: str | None, args: tuple[str, ...]) -> None:
    made.data(ground)
    if folder:
        ground.copy(folder, "o" if "--resume" in args else None)


def _each(plan: Ground, word: str, run: str | None, folder: str | None, args: tuple[str, ...]) -> Iterator[Attack]:
    def count(ground: Ground) -> list[int]:
        _prepare(ground, folder, args)
        return ground.pipe(*args, ok=[0], fault=Fault()).calls

    for kind, number in enumerate(plan.once((word, "calls"), count)):
        for n in range(1, number + 1):
            for error in ERRORS[kind]:
                for lasting in (False, True):
                    fault = Fault((kind,), n, error, PART if lasting and kind == WRITE else 0, lasting)
                    name = f"{CALLS[kind]} {n}{' and all after' if lasting else ''}: {errno.errorcode[error]}"
                    yield Attack("faults", word, name, partial(_try, run, folder, args, fault))


def _try(run: str | None, folder: str | None, args: tuple[str, ...], fault: Fault, ground: Ground) -> None:
    _prepare(ground, folder, args)
    said = ground.pipe(*args, fault=fault)
    if run is not None:
        settle(ground, run, said)
        return
    wanted = ground.once((args, "result"), partial(_whole, folder, args))
    told = said.err.strip() or os.strerror(fault.error) in said.out
    if said.code == 0 and not (same(args, made.result(ground, said), wanted) or told):
        ground.fault("wrong", f"exit 0, and another result: {differ(made.result(ground, said), wanted)}", said)
    if said.code == 2:
        parts = [p.name for p in ground.here.glob("out*") if p.suffix != ".json"]
        if parts and not all(
            result == wanted.get(name) for name, result in made.result(ground, said).items() if name in parts
        ):
            ground.fault("wrong", f"exit 2, and a part is left: {parts}", said)
        for path in ground.here.glob("out*"):
            path.unlink()
        again = ground.pipe(*args)
        if not same(args, made.result(ground, again), wanted):
            ground.fault("lost", f"afterwards without a fault: {differ(made.result(ground, again), wanted)}", again)
    if found := made.left(ground.here):
        ground.fault("left", f"left behind: {found}", said)


def _whole(folder: str | None, args: tuple[str, ...], ground: Ground) -> dict[str, Any]:
    _prepare(ground, folder, args)
    return made.result(ground, ground.pipe(*args, ok=[0]))


def same(args: tuple[str, ...], found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return set(found) == set(wanted) if args[0] == "bench" else found == wanted


def differ(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    names = [k for k in {**wanted, **found} if found.get(k) != wanted.get(k)]
    return ", ".join(f"{k} was {str(wanted.get(k))[:80]!r}, is {str(found.get(k))[:80]!r}" for k in names)


def settle(ground: Ground, run: str, said: Said | None) -> None:
    """Go on with the run in `o`, until it is done, and compare its end with that of the run never stopped."""
    folder = ground.here / "o"
    if run == "folds":  # which has no --resume: each of its runs has
        wanted = ground.once((run, "end"), partial(_end, run))
        for fold in (p for p in folder.glob("fold-*") if (p / "config.toml").exists()):
            again = ground.pipe(*made.goon(run, f"o/{fold.name}"))
            if again.code or made.end(fold) != wanted[fold.name]:
                ground.fault("lost", f"{fold.name} ends otherwise than the run that was never stopped", again)
        return
    if said is None or said.code != 0:
        said = ground.pipe(*(made.goon(run) if (folder / "config.toml").exists() else made.start(run)))
    if said.code != 0:
        ground.fault("lost", "it can't go on", said)
        return
    wanted = ground.once((run, "end"), partial(_end, run))
    try:
        found = made.end(folder)
    except (OSError, ValueError, KeyError) as e:
        ground.fault("lost", f"what it left can't be read: {type(e).__name__}: {e}", said)
        return
    if found != wanted:
        ground.fault("lost", "it ended with other bits than the run that was never stopped", said)
    if made.left(folder) and ground.pipe(*made.goon(run)) and (found := made.left(folder)):
        ground.fault("left", f"left behind by this and what came after: {found}", said)


def _end(run: str, ground: Ground) -> Any:
    ground.copy(run, "o")
    return made.end(ground.here / "o")
