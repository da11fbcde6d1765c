"""`pipe cache`: the compiled programs on disk."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cli.progress import plain
from cli.recipes.setting import refusal
from pipeline.compile import cache as storage
from pipeline.compile.cache import Package

ACTIONS = ("list", "verify", "clear")


def run(action: str) -> None:
    """List the packages, check them, or remove them."""
    if action not in ACTIONS:
        raise refusal(f"unknown action {action!r}", action, ACTIONS)
    say = plain(False)
    found = folders()
    if action != "clear" and (why := storage.refusal()):
        say.print(f"programs are neither kept here nor loaded: {why}")
    if not found and not size(storage.folder() / storage.INDUCTOR):
        say.print(f"no packages in {storage.folder()}")
        return
    {"list": show, "verify": verify, "clear": clear}[action](say, found)


def folders() -> dict[Path, Package | None]:
    """The cache's folders, with the package that each holds."""
    packages = {p.path: p for p in storage.packages()}
    return {path: packages.get(path) for path in storage.folders()}


def fault(path: Path, found: Package | None) -> str | None:
    """Why a folder's package can't be used, if so."""
    if found is None:
        return f"{storage.FACTS} can't be read"
    return found.fault()


def size(path: Path) -> int:
    """The bytes in a folder."""
    return 0 if path.is_symlink() else sum(file.lstat().st_size for file in path.rglob("*") if file.is_file())


def show(say: Console, found: dict[Path, Package | None]) -> None:
    table = Table("program", "operations", "size", "made", "torch", "model", "batch", box=None, pad_edge=False)
    table.columns[1].justify = table.columns[2].justify = "right"
    for column in table.columns:
        column.no_wrap = True
    for path, p in found.items():
        if p is None:
            continue
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime((path / storage.FACTS).stat().st_mtime))
        torch = p.identity.get("torch", "?") if isinstance(p.identity, dict) else "?"
        table.add_row(str(p.program), str(p.operations), _bytes(size(path)), made, str(torch), p.model, str(p.batch))
    say.print(f"{storage.folder()}\n")
    say.width = 1000  # a batch is long, and not cut
    say.print(table)
    own = size(storage.folder() / storage.INDUCTOR)
    beside = f"; {_bytes(own)} of Inductor's own" if own else ""
    say.print(f"\n{_count(found)}, {_bytes(sum(map(size, found)))}{beside}{_others(found)}")


def verify(say: Console, found: dict[Path, Package | None]) -> None:
    whole = [path for path in found if storage.finished(path)]
    faults = {path: reason for path in whole if (reason := fault(path, found[path]))}
    for path in whole:
        p, reason = found[path], faults.get(path)
        words = f"  {p.program} for {p.batch}" if p else ""
        say.print(f"{path.name[:8]}  {reason or 'ok'}{'' if reason else words}")
    if faults:
        say.print(f"{len(faults)} of {len(whole)} at fault; each is rebuilt when it is needed")
        sys.exit(1)
    say.print(f"{_count(found)}, none at fault{_others(found)}")


def clear(say: Console, found: dict[Path, Package | None]) -> None:
    total = sum(map(size, (*found, storage.folder() / storage.INDUCTOR)))
    storage.clear()
    left = folders()
    if left:
        raise refusal(f"can't remove {next(iter(left))} and what is in it; {len(found) - len(left)} others are removed")
    say.print(f"removed {len(found)} packages, {_bytes(total)}, from {storage.folder()}")


def _count(found: dict[Path, Package | None]) -> str:
    number = sum(p is not None for p in found.values())
    return f"{number} package{'' if number == 1 else 's'}"


def _others(found: dict[Path, Package | None]) -> str:
    """In words, the folders without a package that can be read."""
    broken = sum(p is None for p in found.values())
    return f"; {broken} unfinished or broken: see pipe cache verify" if broken else ""


def _bytes(number: int) -> str:
    for unit, power in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= power:
            return f"{number / power:.1f} {unit}"
    return f"{number} bytes"
