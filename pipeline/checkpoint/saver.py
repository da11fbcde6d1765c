"""Saver: schedule and retention of a run's checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from torch.utils import _pytree as pytree

from pipeline import files, mesh, place
from pipeline.checkpoint.saved import Best, Saved, steps
from pipeline.checkpoint.write import Content, unwritable, write, write_shards
from pipeline.direction import Direction, direction, rank
from pipeline.element import counts
from pipeline.errors import CheckpointError, ConfigError, did_you_mean
from pipeline.pipe import Trainable
from pipeline.programs.mesh import sharding_of
from pipeline.state import Report, State

SHARE = 0.005
"""Largest share of the time for checkpoints, except checkpoints by `steps`."""
_START, _RATE = 5e-3, 2e8
"""Estimated cost of the first checkpoint: seconds, and bytes a second."""
_ASIDE = "aside-"


class Saver:
    """Writes checkpoints of a run into a folder, on its own thread, and removes old ones.

    - `keep`: number of newest checkpoints to keep.
    - `best`: a metric, whose best validation's checkpoint is kept as well; ties go by the validation loss, then to the
      later one. `better`: "high" or "low"; by default what the metric declares.
    - `steps`: also write at multiples of this number of steps, if `fit(every=steps)` yields Reports there.
    - `minutes`: also write at about this interval inside an epoch, if `fit(interval=...)` yields Reports there.
    - `saved`: the checkpoint that the run resumes from.
    - `beside`: files, such as a log, to fsync before each checkpoint.
    - `run`: the name of the run, for its checkpoints. `wrote`: called after each checkpoint with its folder's name, its
      checksum and the names of all kept ones, before others are removed.
    - `pipe`: the pipeline, needed on a mesh. All processes call `offer`; the first writes, or with shards, each process
      its own.

    Epochs and minutes are skipped if checkpoints would take more than 0.5 % of the time. Use it as a context, or call
    close().
    """

    def __init__(
        self, folder: str | Path, *, keep: int = 2, best: str | None = None, better: Direction | None = None,
        steps: int | None = None, minutes: float = 5.0, saved: Saved | None = None, beside: Sequence[Path] = (),
        pipe: Trainable | None = None, run: str | None = None,
        wrote: Callable[[str, str, Collection[str]], None] | None = None,
    ) -> None:  # fmt: skip
        counts("", keep=keep, steps=1 if steps is None else steps)
        if pipe is None and mesh.several():
            raise ConfigError("only one of several processes may write: pass the pipeline, Saver(..., pipe=pipe)")
        self.folder = Path(folder)
        self.keep, self.metric, self.better, self.steps, self.minutes = keep, best, better, steps, minutes
        self.best = saved.best if saved is not None and saved.best and saved.best.metric == best else None
        self.beside, self.run, self.wrote = tuple(beside), run, wrote
        self.last = saved.step if saved is not None else -1
        """Step of the newest checkpoint, written or being written."""
        self._unwritten: Content | None = None
        """The best epoch, if not written yet."""
        self._writer = ThreadPoolExecutor(1)
        self._writing: Future[float] | None = None
        self._took: float | None = None
        """Seconds of the last checkpoint."""
        self._at = time.monotonic()
        """Time of its end."""
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
        """Write a checkpoint of a Report's State if one is due, or `now`; returns whether it did.

        Raises CheckpointError if this one, or the one before it, can't be written. Earlier ones stay.
        """
        epoch, batch = (report.epoch, 0) if report.complete else (report.epoch - 1, report.batch)
        improved = self._improved(report)
        if improved is not None:
            self.best, self._unwritten = improved, None
        due = now or self._due(report)
        if self._on is not None:  # all processes write
            due = mesh.broadcast(due or improved is not None)
        if due:
            self.save(report.state, epoch, batch)
            return True
        if improved is not None and not self._silent:
            self._unwritten = Content(place.host(report.state.tree), epoch, batch, improved)
        return False

    def save(self, state: State, epoch: int, batch: int) -> None:
        """Write a checkpoint of a State after `epoch` epochs and `batch` batches, on the writer thread."""
        self._finish()
        began, step = time.monotonic(), int(state.step)
        if step == self.last:
            return
        if self._on is not None:  # all processes together, not on threads
            content = Content(state.tree, epoch, batch, self.best)
            written = write_shards(self.folder, content, self._on, self.beside, self.run)
            self.last = step
            if not self._silent:
                self._tidy(content, *written)
            self._took, self._at = time.monotonic() - began, time.monotonic()
        elif not self._silent:
            contents = [self._unwritten] if self._unwritten is not None else []
            contents.append(Content(place.host(state.tree), epoch, batch, self.best))
            self.last, self._unwritten = step, None
            copied = time.monotonic() - began
            self._writing = self._writer.submit(lambda: copied + self._write(contents))

    def close(self) -> None:
        """Write pending checkpoints, and wait until they are on disk."""
        try:
            self._finish()
            if self._unwritten is not None:
                content, self._unwritten = self._unwritten, None
                self._write([content])
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
            hint = did_you_mean(self.metric, report.validate)
            raise ConfigError(f"best={self.metric!r} is no numeric metric of the validation{hint}")
        better, old = direction(self.metric, report.better, self.better), self.best
        new = rank(self.metric, better, report.validate)
        before = None if old is None else rank(self.metric, better, {"loss": old.loss, self.metric: old.value})
        if value != value or (before is not None and new > before):
            return None
        since = old.since if old is not None and old.value == value else report.epoch
        return Best(self.metric, float(value), report.epoch, report.step, since, new[1] if new[1] < math.inf else None)

    def _write(self, contents: list[Content]) -> float:
        """Write checkpoints; returns the seconds."""
        began = time.monotonic()
        for content in contents:
            self._tidy(content, *write(self.folder, content, self.beside, self.run))
        return time.monotonic() - began

    def _tidy(self, content: Content, path: Path, checksum: str) -> None:
        """Remove checkpoints that are neither among the newest nor the best. Later ones, which a resumed run could not
        use, are renamed."""
        step, best, there = content.step, content.best, steps(self.folder)
        newest = sorted(n for n, _ in there if n <= step)[-self.keep :]
        stay = {path.name for n, path in there if n in newest or (best is not None and n == best.step)}
        if self.wrote is not None:
            self.wrote(path.name, checksum, stay)
        for n, path in there:
            if n > step:
                with suppress(OSError):
                    path.rename(path.with_name(f"{_ASIDE}{path.name}"))
            elif path.name not in stay:
                files.remove(path)
