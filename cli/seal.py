"""Seal: checksums of a run's files, to find damaged, truncated and foreign files.

The manifest `run.json` has the run's id, which its checkpoints carry, and the checksums of the files that results
depend on. It is written before them, with the old and the new checksum: whenever a process dies, one of the two fits.
Each line of metrics.jsonl carries a checksum of all lines up to it. This guards against accidents and mistakes, not
against anyone who may write in the folder.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from threading import RLock
from typing import Any

from attrs import define, field

from cli.recipes.setting import refusal

MANIFEST, METRICS, STATUS, CHECKPOINTS = "run.json", "metrics.jsonl", "status.json", "checkpoints"
STAYS = ("config.toml", "data.json", "sweep.json")
"""Files that are not written again at the end of a run."""
CHAIN = "checksum"
"""Key in a line of metrics: the checksum of all lines up to it."""
FORMAT, MOST = 1, 16 << 20
_TYPES = {"run": str, "files": dict, "checkpoints": dict, "accepted": list}


@define(eq=False)
class Seal:
    """A run's folder; everything in it is written through its seal."""

    folder: Path
    run: str = field(factory=lambda: secrets.token_hex(8))
    files: dict[str, list[str]] = field(factory=dict)
    """File -> its valid checksums."""
    checkpoints: dict[str, str] = field(factory=dict)
    """Checkpoint on disk -> the checksum of its facts."""
    accepted: list[dict[str, Any]] = field(factory=list)
    """Differences that the user accepted."""
    writes: bool = True
    """Whether this process writes; of several, the first one does."""
    _lock: Any = field(factory=RLock, repr=False)

    def write(self, contents: Mapping[str, bytes], metrics: str | None = None) -> None:
        """Write files, each atomically; at the end of a run, `metrics` is the checksum of its last line.

        Raises OSError.
        """
        from pipeline import files

        if not self.writes:
            return
        with self._lock:
            sums = {name: _digest(content) for name, content in contents.items()}
            sums |= {} if metrics is None else {METRICS: metrics}
            self.files |= {name: [*self.files.get(name, [])[-1:], new] for name, new in sums.items()}
            self.save()
            for name, content in contents.items():
                files.replace(self.folder / name, content)

    def goes_on(self) -> None:
        """Remove the status of a run that is resumed, and forget its files of weights until they are written again."""
        from pipeline import files

        if not self.writes:
            return
        with self._lock:
            self.files = {name: sums for name, sums in self.files.items() if name in STAYS}
            self.save()
            files.remove(self.folder / STATUS)

    def wrote(self, name: str, checksum: str, stay: Collection[str]) -> None:
        """Record a new checkpoint, and which of the earlier ones stay."""
        with self._lock:
            self.checkpoints = {n: c for n, c in self.checkpoints.items() if n in stay} | {name: checksum}
            self.save()

    def save(self) -> None:
        from pipeline import files

        facts = {"format": FORMAT, **{name: getattr(self, name) for name in _TYPES}}
        text = json.dumps({**facts, "checksum": files.checksum(facts)}, indent=1)
        files.replace(self.folder / MANIFEST, text.encode())

    def fault(self, saved: Any) -> str | None:
        """Why an undamaged checkpoint is not one of this run; None if it is."""
        if saved.run == self.run or self.checkpoints.get(saved.path.name) == saved.checksum:
            return None
        return f"{saved.path} is of another run"

    def lost(self, after: int) -> list[str]:
        """Recorded checkpoints of later steps that are missing."""
        names = [n for n in self.checkpoints if int(n.partition("-")[2]) > after]
        return [str(p) for p in (self.folder / CHECKPOINTS / n for n in names) if not p.exists()]


def read(folder: Path) -> Seal | None:
    """The seal of a folder, None if it has none. Raises ConfigError if it is damaged."""
    from pipeline import files

    path = folder / MANIFEST
    try:
        found = json.loads(files.read(path, most=MOST, links=False))
        if found["format"] != FORMAT:
            raise refusal(f"{path} has format {found['format']!r}, which this version does not know; update it")
        if found.pop("checksum") != files.checksum(found):
            raise ValueError("its checksum is another")
        del found["format"]
        typed = {name: type(value) for name, value in found.items()} == _TYPES
        typed = typed and all(isinstance(sums, list) for sums in found["files"].values())
        if not typed or not all(name.partition("-")[2].isdecimal() for name in found["checkpoints"]):
            raise ValueError("it is not what a run writes")
        return Seal(folder, **found)
    except FileNotFoundError:
        return None
    except OSError as e:
        raise refusal(f"can't read {path}: {e.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise refusal(f"{path} is damaged; {ACCEPT}") from None


ACCEPT = "to use the files as they are now, add --accept"


def of(folder: Path) -> Seal:
    """The seal of a run. Raises ConfigError if it has none."""
    seal = read(folder)
    if seal is None:
        raise refusal(f"{folder} has lost its {MANIFEST}; {ACCEPT}")
    return seal


def content(path: Path) -> bytes:
    """A file's content; in a run's folder, verified by its seal. Raises ConfigError or OSError."""
    from pipeline import files

    seal = read(path.parent)
    raw = files.read(path, links=seal is None)
    if seal is not None:
        _check(seal, path, _digest(raw))
    return raw


def checked(path: Path) -> Path:
    """The path of a large file, verified likewise, for a library to read."""
    from pipeline import files

    seal = read(path.parent)
    if seal is not None:
        _check(seal, path, files.sha256(path, links=False))
    return files.plain(path, links=seal is None)


def _check(seal: Seal, path: Path, checksum: str) -> None:
    known = seal.files.get(path.name)
    if known is None:
        raise refusal(f"{path} is not of the run as it is now, which has written none; {ACCEPT}")
    if checksum not in known:
        raise refusal(f"{path} is not as the run wrote it: its checksum in {MANIFEST} is another; {ACCEPT}")


def chained(rows: Iterable[Mapping[str, Any]], run: str) -> list[dict[str, Any]]:
    """Rows of metrics, each with the checksum of all rows up to it.

    >>> [one, two] = chained([{"epoch": 1}, {"epoch": 2}], "a")
    >>> whole([one, two], "a"), whole([{**one, "loss": 0.1}, two], "a"), whole([two], "a")
    (2, 0, 0)
    """
    chain: list[dict[str, Any]] = []
    for row in rows:
        chain.append(after(chain, row, run))
    return chain


def after(rows: Sequence[Mapping[str, Any]], row: Mapping[str, Any], run: str) -> dict[str, Any]:
    """A row after others, with its checksum."""
    own = {k: v for k, v in row.items() if k != CHAIN}
    return {**own, CHAIN: _link(rows[-1][CHAIN] if rows else run, own)}


def _link(before: str, row: Mapping[str, Any]) -> str:
    return _digest(f"{before}{json.dumps(row, sort_keys=True)}".encode())[:16]


def lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """The content of metrics.jsonl."""
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def whole(rows: Sequence[Mapping[str, Any]], run: str) -> int:
    """The number of rows, from the first one on, that are unchanged."""
    ends = (i for i, row in enumerate(rows) if CHAIN not in row or row != after(rows[max(i - 1, 0) : i], row, run))
    return next(ends, len(rows))


def broken(seal: Seal, rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The fault of a run's rows of metrics; None if they are unchanged."""
    path, count = seal.folder / METRICS, whole(rows, seal.run)
    if count < len(rows):
        return f"{path} is not as the run wrote it, from line {count + 1} on"
    last = rows[-1][CHAIN] if rows else ""
    return None if last in seal.files.get(METRICS, [last]) else f"{path} has lost its last lines"


def accept(folder: Path, rows: Sequence[Mapping[str, Any]], saved: Sequence[Any]) -> list[str]:
    """Accept and record a run's current files; returns the names of changed ones.

    `rows` are its metrics, `saved` its undamaged checkpoints.
    """
    from pipeline import files

    try:
        old = read(folder)
    except Exception:  # damaged, so it is replaced
        old = None
    known = [s.run for s in saved if s.run is not None]
    seal = old or (Seal(folder, known[0]) if known else Seal(folder))
    differ = [] if old is not None else [MANIFEST]
    for name in sorted({*seal.files, *STAYS, *(p.name for p in folder.glob("*.safetensors"))} - {METRICS}):
        there = files.sha256(folder / name, links=False) if (folder / name).is_file() else None
        sums = seal.files.pop(name, [])
        differ += [name] if there not in sums and (sums or there) else []
        seal.files |= {name: [there]} if there else {}
    own = {s.path.name: s.checksum for s in saved}
    differ += [f"{CHECKPOINTS}/{n}" for n, c in seal.checkpoints.items() if own.get(n) != c]
    differ += [f"{CHECKPOINTS}/{s.path.name}" for s in saved if seal.fault(s) is not None]
    seal.checkpoints = own
    if broken(seal, rows) is not None:
        differ.append(METRICS)
        seal.files.pop(METRICS, None)
        files.replace(folder / METRICS, lines(chained(rows, seal.run)))
    if differ:
        seal.accepted.append({"at": datetime.now(UTC).isoformat(timespec="seconds"), "files": differ})
        seal.save()
    return differ


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
