"""Storage: compiled programs on disk, so that a step once compiled starts at once in the next process.

A package is a folder `<key>/` with the library and `package.json`, which says what it was made from, for which machine,
and a checksum of both. The key is a hash of all of that. What does not fit, is damaged, or could have been written by
somebody else is never loaded.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from attrs import asdict, frozen

from pipeline import files
from pipeline.compile.backends.library import Library
from pipeline.compile.backends.program import Output

FACTS = "package.json"
MEASURED = "measured.json"
"""Beside the packages, what the command found to be fastest: members of a sweep at once, and the device."""
INDUCTOR = "inductor"
"""Beside the packages, what Inductor and Triton keep for themselves."""
_LIBRARY = "step.so"
_NAME = re.compile(rf"[0-9a-f]{{32}}|{re.escape(files.MAKING)}.+")


@frozen
class Package:
    """A folder in the cache."""

    path: Path
    identity: Mapping[str, Any]
    program: str
    batch: str
    operations: int
    entry: str
    inputs: tuple[int, ...]
    outputs: tuple[Output, ...]
    checksum: str
    model: str = ""
    """What it was first made for, in words."""

    def load(self) -> Library:
        """Raises OSError where nothing may be run from the folder."""
        return Library(self.path / _LIBRARY, self.entry, self.inputs, self.outputs)

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


def keep_compiler_caches() -> None:
    """Let Inductor keep its programs, and Triton its kernels, in a folder here, where the user named none."""
    kept, named = folder() / INDUCTOR, os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    # torch writes its own choice there when it imports its compilers.
    if named is None or named.startswith(os.path.join(tempfile.gettempdir(), "torchinductor_")):
        with suppress(OSError):  # one that can't be written is no harm: theirs is elsewhere then
            kept.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(kept)


def find(identity: Mapping[str, Any]) -> Package | None:
    """The package made from just this, on a machine like this one; one with a fault is removed."""
    path = folder() / _key(identity)
    package = _read(path)
    if package is None or package.fault() or package.identity != identity:
        _remove(path)
        return None
    return package


def keep(
    library: Library, identity: Mapping[str, Any], program: str, batch: str, operations: int, model: str = ""
) -> Package | None:
    """Keep a program in the cache; None where that can't be written, which is no harm."""
    path = folder() / _key(identity)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with files.making(path, 0o700) as work:
            shutil.copyfile(library.path, work / _LIBRARY)
            (work / _LIBRARY).chmod(0o700)
            facts = (work, identity, program, batch, operations, library.entry, library.inputs, library.outputs)
            described = _described(Package(*facts, checksum="", model=model))
            described["checksum"] = _checksum(work / _LIBRARY, described)
            (work / FACTS).write_text(json.dumps(described, indent=1), encoding="utf-8")
            (work / FACTS).chmod(0o600)
            with suppress(OSError):  # another process was faster, or something else is there
                work.rename(path)
        return find(identity)
    except OSError:
        return None


def packages() -> Iterator[Package]:
    """What is in the cache and can be read."""
    yield from filter(None, (_read(path) for path in folders() if finished(path)))


def folders() -> list[Path]:
    """The cache's folders, whole or broken; it may have been put where there are others, which are not looked at."""
    try:
        return sorted(path for path in folder().iterdir() if _NAME.fullmatch(path.name) and path.is_dir())
    except OSError:
        return []


def finished(path: Path) -> bool:
    """Whether a folder of the cache is a package, not the beginnings of one."""
    return not path.name.startswith(files.MAKING)


def clear() -> int:
    """Remove all packages, whole or broken; how many there were. What else is in the folder stays."""
    found = folders()
    for path in (*found, folder() / MEASURED, folder() / INDUCTOR):
        _remove(path)
    return len(found)


def _key(identity: Mapping[str, Any]) -> str:
    return files.checksum(identity)[:32]


def _checksum(library: Path, described: Mapping[str, Any]) -> str:
    return files.checksum({**described, "library": files.sha256(library)})


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _described(package: Package) -> dict[str, Any]:
    """A package as JSON."""
    outputs = [{"name": o.name, "shape": list(o.shape), "dtype": str(o.dtype)[6:]} for o in package.outputs]
    made = {**asdict(package, recurse=False), "path": None, "inputs": list(package.inputs), "outputs": outputs}
    return {k: v for k, v in made.items() if k != "model" or v}  # older packages say none


def _read(path: Path) -> Package | None:
    try:
        facts = json.loads((path / FACTS).read_text(encoding="utf-8"))
        made = tuple(Output(o["name"], tuple(o["shape"]), getattr(torch, o["dtype"])) for o in facts.pop("outputs"))
        package = Package(**{**facts, "path": path, "inputs": tuple(facts["inputs"]), "outputs": made})
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    numbers = all(type(n) is int for n in (*package.inputs, *(n for o in made for n in o.shape)))
    words = all(isinstance(text, str) for text in (package.entry, package.model))
    fits = numbers and words and all(isinstance(o.dtype, torch.dtype) for o in made)
    return package if fits and isinstance(package.identity, dict) else None
