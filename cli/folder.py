"""A run's folder: made, locked, and its metrics.jsonl continued without a gap or a double line."""

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
from torch import Tensor

from cli import config as settings
from cli import processes, record
from cli.build import Job
from cli.config import TrainConfig
from pipeline import Report, files, log
from pipeline.errors import ConfigError

METRICS, CHECKPOINTS, WEIGHTS, BEST, DATA, STATUS, CURVES, _LOCK = (
    "metrics.jsonl", "checkpoints", "model.safetensors", "best.safetensors", "data.json", "status.json", "curves.svg",
    ".lock",
)  # fmt: skip
ABOUT = "about"
"""What the metadata of a file of weights are called."""


@contextmanager
def new(config: TrainConfig, title: str | None = None) -> Iterator[Path]:
    """A folder for a new run: the one asked for, if no run is in it, or the next free one under runs/. Of several
    processes, the first one makes it."""
    if not processes.first():
        yield Path(processes.agreed(None))
        return
    try:
        if config.run.out is not None:
            folder = Path(config.run.out)
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder = _next(Path("runs"), title or config.title)
    except OSError as e:
        raise _unwritable(e) from None
    with locked(folder):
        if (folder / settings.CONFIG).exists():
            raise ConfigError(
                f"{folder} already holds a run; choose another --out, or go on with it: --resume {folder}"
            )
        yield Path(processes.agreed(str(folder)))


def _next(root: Path, name: str) -> Path:
    root.mkdir(exist_ok=True)
    for n in count(1):
        folder = root / f"{name}-{n}"
        try:
            folder.mkdir()
        except FileExistsError:  # perhaps since a moment ago, by another process
            continue
        return folder
    raise AssertionError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time has a run's folder. The lock is the system's, and goes with the process, however that
    ends."""
    if not processes.first():
        yield
        return
    try:
        file = os.fdopen(os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o644), "r+")
    except OSError as e:
        raise _unwritable(e) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = file.read(20).strip()
            raise ConfigError(
                f"another process{f' ({other})' if other.isdecimal() else ''} is writing to {folder}; wait for it "
                "or stop it"
            ) from None
        except OSError as e:
            raise ConfigError(f"can't lock {folder / _LOCK}: {e.strerror}") from None
        try:
            file.seek(0)
            file.truncate()
            file.write(f"{os.getpid()}\n")
            file.flush()
        except OSError as e:
            raise _unwritable(e) from None
        yield


def is_busy(folder: Path) -> bool:
    """Whether a process is writing to a run's folder."""
    try:
        with (folder / _LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no lock was ever made, or nobody may look
        return False
    return False


def check_idle(folder: Path) -> None:
    """Raise ConfigError where a process is writing to a run's folder."""
    if is_busy(folder):
        raise ConfigError(f"{folder} is still training; wait for it, or stop it: it can be resumed")


def _unwritable(error: OSError) -> ConfigError:
    return ConfigError(f"can't write to the output folder {error.filename}: {error.strerror}; choose another --out")


def write_config(folder: Path, config: TrainConfig, facts: Mapping[str, Any]) -> None:
    """The settings, and beside them what is recorded of the run."""
    text = tomli_w.dumps({**config.tables, **facts})
    replace(folder / settings.CONFIG, text.encode())


def write_data(folder: Path, made: Job) -> None:
    """What has to be known of the data to use the model on others."""
    if made.about is not None:
        replace(folder / DATA, json.dumps(made.about.json, indent=1, ensure_ascii=False).encode())


def write_status(folder: Path, state: str, **more: Any) -> None:
    """How a run ended: done, stopped or failed, and what there is to say of it."""
    replace(folder / STATUS, json.dumps({"state": state, **more}, indent=1, ensure_ascii=False).encode())


def write_weights(path: Path, weights: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Weights by the module's own names, with what they are of in the file's metadata."""
    from safetensors.torch import save  # not before the first step

    plain = {k: t.clone(memory_format=torch.contiguous_format) for k, t in weights.items()}
    # Under one name: of several, the order in the file would be another each time.
    replace(path, save(plain, {ABOUT: json.dumps({**about, "sha256": record.digest(plain)})}))


def replace(path: Path, content: bytes) -> None:
    """Write a file so that it is the old one or the new one, never a part. Of several processes, the first one does."""
    if not processes.first():
        return
    try:
        files.replace(path, content)
    except OSError as e:
        raise ConfigError(f"can't write {path}: {e.strerror}") from None


@contextmanager
def making(path: Path) -> Iterator[Path]:
    """Where to write a file, which becomes `path` once it is whole. Raises ConfigError where it can't be written."""
    work = path.with_name(files.MAKING + path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield work
        work.replace(path)
    except OSError as e:
        raise ConfigError(f"can't write {path}: {e.strerror or e}") from None
    finally:
        with suppress(OSError):
            work.unlink()


class Log:
    """metrics.jsonl: a line an epoch."""

    def __init__(self, folder: Path, step: int = 0) -> None:
        """Opened after its lines of up to `step` steps; later ones are of a past that is done again."""
        self.path = folder / METRICS
        kept = [line for line in log.read(self.path) if line["step"] <= step]
        self.rows = kept
        self.epochs = [line["epoch"] for line in kept]
        replace(self.path, b"".join(json.dumps(line).encode() + b"\n" for line in kept))
        there = self.path if processes.first() else Path(os.devnull)
        self._file: IO[str] = there.open("a", encoding="utf-8")

    def write(self, report: Report, **more: float) -> None:
        """Add an epoch's line, on the disk before any checkpoint that follows it."""
        self.rows.append({**log.line(report, self.rows), **more})
        try:
            self._file.write(json.dumps(self.rows[-1]) + "\n")
            self._file.flush()
        except OSError as e:
            raise ConfigError(
                f"can't write {self.path}: {e.strerror}; the run can go on from its last checkpoint"
            ) from None

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: Any) -> None:
        with suppress(OSError):  # what could not be written was said when it was
            self._file.close()
