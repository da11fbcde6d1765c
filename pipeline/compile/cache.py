"""Cache: compiled programs on disk, so that the next process need not compile.

A package is a folder `<key>/` with a library and `package.json`: the program's identity (its graph, settings and
machine), of which the key is a hash, and a checksum of both files. A package is never loaded if it does not match, is
damaged, or could have been written by another user; exactly the checked bytes are loaded.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import shlex
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from attrs import asdict, evolve, frozen

from pipeline import files
from pipeline.compile.backends.backend import Output
from pipeline.compile.backends.library import Library, loaded

FACTS = "package.json"
MEASURED = "measured.json"
"""Beside the packages: the command's measurements of the fastest device and the fastest number of members at once."""
INDUCTOR = "inductor"
"""Beside the packages: the caches of Inductor and Triton."""
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
    model: str
    """The model that it was first compiled for, in words."""

    def load(self) -> Library:
        """Raises OSError if it has a fault, or can't be run here."""
        library = loaded(self.code, f"{self.path.name}-{self.checksum}")
        return Library(library, self.entry, self.inputs, self.outputs)

    @cached_property
    def code(self) -> bytes:
        """The library, read and checked once. Raises OSError if the package has a fault."""
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
            return None if evolve(self).code else "it is empty"  # a copy, as `code` is cached
        except OSError as e:
            return f"{Path(e.filename).name}: {e.strerror}"


def folder() -> Path:
    """The folder of packages: $PIPE_CACHE, or pipe-train in the user's cache folder."""
    if named := os.environ.get("PIPE_CACHE"):
        return Path(os.path.realpath(os.path.expanduser(named)))
    try:
        parent = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # a user without a home
        return Path(os.path.realpath(os.path.join(tempfile.gettempdir(), f"pipe-train-{os.getuid()}")))
    return Path(os.path.realpath(os.path.join(parent, "pipe-train")))


def refusal() -> str | None:
    """The reason not to trust the cache, and a remedy: other users could have written into it, or created its
    folder."""
    path = folder() / INDUCTOR
    for part in (*reversed(path.parents), path):
        try:
            status = part.lstat()
        except OSError:  # it does not exist
            return None
        inner = part in (path, path.parent)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid not in {os.getuid(), os.getuid() if inner else 0}:
            return f"{part} is another user's, or no folder; set PIPE_CACHE to a folder of your own"
        if status.st_mode & _OTHERS and (inner or not status.st_mode & stat.S_ISVTX):
            return f"others may write into {part}; run chmod go-w {shlex.quote(str(part))}, or set PIPE_CACHE"
    return None


def usable(name: str = "") -> bool:
    """Whether the cache, or a folder in it, may be written into; created if missing."""
    with suppress(OSError):
        return not refusal() and files.folder(folder() / name, 0o700).is_dir() and not refusal()
    return False


def keep_compiler_caches() -> None:
    """Set the folder in which Inductor and Triton keep their programs, unless the user named one: they run programs
    found there, and torch's default is a name in /tmp that any user can take first."""
    named, default = os.environ.get("TORCHINDUCTOR_CACHE_DIR"), os.path.join(tempfile.gettempdir(), "torchinductor_")
    if named is not None and not named.startswith(default):  # torch sets its default when it imports its compilers
        return
    place = folder() / INDUCTOR
    if not usable(INDUCTOR):
        place = Path(tempfile.mkdtemp(prefix="pipe-train-"))
        atexit.register(files.remove, place)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(place)


def find(identity: Mapping[str, Any]) -> Package | None:
    """The package of an identity; one with a fault is removed."""
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
) -> None:
    """Put a program into the cache, if that can be written and trusted."""
    path = folder() / _key(identity)
    with suppress(OSError):
        if not usable():
            return
        code = files.read(Path(library.path))
        with files.making(path, 0o700) as work:
            files.replace(work / _LIBRARY, code, 0o600)
            facts = (work, identity, program, batch, operations, library.entry, library.inputs, library.outputs)
            described = _described(Package(*facts, "", model))
            described["checksum"] = _checksum(code, described)
            files.replace(work / FACTS, json.dumps(described, indent=1).encode(), 0o600)
            with suppress(OSError):  # another process was faster, or something else has its name
                work.rename(path)


def packages() -> Iterator[Package]:
    """The packages that can be read."""
    yield from filter(None, (_read(path) for path in folders() if finished(path)))


def folders() -> list[Path]:
    """The folders of packages, whole or broken; other folders beside them are ignored."""
    try:
        return sorted(path for path in folder().iterdir() if _NAME.fullmatch(path.name) and path.is_dir())
    except OSError:
        return []


def finished(path: Path) -> bool:
    """Whether a folder of the cache is a package, and not an unfinished one."""
    return not path.name.startswith(files.MAKING)


def clear() -> None:
    """Remove all packages, whole or broken. Other files in the folder stay."""
    for path in (*folders(), folder() / MEASURED, folder() / INDUCTOR):
        files.remove(path)


def _key(identity: Mapping[str, Any]) -> str:
    return files.checksum(identity)[:32]


def _checksum(code: bytes, described: Mapping[str, Any]) -> str:
    return files.checksum({**described, "library": sha256(code).hexdigest()})


def _described(package: Package) -> dict[str, Any]:
    """A package as JSON."""
    outputs = [{"name": o.name, "shape": list(o.shape), "dtype": str(o.dtype)[6:]} for o in package.outputs]
    return {**asdict(package, recurse=False), "path": None, "inputs": list(package.inputs), "outputs": outputs}


def _read(path: Path) -> Package | None:
    try:
        facts = {} if path.is_symlink() else json.loads(files.read(path / FACTS, most=16 << 20, links=False))
        outputs = tuple(Output(o["name"], tuple(o["shape"]), getattr(torch, o["dtype"])) for o in facts["outputs"])
        package = Package(**{**facts, "path": path, "inputs": tuple(facts["inputs"]), "outputs": outputs})
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    numbers = all(type(n) is int for n in (*package.inputs, *(n for o in outputs for n in o.shape)))
    words = all(isinstance(text, str) for text in (package.entry, package.model))
    types = numbers and words and all(isinstance(o.dtype, torch.dtype) for o in outputs)
    return package if types and isinstance(package.identity, dict) else None
