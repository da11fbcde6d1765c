"""One bit, a digit, a stretch or all of a file is another: the numbers stay, or a line names the file."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.attack import made
from tests.attack.faults import differ
from tests.attack.ground import Attack, Ground

Change = Callable[[bytes, random.Random], bytes | None]


def _bit(content: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :]


def _digit(content: bytes, chance: random.Random) -> bytes:
    at = chance.choice([m.start() for m in re.finditer(rb"\d", content)] or [0])
    return content[:at] + str((content[at] - 48 + chance.randrange(1, 10)) % 10).encode() + content[at + 1 :]


def _cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content))]


def _zeros(content: bytes, chance: random.Random) -> bytes:
    at, size = chance.randrange(len(content)), chance.choice((4, 64, 512))
    return content[:at] + bytes(len(content[at : at + size])) + content[at + size :]


def _twice(content: bytes, chance: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    at = chance.randrange(len(lines))
    return b"".join([*lines[: at + 1], *lines[at:]])


def _line_less(content: bytes, chance: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    del lines[chance.randrange(len(lines))]
    return b"".join(lines)


def _longer(content: bytes, chance: random.Random) -> bytes:
    return content + chance.randbytes(64)


CHANGES: dict[str, tuple[int, Change]] = {
    "a bit": (5, _bit),
    "a digit": (5, _digit),
    "cut short": (3, _cut),
    "a stretch of zeros": (2, _zeros),
    "emptied": (1, lambda content, chance: b""),
    "removed": (1, lambda content, chance: None),
    "a line twice": (2, _twice),
    "a line less": (2, _line_less),
    "longer": (1, _longer),
}
"""By name, how often, and how."""
TEXTS = ("digit", "line")
RUNS = ("run", "ensemble", "sweep", "folds", "table", "text")


def attacks(plan: Ground) -> Iterator[Attack]:
    for name in RUNS:
        for path in sorted((plan.made / name).rglob("*")):
            file = str(path.relative_to(plan.made / name))
            if path.is_symlink() or not path.is_file() or path.name in (".lock", "curves.svg", "sweep.svg"):
                continue
            if path.is_relative_to(plan.made / name / "best") or not path.stat().st_size:
                continue
            for word, args in made.commands(name).items():
                for change, (times, _) in CHANGES.items():
                    if path.suffix == ".safetensors" and any(text in change for text in TEXTS):
                        continue
                    for n in range(times):
                        what = f"{name}/{file}: {change} {n}"
                        yield Attack("damage", word, what, partial(_try, name, file, change, what, args))
                if (plan.made / f"{name}-1" / file).exists():
                    what = f"{name}/{file}: of another run"
                    yield Attack("damage", word, what, partial(_try, name, file, None, what, args))


def _try(name: str, file: str, change: str | None, what: str, args: tuple[str, ...], ground: Ground) -> None:
    wanted = made.whole(ground, name, args)
    made.data(ground)
    path = ground.copy(name) / file
    if change is None:
        content: bytes | None = (ground.made / f"{name}-1" / file).read_bytes()
    else:
        content = CHANGES[change][1](path.read_bytes(), random.Random(what))
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    judge(ground, args, path, wanted)


def judge(ground: Ground, args: tuple[str, ...], path: Path, wanted: dict[str, object]) -> None:
    """The numbers are those of the run as it was, or a line names the file."""
    said = ground.pipe(*args)
    names = {path.name, path.parent.name} if path.parent.parent.name == "checkpoints" else {path.name}
    told = any(name in said.err + (said.out if args[0] == "runs" else "") for name in names)
    if said.code == 2 and not told:
        ground.fault("unnamed", f"refused without a word of {path.name}", said)
    if said.code == 0 and not told:
        try:
            found = made.result(ground, said)
        except (OSError, ValueError, KeyError) as e:
            ground.fault("wrong", f"exit 0, and what it made can't be read: {type(e).__name__}: {e}", said)
            return
        if found != wanted:
            ground.fault("wrong", f"exit 0, no word of {path.name}, and {differ(found, wanted)}", said)
