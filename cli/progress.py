"""Output of a run during training, and the signals that stop it."""

from __future__ import annotations

import errno
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.spinner import Spinner
from rich.text import Text

from cli import processes
from pipeline import Report
from pipeline.text import shown

LINES, SILENCE = 50, 30.0
"""Approximate number of epochs printed in a long run, and the longest silence, in seconds."""


def plain(quiet: bool) -> Plain:
    """A console for stdout. It prints only on the first process, and nothing if quiet."""
    quiet = quiet or not processes.first()
    return Plain(quiet=quiet, highlight=False, soft_wrap=True, markup=False, emoji=False)


def tell(text: str) -> None:
    """Print a text with its control characters escaped."""
    print(shown(text))


def warn(message: str) -> None:
    """Print a message to stderr, once for all processes."""
    if processes.first():
        say = Plain(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)
        with suppress(BrokenPipeError):
            say.print(f"pipe: {message}")


class Plain(Console):
    """A rich Console that escapes control characters, and raises BrokenPipeError if the terminal or reader is gone."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(shown(text), **options)

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError as e:
            if e.errno != errno.EIO:
                raise
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        processes.drop_closed_outputs()
        raise BrokenPipeError


@contextmanager
def waiting(say: Console, doing: Callable[[], str]) -> Iterator[None]:
    """On a terminal, show the program being compiled and the seconds so far; in a pipe, print a line at the start."""
    if not say.is_terminal or say.quiet:
        say.print("compiling the step and the evaluation; --no-compile avoids it")
        yield
        return
    spinner = Spinner("dots")

    def line() -> Spinner:
        spinner.update(text=Text(f"compiling; --no-compile avoids it: {doing()}"))
        return spinner

    with Live(get_renderable=line, console=say, transient=True, refresh_per_second=8):
        yield


def printed(epochs: int) -> Callable[[int], bool]:
    """Whether to print an epoch: all of a short run; of a long one the first, the last, round ones, and one after a
    long silence.

    >>> due = printed(3000)
    >>> [epoch for epoch in range(1, 3001) if due(epoch)][:3]
    [1, 100, 200]
    """
    steps = (digit * 10**power for power in range(20) for digit in (1, 2, 5))
    step = 1 if epochs <= 2 * LINES else next(n for n in steps if epochs <= n * LINES)
    last = time.monotonic()

    def due(epoch: int) -> bool:
        nonlocal last
        now = epoch % step == 0 or epoch in (1, epochs) or time.monotonic() - last > SILENCE
        last = time.monotonic() if now else last
        return now

    return due


@contextmanager
def live(say: Console) -> Iterator[Callable[[Report], None]]:
    """Show a progress bar with the remaining time, on a terminal; in a pipe, nothing."""
    if not say.is_terminal or say.quiet:
        yield lambda report: None
        return
    columns = (BarColumn(), TimeRemainingColumn(compact=True), TextColumn("{task.description}"))
    with Progress(*columns, console=say, transient=True) as progress:
        task = progress.add_task("")

        def show(report: Report) -> None:
            if report.batches is None or report.epochs is None:
                total, done = report.epochs, report.epoch - (not report.complete)
            else:
                total, done = report.epochs * report.batches, (report.epoch - 1) * report.batches + report.batch
            progress.update(task, total=total, completed=done, description=shown(str(report)))

        yield show


@contextmanager
def interrupts(caught: list[int]) -> Iterator[None]:
    """Catch the first SIGINT, SIGTERM or SIGHUP, so that the loop ends between two steps; a second one kills."""

    def note(number: int, _: Any) -> None:
        caught.append(number)
        processes.drop_closed_outputs()
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, *processes.stopping())}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
