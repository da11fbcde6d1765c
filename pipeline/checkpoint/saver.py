"""When a run's checkpoints are written, and which of them stay."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import frozen
from torch.utils import _pytree as pytree

from pipeline import files, mesh, place
from pipeline.checkpoint.saved import Best, Saved, steps, unwritable, write, write_parts
from pipeline.direction import Direction, direction, rank
from pipeline.errors import CheckpointError, ConfigError, did_you_mean
from pipeline.programs.mesh import sharding_of
from pipeline.programs.program import Runs
from pipeline.stage import is_count
from pipeline.state import Report, State

SHARE = 0.005
"""How much of the time checkpoints may take that nobody asked for by number."""

_START, _RATE = 5e-3, 2e8
"""Seconds, and bytes a second, that a checkpoint takes before one was timed."""

_ASIDE = "aside-"


class Saver:
    """Writes checkpoints of a run into a folder, on a thread of its own, and removes those that are no longer wanted.

    - `keep`: how many of the newest stay.
    - `best`: the validation metric whose best epoch, or validation inside one, stays as well; of equal ones
      that with the better validation loss, then the later. `better`: which of its values are, "high" or "low", by
      default what the metric declares.
    - `steps`: also after each multiple of so many steps, where `fit(every=steps)` reports them.
    - `minutes`: also about every so many minutes inside an epoch, where `fit(interval=...)` reports.
    - `saved`: what the run goes on from, if it does.
    - `beside`: files, such as a log, that must be on the disk before a checkpoint that follows them.
    - `run`: a name of the run, which its checkpoints carry; and `wrote`, called after each with its folder's name, its
      checksum and the names of those that stay, before the others are removed.
    - `pipe`: on a mesh, the pipeline: all processes offer then, and the first one writes, or, of a State in shards,
      each its own.

    Epochs and minutes are left out where all checkpoints would take more than 0.5 % of the time. Use it as a context,
    or close() it.
    """

    def __init__(
        self, folder: str | Path, *, keep: int = 2, best: str | None = None, better: Direction | None = None,
        steps: int | None = None, minutes: float = 5.0, saved: Saved | None = None, beside: Sequence[Path] = (),
        pipe: Runs | None = None, run: str | None = None,
        wrote: Callable[[str, str, Collection[str]], None] | None = None,
    ) -> None:  # fmt: skip
        for name, value in (("keep", keep), ("steps", steps)):
            if value is not None and not is_count(value):
                raise ConfigError(f"{name}={value!r} is not a positive whole number")
        if pipe is None and mesh.several():
            raise ConfigError("of several processes, not all may write: pass the pipeline, Saver(..., pipe=pipe)")
        self.folder = Path(folder)
        self.keep, self.metric, self.better, self.steps, self.minutes = keep, best, better, steps, minutes
        self.best = saved.best if saved is not None and saved.best and saved.best.metric == best else None
        self.beside, self.run, self.wrote = tuple(beside), run, wrote
        self.last = saved.step if saved is not None else -1
        """The step of the newest checkpoint, written or being written."""
        self._unwritten: _Job | None = None  # not written yet
        self._writer = ThreadPoolExecutor(1)
        self._writing: Future[float] | None = None
        self._took: float | None = None
        self._at = time.monotonic()
        on = sharding_of(pipe.program) if pipe is not None else None
        self._on = on if on is not None and on.mesh.shard > 1 else None
        self._silent = on is not None and on.mesh.rank > 0
        if self._silent:
            return
        try:
            files.tidy(files.folder(self.folder))
            files.flush(self.folder.parent)
        except OSError as e:
            raise unwritable(self.folder, e) from None

    def offer(self, report: Report, *, now: bool = False) -> bool:
        """Write a checkpoint of a Report's State where one is due, or `now`; whether it did.

        Raises CheckpointError where this one, or the one before it, can't be written; earlier ones stay as they are.
        """
        epoch, batch = (report.epoch, 0) if report.complete else (report.epoch - 1, report.batch)
        improved = self._improved(report)
        if improved is not None:
            self.best, self._unwritten = improved, None
        due = now or self._due(report)
        if self._on is not None:  # its bytes are on all processes
            due = self._on.mesh.agreed(due or improved is not None)
        if due:
            self.save(report.state, epoch, batch)
            return True
        if improved is not None and not self._silent:
            self._unwritten = _Job(place.host(report.state.tree), epoch, batch, improved)
        return False

    def save(self, state: State, epoch: int, batch: int) -> None:
        """Write a checkpoint of a State after `epoch` epochs and `batch` batches, on the writer's thread."""
        self._finish()
        began, step = time.monotonic(), int(state.step)
        if step == self.last:
            return
        if self._on is not None:  # together with all other processes, which wait for one another
            made = write_parts(self.folder, state.tree, self._on, epoch, batch, self.best, self.beside, self.run)
            self.last = step
            if not self._silent:
                self._tidy(step, self.best, *made)
            self._took, self._at = time.monotonic() - began, time.monotonic()
        elif not self._silent:
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

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
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
        if self.metric is None or not (report.complete or report.validate):
            return None
        value = report.validate.get(self.metric)
        if not isinstance(value, int | float):
            raise ConfigError(
                f"best={self.metric!r} is no number that validation gives{did_you_mean(self.metric, report.validate)}"
            )
        better, old = direction(self.metric, report.better, self.better), self.best
        new = rank(self.metric, better, report.validate)
        before = None if old is None else rank(self.metric, better, {"loss": old.loss, self.metric: old.value})
        if value != value or (before is not None and new > before):
            return None
        since = (old.since or old.epoch) if old is not None and old.value == value else report.epoch
        return Best(self.metric, float(value), report.epoch, report.step, since, new[1] if new[1] < math.inf else None)

    def _write(self, jobs: list[_Job]) -> float:
        """Seconds that it took."""
        began = time.monotonic()
        for job in jobs:
            made = write(self.folder, job.tree, job.epoch, job.batch, job.best, self.beside, self.run)
            self._tidy(int(job.tree["step"]), job.best, *made)
        return time.monotonic() - began

    def _tidy(self, step: int, best: Best | None, made: Path, checksum: str) -> None:
        """Remove what is neither among the newest nor the best. Newer ones could not be used, and are put aside."""
        there = steps(self.folder)
        newest = sorted(n for n, _ in there if n <= step)[-self.keep :]
        stay = {path.name for n, path in there if n in newest or (best is not None and n == best.step)}
        if self.wrote is not None:
            self.wrote(made.name, checksum, stay)
        for n, path in there:
            if n > step:
                with suppress(OSError):
                    path.rename(path.with_name(f"{_ASIDE}{path.name}"))
            elif path.name not in stay:
                files.remove(path)


@frozen(eq=False)
class _Job:
    """What is to be written: a copy of State's tree, where in the order it is, and the best epoch up to there."""

    tree: dict[str, Any]
    epoch: int
    batch: int
    best: Best | None
