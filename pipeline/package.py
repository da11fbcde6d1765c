"""Packages: compiled programs on disk, so that a step once compiled starts at once in the next process.

A package is a folder `<key>/` with the library and `package.json`, which says what it was made from, for which machine, and
a checksum of both. The key is a hash of all of that. What does not fit, is damaged, or could have been written by somebody
else is never loaded.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from attrs import asdict, evolve, frozen

from pipeline.native import Native, Output

FACTS = "package.json"
_LIBRARY, _MAKING = "step.so", ".making-"
_NAME = re.compile(r"[0-9a-f]{32}|\.making-.+")


@frozen
class Package:
    """A folder in the cache."""

    path: Path
    identity: Mapping[str, Any]
    program: str
    batch: str
    operations: int
    checksum: str
    outputs: tuple[Output, ...]

    def load(self) -> Native:
        return Native(self.path / _LIBRARY, self.outputs)

    def fault(self) -> str | None:
        """Why it can't be used, if so."""
        for path in (self.path, self.path / _LIBRARY, self.path / FACTS):
            try:
                status = path.stat()
            except OSError as e:
                return f"{path.name}: {e.strerror}"
            if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return f"{path.name} could have been written by somebody else"
        try:
            current = _checksum(self.path / _LIBRARY, _described(self))
        except OSError as e:
            return f"{_LIBRARY}: {e.strerror}"
        if current != self.checksum:
            return f"{_LIBRARY} or {FACTS} is damaged: their checksum is another"
        return None


def folder() -> Path:
    """Where packages are kept: $PIPE_CACHE, or pipe-train in the user's cache folder."""
    own = os.environ.get("PIPE_CACHE")
    if own:
        return Path(os.path.abspath(os.path.expanduser(own)))
    try:
        return Path(os.path.abspath(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"), "pipe-train")
    except RuntimeError:  # a user without a home
        return Path(tempfile.gettempdir(), f"pipe-train-{os.getuid()}")


def find(identity: Mapping[str, Any]) -> Package | None:
    """The package made from just this, on a machine like this one; one with a fault is removed."""
    path = folder() / _key(identity)
    package = _read(path)
    if package is None or package.fault() or package.identity != identity:
        _remove(path)
        return None
    return package


def make(identity: Mapping[str, Any] | None, build: Callable[[Path], Path], **facts: Any) -> Package:
    """A new package, kept in the cache; only for this process where there is no identity, or no folder to write to."""
    work = _workplace(identity)
    kept = identity is not None and work.parent == folder()
    try:
        library = build(work)
        if library.name != _LIBRARY:
            library = library.rename(work / _LIBRARY)
        library.chmod(0o700)
        package = Package(work, identity or {}, checksum="", **facts)
        package = evolve(package, checksum=_checksum(library, _described(package)))
        if kept:
            (work / FACTS).write_text(json.dumps(_described(package), indent=1), encoding="utf-8")
            (work / FACTS).chmod(0o600)
    except OSError:
        _remove(work)
        if not kept:
            raise
        return make(None, build, **facts)  # a cache that can't be written is none
    except BaseException:
        _remove(work)
        raise
    if kept and identity is not None:
        with suppress(OSError):  # another process was faster, or something else is there
            work.rename(folder() / _key(identity))
        found = find(identity)
        if found is not None:
            if work.exists():
                _remove(work)
            return found
        if not work.exists():  # what is written there never passes, as where all may write to all files
            return make(None, build, **facts)
    atexit.register(_remove, work)
    return package


def packages() -> Iterator[Package]:
    """What is in the cache and can be read."""
    for path in folders():
        package = _read(path)
        if package is not None and finished(path):
            yield package


def folders() -> list[Path]:
    """The cache's folders, whole or broken; it may have been put where there are others, which are not looked at."""
    try:
        return sorted(path for path in folder().iterdir() if _NAME.fullmatch(path.name) and path.is_dir())
    except OSError:
        return []


def finished(path: Path) -> bool:
    """Whether a folder of the cache is a package, not the beginnings of one."""
    return not path.name.startswith(_MAKING)


def clear() -> int:
    """Remove all packages, whole or broken; how many there were. What else is in the folder stays."""
    found = folders()
    for path in found:
        _remove(path)
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


def _checksum(library: Path, described: Mapping[str, Any]) -> str:
    whole = hashlib.sha256(library.read_bytes())
    whole.update(json.dumps({**described, "checksum": None}, sort_keys=True).encode())
    return whole.hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _workplace(identity: Mapping[str, Any] | None) -> Path:
    if identity is not None:
        try:
            folder().mkdir(parents=True, exist_ok=True, mode=0o700)
            return Path(tempfile.mkdtemp(prefix=_MAKING, dir=folder()))
        except OSError:
            pass  # a cache that can't be written is none
    return Path(tempfile.mkdtemp(prefix="pipe-train-"))


def _described(package: Package) -> dict[str, Any]:
    """A package as JSON."""
    outputs = [{"name": o.name, "shape": list(o.shape), "dtype": str(o.dtype)[6:]} for o in package.outputs]
    return {**asdict(package, recurse=False), "path": None, "outputs": outputs}


def _read(path: Path) -> Package | None:
    try:
        facts = json.loads((path / FACTS).read_text(encoding="utf-8"))
        made = tuple(Output(o["name"], tuple(o["shape"]), getattr(torch, o["dtype"])) for o in facts.pop("outputs"))
        package = Package(**{**facts, "path": path, "outputs": made})
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    sized = all(isinstance(o.dtype, torch.dtype) and all(type(n) is int for n in o.shape) for o in made)
    return package if sized and isinstance(package.identity, dict) else None
