"""A run's folder: made, locked, and its metrics.jsonl continued without a gap or a double line."""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO, Any

import tomli_w
from attrs import asdict

from cli import config as settings
from cli.build import Job
from cli.config import TrainConfig
from pipeline import Report, files
from pipeline.errors import ConfigError

METRICS, CHECKPOINTS, WEIGHTS, DATA, _LOCK = (
    "metrics.jsonl", "checkpoints", "model.safetensors", "data.json", ".lock",
)  # fmt: skip


@contextmanager
def new(config: TrainConfig) -> Iterator[Path]:
    """A folder for a new run: the one asked for, if no run is in it, or the next free one under runs/."""
    try:
        if config.run.out is not None:
            folder = Path(config.run.out)
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder = _next(Path("runs"), config.title)
    except OSError as e:
        raise _unwritable(e) from None
    with locked(folder):
        if (folder / settings.CONFIG).exists():
            raise ConfigError(
                f"{folder} already holds a run; choose another --out, or go on with it: --resume {folder}"
            )
        yield folder


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


def _unwritable(error: OSError) -> ConfigError:
    return ConfigError(f"can't write to the output folder {error.filename}: {error.strerror}; choose another --out")


def write_config(folder: Path, config: TrainConfig, facts: Mapping[str, Any]) -> None:
    """The settings, and beside them what is recorded of the run."""
    text = tomli_w.dumps({**config.tables, **facts})
    replace(folder / settings.CONFIG, text.encode())


def write_data(folder: Path, made: Job) -> None:
    """What has to be known of the data to use the model on others: the task, the classes, and what was fitted."""
    if made.prepared is None or made.fixed is None:
        return
    data = made.prepared
    facts = {"fixed": asdict(made.fixed), "classes": data.classes, "notes": data.notes, "fitted": data.fitted}
    replace(folder / DATA, json.dumps(facts, indent=1, ensure_ascii=False).encode())


def replace(path: Path, content: bytes) -> None:
    """Write a file so that it is the old one or the new one, never a part."""
    try:
        files.replace(path, content)
    except OSError as e:
        raise ConfigError(f"can't write {path}: {e.strerror}") from None


class Log:
    """metrics.jsonl: a line an epoch."""

    def __init__(self, folder: Path, step: int = 0) -> None:
        """Opened after its lines of up to `step` steps; later ones are of a past that is done again."""
        self.path = folder / METRICS
        kept = _lines(self.path, step) if step else []
        self.epochs = [line["epoch"] for line in kept]
        replace(self.path, b"".join(json.dumps(line).encode() + b"\n" for line in kept))
        self._file: IO[str] = self.path.open("a", encoding="utf-8")

    def write(self, report: Report) -> None:
        """Add an epoch's line, on the disk before any checkpoint that follows it."""
        line = {
            "epoch": report.epoch,
            "step": report.step,
            "train": _plain(report.train),
            "validate": _plain(report.validate),
            "seconds": report.seconds,
            "samples_per_second": report.samples_per_second,
        }
        try:
            self._file.write(json.dumps(line) + "\n")
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


def _lines(path: Path, step: int) -> list[dict[str, Any]]:
    """The whole lines of a log for up to so many steps; the last one may have been cut off by a crash."""
    found: dict[int, dict[str, Any]] = {}
    try:
        text = files.plain(path).read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    except OSError as e:
        raise ConfigError(f"can't read {path}: {e.strerror}") from None
    for row in text.splitlines():
        try:
            line = json.loads(row)
            epoch, at = line["epoch"], line["step"]
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
        if type(epoch) is int and type(at) is int and at <= step:
            found[epoch] = line
    return [found[epoch] for epoch in sorted(found)]


def _plain(metrics: Mapping[str, Any]) -> dict[str, Any]:
    # JSON has no NaN.
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}
