"""Checkpoints: State and the position in the order on disk, as safetensors and JSON, so that a run goes on bit for bit.

A checkpoint is a folder `step-<n>/` with every tensor of State and `checkpoint.json`, which says where in the order it was made
and holds the checksums of both. It is written under another name, flushed to the disk and then renamed, so it is whole or not
there; and it is read only after all of it was verified. Nothing in it can run code.

    with checkpoint.Saver("run/checkpoints", best="accuracy") as saver:
        for report in fit(pipe, epochs=20, validate=test):
            saver.offer(report)

    saved = checkpoint.newest("run/checkpoints").saved
    reports = fit(pipe, epochs=20, validate=test, state=saved.restore(pipe), start=saved.start)
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from attrs import asdict, frozen
from cattrs import Converter
from torch import Tensor
from torch.utils import _pytree as pytree

from pipeline import files, place
from pipeline.compose import Composition
from pipeline.errors import CheckpointError, ConfigError, did_you_mean
from pipeline.stage import first_line, is_count
from pipeline.state import Report, State, is_better, named

FORMAT = 1
STATE, FACTS = "state.safetensors", "checkpoint.json"
_NAME, _ASIDE = "step-", "aside-"

SHARE = 0.005
"""How much of the time checkpoints may take that nobody asked for by number."""

_CONVERTER = Converter(detailed_validation=False)  # whose errors are Python's own

_START, _RATE = 5e-3, 2e8
"""Seconds, and bytes a second, that a checkpoint takes before one was timed."""


@frozen
class Best:
    """The best epoch so far."""

    metric: str
    value: float
    epoch: int
    step: int


@frozen
class Saved:
    """A checkpoint on disk, verified."""

    path: Path
    step: int
    """Steps done."""
    epoch: int
    """Epochs done."""
    batch: int
    """Batches done of the epoch after those."""
    best: Best | None
    torch: str
    """The version that made it."""

    @property
    def start(self) -> tuple[int, int]:
        """Where `fit(start=...)` goes on."""
        return self.epoch, self.batch

    def restore(self, pipe: Composition, hyper: Mapping[str, Tensor] | None = None) -> State:
        """The State, on the device of the pipeline, which must be the one that made it; with other hyperparameters, if given.

        Raises CheckpointError where it is not.
        """
        from safetensors.torch import load_file  # takes as long as a small run's first steps

        new = pipe.init(0, steps=1)
        tree = (new if hyper is None else new.replace(hyper=dict(hyper))).tree
        like = named(tree)
        try:
            tensors = load_file(self.path / STATE)
        except Exception as e:  # of safetensors, which has a class of its own for what is no such file
            raise CheckpointError(f"{self.path / STATE} can't be read: {first_line(e)}") from None
        if hyper is not None:
            tensors = {name: t for name, t in tensors.items() if not name.startswith("hyper/")}
            tensors |= {name: t for name, t in like.items() if name.startswith("hyper/")}
        for name, leaf in like.items():
            there = tensors.get(name)
            if there is None or there.shape != leaf.shape or there.dtype != leaf.dtype:
                has = "nothing" if there is None else f"{tuple(there.shape)} {there.dtype}"
                raise CheckpointError(
                    f"{self.path} is of another pipeline: for {name} it has {has}, not {tuple(leaf.shape)} {leaf.dtype}"
                )
        if len(tensors) != len(like):
            more = ", ".join(sorted(set(tensors) - set(like))[:3])
            raise CheckpointError(f"{self.path} is of another pipeline: it also holds {more}")
        # Into tensors that lie in memory as torch lays them: BLAS may round otherwise where they lie elsewhere.
        restored = [torch.empty_like(leaf).copy_(tensors[name]) for name, leaf in like.items()]
        return State(pytree.tree_unflatten(restored, pytree.tree_structure(tree)))


@frozen
class Found:
    """What a folder of checkpoints holds: the newest good one, and why newer ones were passed over."""

    saved: Saved | None
    faults: tuple[str, ...] = ()


def newest(folder: str | Path, below: int | None = None) -> Found:
    """The newest checkpoint that is whole, of those with fewer than `below` steps. Raises CheckpointError where it can't look."""
    faults: list[str] = []
    for step, path in reversed(_steps(Path(folder))):
        if below is None or step < below:
            try:
                return Found(read(path), tuple(faults))
            except CheckpointError as e:
                faults.append(str(e))
    return Found(None, tuple(faults))


def read(path: str | Path) -> Saved:
    """A checkpoint, with all of its content verified. Raises CheckpointError where anything in it is not as it was written."""
    path = Path(path)
    try:
        facts = json.loads(files.plain(path / FACTS).read_text(encoding="utf-8"))
        if facts["format"] != FORMAT:
            raise CheckpointError(
                f"{path} has format {facts['format']!r}, which this version of pipe-train does not know; update it"
            )
        if facts["checksum"] != files.checksum(facts):
            raise CheckpointError(f"{path / FACTS} is damaged: its checksum is another")
        if facts["sha256"] != files.sha256(files.plain(path / STATE)):
            raise CheckpointError(f"{path / STATE} is damaged: its checksum is another")
        return _CONVERTER.structure({**facts, "path": path}, Saved)
    except OSError as e:
        raise CheckpointError(f"{path} can't be read: {Path(e.filename or path).name}: {e.strerror or e}") from None
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        raise CheckpointError(f"{path / FACTS} is damaged: it is not what was written") from None


class Saver:
    """Writes checkpoints of a run into a folder, on a thread of its own, and removes those that are no longer wanted.

    - `keep`: how many of the newest stay.
    - `best`: the validation metric whose best epoch stays as well.
    - `steps`: also after each multiple of so many steps, where `fit(every=steps)` reports them.
    - `minutes`: also about every so many minutes inside an epoch, where `fit(interval=...)` reports.
    - `saved`: what the run goes on from, if it does.
    - `beside`: files, such as a log, that must be on the disk before a checkpoint that follows them.

    Epochs and minutes are left out where all checkpoints would take more than 0.5 % of the time. Use it as a context, or close() it.
    """

    def __init__(
        self, folder: str | Path, *, keep: int = 2, best: str | None = None, steps: int | None = None, minutes: float = 5.0,
        saved: Saved | None = None, beside: Sequence[Path] = (),
    ) -> None:  # fmt: skip
        for name, value in (("keep", keep), ("steps", steps)):
            if value is not None and not is_count(value):
                raise ConfigError(f"{name}={value!r} is not a positive whole number")
        self.folder = Path(folder)
        self.keep, self.metric, self.steps, self.minutes = keep, best, steps, minutes
        self.best = saved.best if saved is not None and saved.best and saved.best.metric == best else None
        self.beside = tuple(beside)
        self.last = saved.step if saved is not None else -1
        """The step of the newest checkpoint, written or being written."""
        self._unwritten: _Job | None = None  # not written yet
        self._writer = ThreadPoolExecutor(1)
        self._writing: Future[float] | None = None
        self._took: float | None = None
        self._at = time.monotonic()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in self.folder.glob(f"{files.MAKING}*"):  # of a process that was killed
                shutil.rmtree(path, ignore_errors=True)
            files.flush(self.folder.parent)
        except OSError as e:
            raise _unwritable(self.folder, e) from None

    def offer(self, report: Report, *, now: bool = False) -> bool:
        """Write a checkpoint of a Report's State where one is due, or `now`; whether it did.

        Raises CheckpointError where this one, or the one before it, can't be written; earlier ones stay as they are.
        """
        epoch, batch = (report.epoch, 0) if report.complete else (report.epoch - 1, report.batch)
        improved = self._improved(report)
        if improved is not None:
            self.best, self._unwritten = improved, None
        if now or self._due(report):
            self.save(report.state, epoch, batch)
            return True
        if improved is not None:
            self._unwritten = _Job(place.host(report.state.tree), epoch, batch, improved)
        return False

    def save(self, state: State, epoch: int, batch: int) -> None:
        """Write a checkpoint of a State after `epoch` epochs and `batch` batches, on the writer's thread."""
        self._finish()
        began, step = time.monotonic(), int(state.step)
        if step == self.last:
            return
        jobs = [self._unwritten] if self._unwritten is not None else []
        jobs.append(_Job(place.host(state.tree), epoch, batch, self.best))
        self.last, self._unwritten = step, None
        copied = time.monotonic() - began
        self._writing = self._writer.submit(lambda: copied + self._write(jobs))

    def close(self) -> None:
        """Wait until what was to be written is on disk."""
        try:
            self._finish()
            if self._unwritten is not None:
                best, self._unwritten = self._unwritten, None
                self._write([best])
        finally:
            self._writer.shutdown()

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except CheckpointError:
            if error is None:
                raise

    def _due(self, report: Report) -> bool:
        if self.steps is not None and report.step % self.steps == 0:
            return True
        if self._writing is not None and self._writing.done():
            self._finish()
        waited = time.monotonic() - self._at
        if not report.complete and waited < 60 * self.minutes:
            return False
        took = self._took
        if took is None:
            took = _START + sum(t.nbytes for t in pytree.tree_leaves(report.state.tree)) / _RATE
        return self._writing is None and waited * SHARE > took

    def _finish(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            self._took = writing.result()
            self._at = time.monotonic()

    def _improved(self, report: Report) -> Best | None:
        if self.metric is None or not report.complete:
            return None
        value = report.validate.get(self.metric)
        if not isinstance(value, int | float):
            raise ConfigError(
                f"best={self.metric!r} is no number that validation gives{did_you_mean(self.metric, report.validate)}"
            )
        if value != value or (self.best is not None and not is_better(self.metric, value, self.best.value)):
            return None
        return Best(self.metric, float(value), report.epoch, report.step)

    def _write(self, jobs: list[_Job]) -> float:
        """Seconds that it took."""
        from safetensors.torch import save_file

        began = time.monotonic()
        for job in jobs:
            tensors = {name: t.contiguous() for name, t in named(job.tree).items()}
            step = int(job.tree["step"])
            path = self.folder / f"{_NAME}{step:09d}"
            try:
                for file in self.beside:
                    files.flush(file)
                with files.making(path) as work:
                    save_file(tensors, work / STATE)
                    facts = {
                        "format": FORMAT, "step": step, "epoch": job.epoch, "batch": job.batch,
                        "best": None if job.best is None else asdict(job.best), "torch": torch.__version__,
                        "sha256": files.sha256(work / STATE),
                    }  # fmt: skip
                    text = json.dumps({**facts, "checksum": files.checksum(facts)}, indent=1)
                    (work / FACTS).write_text(text + "\n", encoding="utf-8")
                    files.put(work, path)  # in place of one that is damaged, or of a past that was left
            except Exception as e:  # safetensors tells trouble with the disk in a class of its own
                raise _unwritable(path, e) from None
            self._tidy(step, job.best)
        return time.monotonic() - began

    def _tidy(self, step: int, best: Best | None) -> None:
        """Remove what is neither among the newest nor the best. Newer ones than this could not be used: they are put aside."""
        there = _steps(self.folder)
        wanted = sorted(n for n, _ in there if n <= step)[-self.keep :]
        for n, path in there:
            if n > step:
                with suppress(OSError):
                    path.rename(path.with_name(f"{_ASIDE}{path.name}"))
            elif n not in wanted and (best is None or n != best.step):
                shutil.rmtree(path, ignore_errors=True)


@frozen(eq=False)
class _Job:
    """What is to be written: a copy of State's tree, where in the order it is, and the best epoch up to there."""

    tree: dict[str, Any]
    epoch: int
    batch: int
    best: Best | None


def _unwritable(path: Path, error: Exception) -> CheckpointError:
    why = getattr(error, "strerror", None) or first_line(error)
    return CheckpointError(
        f"can't write the checkpoint {path}: {why}; earlier checkpoints are whole, and the run can go on from them"
    )


def _steps(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints in a folder, by their steps."""
    try:
        found = [p for p in folder.iterdir() if p.name.startswith(_NAME) and p.name[len(_NAME) :].isascii()]
    except FileNotFoundError:
        return []
    except OSError as e:
        raise CheckpointError(f"can't look into {folder}: {e.strerror}") from None
    return sorted((int(p.name[len(_NAME) :]), p) for p in found if p.name[len(_NAME) :].isdecimal())
