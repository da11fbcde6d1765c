"""Packages: compiled programs on disk, so that a step once compiled starts at once in the next process.

A package is a folder `<key>/` with the library and `package.json`, which says what it was made from, for which machine, and
the library's checksum. The key is a hash of all of that. What does not fit, is damaged, or could have been written by somebody
else is never loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from attrs import asdict, frozen

from pipeline.native import Native, Output

_FACTS, _LIBRARY = "package.json", "step.so"


@frozen
class Package:
    """A folder in the cache."""

    path: Path
    identity: Mapping[str, Any]
    program: str
    batch: str
    operations: int
    seconds: float
    """What it took to make."""
    checksum: str
    outputs: tuple[Output, ...]

    @property
    def size(self) -> int:
        """In bytes."""
        return (self.path / _LIBRARY).stat().st_size

    def load(self) -> Native:
        return Native(self.path / _LIBRARY, self.outputs)

    def fault(self) -> str | None:
        """Why it can't be used, if so."""
        for path in (self.path, self.path / _LIBRARY, self.path / _FACTS):
            try:
                status = path.stat()
            except OSError as e:
                return f"{path.name}: {e.strerror}"
            if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return f"{path.name} could have been written by somebody else"
        if _checksum(self.path / _LIBRARY) != self.checksum:
            return f"{_LIBRARY} is damaged: its checksum is another"
        return None


def folder() -> Path:
    """Where packages are kept: $PIPE_CACHE, or pipe-train in the user's cache folder."""
    own = os.environ.get("PIPE_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pipe-train"


def find(identity: Mapping[str, Any]) -> Package | None:
    """The package made from just this, on a machine like this one; one with a fault is removed."""
    path = folder() / _key(identity)
    package = _read(path)
    if package is None or package.fault() or package.identity != identity:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        return None
    return package


def make(identity: Mapping[str, Any] | None, build: Callable[[Path], Path], **facts: Any) -> Package:
    """A new package, kept in the cache; only for this process where there is no identity, or no folder to write to."""
    work = _workplace(identity)
    library = build(work)
    if library.name != _LIBRARY:
        library = library.rename(work / _LIBRARY)
    library.chmod(0o700)
    package = Package(work, identity or {}, checksum=_checksum(library), **facts)
    if identity is None or work.parent != folder():
        return package
    described = {**asdict(package), "path": None, "outputs": [_written(o) for o in package.outputs]}
    (work / _FACTS).write_text(json.dumps(described, indent=1), encoding="utf-8")
    (work / _FACTS).chmod(0o600)
    place = folder() / _key(identity)
    try:
        work.rename(place)
    except OSError:  # another process was faster
        shutil.rmtree(work, ignore_errors=True)
    return find(identity) or make(None, build, **facts)


def packages() -> Iterator[Package]:
    """What is in the cache and can be read."""
    for path in sorted(folder().glob("*")) if folder().is_dir() else ():
        package = _read(path)
        if package is not None:
            yield package


def clear() -> int:
    """Remove all packages, whole or broken; how many there were."""
    found = [path for path in folder().glob("*") if path.is_dir()] if folder().is_dir() else []
    for path in found:
        shutil.rmtree(path, ignore_errors=True)
    return len(found)


@cache
def machine() -> Mapping[str, Any]:
    """What compiled code depends on besides the pipeline: versions, this library's own code, and the processor."""
    try:
        described = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
        keep = ("vendor_id", "model name", "flags", "Features")
        processor = "\n".join(line for line in described if line.startswith(keep))
    except OSError:
        processor = platform.processor()
    own = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        own.update(path.read_bytes())
    return {
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "processor": hashlib.sha256(processor.encode()).hexdigest()[:16],
        "pipeline": own.hexdigest()[:16],
    }


def _key(identity: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _workplace(identity: Mapping[str, Any] | None) -> Path:
    if identity is not None:
        try:
            folder().mkdir(parents=True, exist_ok=True, mode=0o700)
            return Path(tempfile.mkdtemp(prefix=".making-", dir=folder()))
        except OSError:
            pass  # a cache that can't be written is none
    return Path(tempfile.mkdtemp(prefix="pipe-train-"))


def _written(o: Output) -> dict[str, Any]:
    return {"name": o.name, "shape": list(o.shape), "dtype": str(o.dtype).removeprefix("torch.")}


def _read(path: Path) -> Package | None:
    try:
        facts = json.loads((path / _FACTS).read_text(encoding="utf-8"))
        made = tuple(Output(o["name"], tuple(o["shape"]), getattr(torch, o["dtype"])) for o in facts.pop("outputs"))
        return Package(**{**facts, "path": path, "outputs": made})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
