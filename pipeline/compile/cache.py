"""Storage: compiled programs on disk, so that a step once compiled starts at once in the next process.

A package is a folder `<key>/` with the library and `package.json`, which says what it was made from, for which machine,
and a checksum of both. The key is a hash of all of that. What does not fit, is damaged, or could have been written by
somebody else is never loaded, and what is loaded is the very bytes that were checked.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache, cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from attrs import asdict, evolve, frozen

from pipeline import files
from pipeline.compile.backends.library import Library, loaded
from pipeline.compile.backends.program import Output

FACTS = "package.json"
MEASURED = "measured.json"
"""Beside the packages, what the command found to be fastest: members of a sweep at once, and the device."""
INDUCTOR = "inductor"
"""Beside the packages, what Inductor and Triton keep for themselves."""
_LIBRARY = "step.so"
_OTHERS = stat.S_IWGRP | stat.S_IWOTH
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
        """Raises OSError where it has a fault, or can't be run here."""
        library = loaded(self.code, f"{self.path.name}-{self.checksum}")
        return Library(library, self.entry, self.inputs, self.outputs)

    @cached_property
    def code(self) -> bytes:
        """The library, read and checked once. Raises OSError where the package has a fault."""
        if why := refusal():
            raise OSError(None, why, str(self.path.parent))
        for path in (self.path, self.path / _LIBRARY, self.path / FACTS):
            status = path.lstat()
            if status.st_uid != os.getuid() or status.st_mode & _OTHERS:
                raise OSError(None, "could have been written by somebody else", str(path))
        code = files.read(self.path / _LIBRARY, links=False)
        if _checksum(code, _described(self)) != self.checksum:
            raise OSError(None, f"it or {FACTS} is damaged: their checksum is another", str(self.path / _LIBRARY))
        return code

    def fault(self) -> str | None:
        """Why it can't be used, if so."""
        try:
            return None if evolve(self).code else "it is empty"  # of a copy, which does not keep it
        except OSError as e:
            return f"{Path(e.filename).name}: {e.strerror}"


def folder() -> Path:
    """Where packages are kept: $PIPE_CACHE, or pipe-train in the user's cache folder."""
    own = os.environ.get("PIPE_CACHE")
    try:
        place = os.path.expanduser(own) if own else os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # a user without a home
        own = place = os.path.join(tempfile.gettempdir(), f"pipe-train-{os.getuid()}")
    return Path(os.path.realpath(place if own else os.path.join(place, "pipe-train")))


def refusal() -> str | None:
    """Why nothing in the cache may be believed, and what to do: others could have put it, or its folder, there."""
    path = folder() / INDUCTOR
    for part in (*reversed(path.parents), path):
        try:
            status = part.lstat()
        except OSError:  # nothing is there
            return None
        inner = part in (path, path.parent)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid not in {os.getuid(), os.getuid() if inner else 0}:
            return f"{part} is another user's, or no folder; set PIPE_CACHE to a folder of your own"
        if status.st_mode & _OTHERS and (inner or not status.st_mode & stat.S_ISVTX):
            return f"others may write into {part}; run chmod go-w {shlex.quote(str(part))}, or set PIPE_CACHE"
    return None


def usable(name: str = "") -> bool:
    """Whether the cache, or a folder in it, may be written into; it is made if it is not there."""
    with suppress(OSError):
        return not refusal() and files.folder(folder() / name, 0o700).is_dir() and not refusal()
    return False


def keep_compiler_caches() -> None:
    """Let Inductor keep its programs, and Triton its kernels, in a folder here, where the user named none: they run
    what they find, and torch's own choice is a name in /tmp that anybody could have taken first."""
    named, theirs = os.environ.get("TORCHINDUCTOR_CACHE_DIR"), os.path.join(tempfile.gettempdir(), "torchinductor_")
    if named is None or named.startswith(theirs):  # torch writes its choice there when it imports its compilers
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder() / INDUCTOR) if usable(INDUCTOR) else _own().name


@cache
def _own() -> tempfile.TemporaryDirectory[str]:
    """A folder for this process."""
    return tempfile.TemporaryDirectory(prefix="pipe-train-")


def find(identity: Mapping[str, Any]) -> Package | None:
    """The package made from just this, on a machine like this one; one with a fault is removed."""
    path = folder() / _key(identity)
    if refusal():
        return None
    package = _read(path)
    with suppress(OSError):
        if package is not None and package.identity == identity and package.code:
            return package
    files.remove(path)
    return None


def keep(
    library: Library, identity: Mapping[str, Any], program: str, batch: str, operations: int, model: str = ""
) -> Package | None:
    """Keep a program in the cache; None where that can't or may not be written, which is no harm."""
    path = folder() / _key(identity)
    try:
        if not usable():
            return None
        code = files.read(Path(library.path))
        with files.making(path, 0o700) as work:
            files.replace(work / _LIBRARY, code, 0o600)
            facts = (work, identity, program, batch, operations, library.entry, library.inputs, library.outputs)
            described = _described(Package(*facts, checksum="", model=model))
            described["checksum"] = _checksum(code, described)
            files.replace(work / FACTS, json.dumps(described, indent=1).encode(), 0o600)
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
        files.remove(path)
    return len(found)


def _key(identity: Mapping[str, Any]) -> str:
    return files.checksum(identity)[:32]


def _checksum(code: bytes, described: Mapping[str, Any]) -> str:
    return files.checksum({**described, "library": sha256(code).hexdigest()})


def _described(package: Package) -> dict[str, Any]:
    """A package as JSON."""
    outputs = [{"name": o.name, "shape": list(o.shape), "dtype": str(o.dtype)[6:]} for o in package.outputs]
    made = {**asdict(package, recurse=False), "path": None, "inputs": list(package.inputs), "outputs": outputs}
    return {k: v for k, v in made.items() if k != "model" or v}  # older packages say none


def _read(path: Path) -> Package | None:
    try:
        facts = {} if path.is_symlink() else json.loads(files.read(path / FACTS, most=16 << 20, links=False))
        made = tuple(Output(o["name"], tuple(o["shape"]), getattr(torch, o["dtype"])) for o in facts.pop("outputs"))
        package = Package(**{**facts, "path": path, "inputs": tuple(facts["inputs"]), "outputs": made})
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    numbers = all(type(n) is int for n in (*package.inputs, *(n for o in made for n in o.shape)))
    words = all(isinstance(text, str) for text in (package.entry, package.model))
    fits = numbers and words and all(isinstance(o.dtype, torch.dtype) for o in made)
    return package if fits and isinstance(package.identity, dict) else None
