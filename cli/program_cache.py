"""List, verify or clear the compiled programs on disk."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Console
from rich.table import Table

from cli.progress import plain
from cli.recipes.setting import refusal
from pipeline import memory
from pipeline.compile import cache
from pipeline.compile.cache import Package

Packages: TypeAlias = dict[Path, Package | None]
"""The cache's folders, and the package in each; None if it can't be read."""


def run(action: str) -> dict[str, Any]:
    """Do an action on the packages; returns what it found."""
    actions = {"list": show, "verify": verify, "clear": clear}
    say = plain(False)
    packages = read()
    if (why := cache.refusal()) and action != "clear":
        say.print(f"programs are neither kept here nor loaded: {why}")
    if not packages and not size(cache.folder() / cache.INDUCTOR):
        say.print(f"no packages in {cache.folder()}")
    found = actions[action](say, packages) if packages or size(cache.folder() / cache.INDUCTOR) else {"packages": []}
    return {"action": action, "folder": str(cache.folder()), "refusal": why, **found}


def read() -> Packages:
    readable = {p.path: p for p in cache.packages()}
    return {path: readable.get(path) for path in cache.folders()}


def size(path: Path) -> int:
    """The bytes in a folder."""
    return 0 if path.is_symlink() else sum(file.lstat().st_size for file in path.rglob("*") if file.is_file())


def show(say: Console, packages: Packages) -> dict[str, Any]:
    """Print a table of the packages."""
    table = Table("program", "operations", "size", "made", "torch", "model", "batch", box=None, pad_edge=False)
    table.columns[1].justify = table.columns[2].justify = "right"
    for column in table.columns:
        column.no_wrap = True
    facts: list[dict[str, Any]] = []
    for path, p in packages.items():
        if p is None:
            continue
        date = time.strftime("%Y-%m-%d %H:%M", time.localtime((path / cache.FACTS).stat().st_mtime))
        torch = p.identity.get("torch", "?") if isinstance(p.identity, dict) else "?"
        used = size(path)
        table.add_row(str(p.program), str(p.operations), memory.size(used), date, str(torch), p.model, str(p.batch))
        facts.append({"name": path.name, "program": str(p.program), "operations": p.operations, "bytes": used,
                      "made": date, "torch": torch, "model": p.model, "batch": str(p.batch)})  # fmt: skip
    say.print(f"{cache.folder()}\n")
    say.width = 1000  # a batch is long
    say.print(table)
    inductor = size(cache.folder() / cache.INDUCTOR)
    beside = f"; {memory.size(inductor)} of Inductor's own" if inductor else ""
    say.print(f"\n{_count(packages)}, {memory.size(sum(map(size, packages)))}{beside}{_broken(packages)}")
    return {"packages": facts, "broken": sum(p is None for p in packages.values()), "inductor_bytes": inductor}


def verify(say: Console, packages: Packages) -> dict[str, Any]:
    """Print whether each package is whole."""
    faults: dict[str, str] = {}
    finished = [path for path in packages if cache.finished(path)]
    for path in finished:
        p = packages[path]
        fault = p.fault() if p else f"{cache.FACTS} can't be read"
        faults |= {} if fault is None else {path.name: fault}
        about = f"ok  {p.program} for {p.batch}" if p else ""
        say.print(f"{path.name[:8]}  {fault or about}")
    if faults:
        say.print(f"{len(faults)} of {len(finished)} at fault; each is rebuilt when it is needed")
    else:
        say.print(f"{_count(packages)}, none at fault{_broken(packages)}")
    return {"ok": not faults, "packages": [path.name for path in finished], "faults": faults}


def clear(say: Console, packages: Packages) -> dict[str, Any]:
    """Remove all packages, and Inductor's cache."""
    total = sum(map(size, (*packages, cache.folder() / cache.INDUCTOR)))
    cache.clear()
    left = read()
    if left:
        raise refusal(f"can't remove {next(iter(left))}; {len(packages) - len(left)} others are removed")
    say.print(f"removed {len(packages)} packages, {memory.size(total)}, from {cache.folder()}")
    return {"packages": [path.name for path in packages], "bytes": total}


def _count(packages: Packages) -> str:
    number = sum(p is not None for p in packages.values())
    return f"{number} package{'' if number == 1 else 's'}"


def _broken(packages: Packages) -> str:
    number = sum(p is None for p in packages.values())
    return f"; {number} unfinished or broken: see pipe cache verify" if number else ""
