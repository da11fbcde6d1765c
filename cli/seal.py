"""Seal: what a run wrote into its folder, so that what is damaged, cut short or of another run is told.

The manifest `run.json` has the run's name, which its checkpoints carry, and the checksums of the files that results
depend on. It is written before they are, with the old and the new one: whenever a process dies, each file has one that
is known. Lines of metrics.jsonl each carry a checksum of all up to there. It guards against accidents and mistakes; who
may write in the folder can make a seal that fits.
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

from attrs import asdict, define, field

from cli.recipes.setting import refusal

MANIFEST, METRICS, STATUS, CHECKPOINTS = "run.json", "metrics.jsonl", "status.json", "checkpoints"
STAYS = ("config.toml", "data.json", "sweep.json")
"""What is not written anew where a run ends."""
CHAIN = "checksum"
"""In a line of metrics, the checksum of it and of all before."""
FORMAT, MOST = 1, 16 << 20
_TYPES = {"run": str, "files": dict, "checkpoints": dict, "accepted": list}


@define(eq=False)
class Seal:
    """A run's folder, in which nothing is written but through it."""

    folder: Path
    run: str = field(factory=lambda: secrets.token_hex(8))
    files: dict[str, list[str]] = field(factory=dict)
    """Of each file, the checksums that it may have."""
    checkpoints: dict[str, str] = field(factory=dict)
    """Of each checkpoint that is kept, that of its facts."""
    accepted: list[dict[str, Any]] = field(factory=list)
    """What was found to be otherwise, and taken as it was."""
    writes: bool = True
    """Of several processes, the first one does."""
    _lock: Any = field(factory=RLock, repr=False)

    def write(self, contents: Mapping[str, bytes], metrics: str | None = None) -> None:
        """Write files, each of them whole or as it was. Where a run ends, `metrics` is the checksum of its last line.

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
        """Where a run goes on, what tells how it ended is no longer of it: its status is removed, and files of weights
        stay until they are written anew."""
        from pipeline import files

        if not self.writes:
            return
        with self._lock:
            stays = {name: sums for name, sums in self.files.items() if name in STAYS}
            if stays != self.files:
                self.files = stays
                self.save()
            files.remove(self.folder / STATUS)

    def wrote(self, name: str, checksum: str, stay: Collection[str]) -> None:
        """Note a checkpoint, and which of those before stay."""
        with self._lock:
            self.checkpoints = {n: c for n, c in self.checkpoints.items() if n in stay} | {name: checksum}
            self.save()

    def save(self) -> None:
        from pipeline import files

        facts = {"format": FORMAT, **{k: v for k, v in asdict(self).items() if k not in ("folder", "writes", "_lock")}}
        text = json.dumps({**facts, "checksum": files.checksum(facts)}, indent=1)
        files.replace(self.folder / MANIFEST, text.encode())

    def fault(self, saved: Any) -> str | None:
        """Why a checkpoint that is whole is not one of this run, if so."""
        if saved.run == self.run or self.checkpoints.get(saved.path.name) == saved.checksum:
            return None
        return f"{saved.path} is of another run"

    def lost(self, after: int) -> list[str]:
        """Checkpoints with more steps that were written, and are not there."""
        names = [n for n in self.checkpoints if int(n.partition("-")[2]) > after]
        return [str(p) for p in (self.folder / CHECKPOINTS / n for n in names) if not p.exists()]


def read(folder: Path) -> Seal | None:
    """The seal of a folder; None where it has none, as those of older versions. Raises ConfigError if it is damaged."""
    from pipeline import files

    path = folder / MANIFEST
    try:
        found = json.loads(files.read(path, most=MOST, links=False))
        if found["format"] != FORMAT:
            raise refusal(f"{path} has format {found['format']!r}, which this version does not know; update it")
        if found.pop("checksum") != files.checksum(found):
            raise ValueError("its checksum is another")
        del found["format"]
        if {name: type(value) for name, value in found.items()} != _TYPES:
            raise ValueError("it is not what a run writes")
        known = all(isinstance(sums, list) for sums in found["files"].values())
        if not known or not all(n.partition("-")[2].isdecimal() for n in found["checkpoints"]):
            raise ValueError("it is not what a run writes")
        return Seal(folder, **found)
    except FileNotFoundError:
        return None
    except OSError as e:
        raise refusal(f"can't read {path}: {e.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise refusal(f"{path} is damaged; {ACCEPT}") from None


ACCEPT = "to go on with what is there, add --accept"


def content(path: Path) -> bytes:
    """What a file holds; in the folder of a run, if it is what the run wrote. Raises ConfigError, or OSError."""
    from pipeline import files

    seal = read(path.parent)
    raw = files.read(path, links=seal is None)
    if seal is not None:
        _check(seal, path, _digest(raw))
    return raw


def checked(path: Path) -> Path:
    """The same of a large file, for a library that reads it."""
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
    """Rows of metrics, each with the checksum of all up to it.

    >>> [one, two] = chained([{"epoch": 1}, {"epoch": 2}], "a")
    >>> whole([one, two], "a"), whole([{**one, "loss": 0.1}, two], "a"), whole([two], "a")
    (2, 0, 0)
    """
    found: list[dict[str, Any]] = []
    for row in rows:
        found.append(after(found, row, run))
    return found


def after(rows: Sequence[Mapping[str, Any]], row: Mapping[str, Any], run: str) -> dict[str, Any]:
    """A row after others, with its checksum."""
    own = {k: v for k, v in row.items() if k != CHAIN}
    return {**own, CHAIN: _link(rows[-1][CHAIN] if rows else run, own)}


def _link(before: str, row: Mapping[str, Any]) -> str:
    return _digest(f"{before}{json.dumps(row, sort_keys=True)}".encode())[:16]


def lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Rows as metrics.jsonl has them."""
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def whole(rows: Sequence[Mapping[str, Any]], run: str) -> int:
    """How many of the first rows are as they were written."""
    # What comes before a row is as it says: where that is wrong, the count has ended there.
    ends = (i for i, row in enumerate(rows) if CHAIN not in row or row != after(rows[max(i - 1, 0) : i], row, run))
    return next(ends, len(rows))


def broken(seal: Seal, rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Why the rows of a run's metrics are not as it wrote them, if so."""
    path, count = seal.folder / METRICS, whole(rows, seal.run)
    if count < len(rows):
        return f"{path} is not as the run wrote it, from line {count + 1} on"
    last = rows[-1][CHAIN] if rows else ""
    return None if last in seal.files.get(METRICS, [last]) else f"{path} has lost its last lines"


def accept(folder: Path, rows: Sequence[Mapping[str, Any]], saved: Sequence[Any]) -> list[str]:
    """Take what is in a run's folder as it is, and record that; the names of the files that are otherwise.

    `rows` are those of its metrics, and `saved` its checkpoints that are whole.
    """
    from pipeline import files

    try:
        old = read(folder)
    except Exception:  # damaged: it is made anew
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
