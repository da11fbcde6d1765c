"""A run's folder: create and lock it, and continue its metrics.jsonl without gaps or duplicates."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO, Any

import tomli_w
import torch
from attrs import evolve
from torch import Tensor

from cli import config as settings
from cli import processes
from cli import seal as seals
from cli.build import Job
from cli.config import TrainConfig
from cli.prepared import digest
from cli.progress import warn
from cli.seal import CHECKPOINTS, METRICS, Seal
from pipeline import Report, checkpoint, files, log
from pipeline.errors import ConfigError

WEIGHTS, BEST, DATA, CURVES, _LOCK = "model.safetensors", "best.safetensors", "data.json", "curves.svg", ".lock"
ABOUT = "about"
"""Key of our metadata in a file of weights."""


@contextmanager
def new(config: TrainConfig, title: str | None = None) -> Iterator[Seal]:
    """The folder of a new run: the one asked for, if it holds no run, or the next free one under runs/. The first of
    several processes makes it."""
    if not processes.first():
        yield Seal(Path(processes.agreed(None)), writes=False)
        return
    try:
        if config.run.out is not None:
            folder = files.folder(Path(config.run.out))
        else:
            folder = _next(Path("runs"), title or config.title)
    except OSError as e:
        raise _unwritable(e) from None
    with locked(folder):
        if os.path.lexists(folder / settings.CONFIG):
            raise ConfigError(
                f"{folder} already holds a run; choose another --out, or go on with it: --resume {folder}"
            )
        processes.agreed(str(folder))
        yield Seal(folder)


def _next(root: Path, name: str) -> Path:
    files.folder(root)
    for n in count(1):
        folder = root / f"{name}-{n}"
        try:
            folder.mkdir()
        except FileExistsError:  # of an earlier run, or of another process's new run
            continue
        return folder
    raise AssertionError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a run's folder for this process. The system releases the lock, however the process ends."""
    if not processes.first():
        yield
        return
    try:
        file = files.updated(folder / _LOCK)
    except OSError as e:
        raise _unwritable(e) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = file.read(20).decode("ascii", "replace").strip()
            raise ConfigError(
                f"another process{f' ({other})' if other.isdecimal() else ''} is writing to {folder}; wait for it "
                "or stop it"
            ) from None
        except OSError as e:
            raise ConfigError(f"can't lock {folder / _LOCK}: {e.strerror}") from None
        try:
            file.seek(0)
            file.truncate()
            file.write(f"{os.getpid()}\n".encode())
            file.flush()
        except OSError as e:
            e.filename = str(folder)
            raise _unwritable(e) from None
        with suppress(OSError):
            for where in {path.parent for path in folder.rglob(f"{files.MAKING}*")}:
                files.tidy(where)
        yield


@contextmanager
def gone_on(folder: Path) -> Iterator[Seal]:
    """The folder of a resumed run, locked."""
    with locked(folder):
        yield evolve(seals.of(folder), writes=processes.first())


def accept(folder: Path) -> list[str]:
    """Accept the current files of a run, and of the runs in it; returns the names of changed ones."""
    saved: list[checkpoint.Saved] = []
    try:
        while (
            found := checkpoint.newest(folder / CHECKPOINTS, below=saved[-1].step if saved else None).saved
        ) is not None:
            saved.append(found)
        differ = seals.accept(folder, log.read(folder / METRICS), saved)
    except OSError as e:
        raise _unwritable(e) from None
    inside = [path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/{seals.MANIFEST}")]
    inside = sorted(run for run in inside if run.resolve() == folder.resolve() / run.relative_to(folder))  # no links
    return differ + [f"{path.relative_to(folder)}/{name}" for path in inside for name in accept(path)]


def accepted(folder: Path) -> None:
    """Accept the current files of a run, with a warning that names changed ones."""
    with locked(folder):
        differ = accept(folder)
    if differ:
        warn(
            f"{folder}: {', '.join(differ)} {'is' if len(differ) == 1 else 'are'} accepted as found, which is recorded"
        )


def newest(seal: Seal, below: int | None = None) -> checkpoint.Found:
    """The newest undamaged checkpoint of a run, and the faults of newer ones, including missing ones."""
    found = checkpoint.newest(seal.folder / CHECKPOINTS, below, seal.fault)
    lost = seal.lost(found.saved.step if found.saved else -1)
    return checkpoint.Found(found.saved, (*found.faults, *(f"{path} is gone" for path in lost)))


def is_busy(folder: Path) -> bool:
    """Whether a process is writing to a run's folder."""
    try:
        with files.opened(folder / _LOCK, links=False) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is no lock, or it may not be read
        return False
    return False


def check_idle(folder: Path) -> None:
    """Raise ConfigError if a process is writing to a run's folder."""
    if is_busy(folder):
        raise ConfigError(f"{folder} is still training; wait for it, or stop it: it can be resumed")


def _unwritable(error: OSError) -> ConfigError:
    return ConfigError(f"can't write to the output folder {error.filename}: {error.strerror}; choose another --out")


def config_text(config: TrainConfig, facts: Mapping[str, Any], seal: Seal) -> bytes:
    """config.toml: the settings, and the records of the run."""
    facts = {**facts, "facts": {**facts.get("facts", {}), "run": seal.run}}
    return tomli_w.dumps({**config.tables, **facts}).encode()


def data_text(made: Job) -> dict[str, bytes]:
    """data.json, unless the pipeline is the user's own."""
    return {} if made.about is None else {DATA: as_json(made.about.json)}


def status_text(state: str, **more: Any) -> bytes:
    """status.json: whether a run is done, stopped or failed, and why; `over` if no signal or error ended it."""
    return as_json({"state": state, **more})


def as_json(facts: Mapping[str, Any]) -> bytes:
    return json.dumps(facts, indent=1, ensure_ascii=False).encode()


def weights_file(weights: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    """Weights by the module's own names, with their epoch and checksum as metadata."""
    from safetensors.torch import save  # not imported before the first step

    plain = {k: t.clone(memory_format=torch.contiguous_format) for k, t in weights.items()}
    # One key of metadata: the order of several would vary.
    return save(plain, {ABOUT: json.dumps({**about, "sha256": digest(plain)})})


def write(seal: Seal, contents: Mapping[str, bytes], metrics: str | None = None) -> None:
    """Write files of a run."""
    try:
        seal.write(contents, metrics)
    except OSError as e:
        raise ConfigError(f"can't write {', '.join(contents)} in {seal.folder}: {e.strerror}") from None


def inside(seal: Seal, *names: str) -> Path:
    """A folder inside a run's; no link is followed."""
    path = seal.folder
    try:
        for name in names:
            path = files.folder(path / name, links=False)
    except OSError as e:
        raise _unwritable(e) from None
    return path


def replace(path: Path, content: bytes) -> None:
    """Replace a file atomically; the first of several processes does."""
    if not processes.first():
        return
    try:
        files.replace(path, content)
    except OSError as e:
        raise ConfigError(f"can't write {path}: {e.strerror}") from None


class Log:
    """metrics.jsonl: a line an epoch."""

    def __init__(self, seal: Seal, step: int = 0) -> None:
        """Keep the lines of up to `step` steps; the steps after it are done again."""
        self.path, self.seal = seal.folder / METRICS, seal
        rows = log.read(self.path)
        if processes.first() and (fault := seals.broken(seal, rows)) is not None:
            warn(f"{fault}: it is continued as it is")
        self.rows = seals.chained((row for row in rows if row["step"] <= step), seal.run)
        self.epochs = [row["epoch"] for row in self.rows]
        self._file: IO[bytes] | None = None
        if processes.first():
            replace(self.path, seals.lines(self.rows))
            self._file = files.updated(self.path)
            self._file.seek(0, os.SEEK_END)

    @property
    def last(self) -> str | None:
        """The checksum of the last line."""
        return self.rows[-1][seals.CHAIN] if self.rows else None

    def write(self, report: Report, **more: float) -> None:
        """Append an epoch's line, before any checkpoint that follows it is written."""
        row = seals.after(self.rows, {**log.line(report, self.rows), **more}, self.seal.run)
        self.rows.append(row)
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(row).encode() + b"\n")
            self._file.flush()
        except OSError as e:
            raise ConfigError(f"can't write {self.path}: {e.strerror}; resume the run from its checkpoint") from None

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._file is not None:
            with suppress(OSError):  # an earlier write has raised already
                self._file.close()
