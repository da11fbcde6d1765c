"""Progress: a training on a terminal or in a notebook: the graph being compiled, a bar with the time left, a line an
epoch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from typing import TypeAlias

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.spinner import Spinner
from rich.text import Text

from pipeline.passing import Reports
from pipeline.state import Report, State
from pipeline.text import shown

Doing: TypeAlias = Callable[[], str]
"""The current compilation, in words; "" between them."""

LINES, SILENCE = 50, 30.0
"""Approximate number of epochs printed in a long run, and the longest silence, in seconds."""


def moves(say: Console) -> bool:
    """Whether a line on a console can be replaced."""
    return (say.is_terminal or say.is_jupyter) and not say.quiet


@contextmanager
def compiling(say: Console, doing: Doing, hint: str) -> Iterator[None]:
    """Show the graph being compiled and the seconds so far; in a pipe, print a line at the start. `hint` says how to do
    without."""
    if not moves(say):
        say.print(f"compiling the step and the evaluation; {hint}")
        yield
        return
    spinner, began = Spinner("dots"), time.perf_counter()

    def line() -> Spinner:
        text = f"compiling {time.perf_counter() - began:.0f} s: {doing()}; {hint}"
        spinner.update(text=Text(text, overflow="ellipsis", no_wrap=True))  # a narrow terminal has no room for the hint
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


class _Said(ProgressColumn):
    """The last Report, or the graph being compiled."""

    def __init__(self, doing: Doing) -> None:
        super().__init__()
        self.doing = doing

    def render(self, task: Task) -> Text:
        return Text(f"compiling {doing}" if (doing := self.doing()) else task.description)


@contextmanager
def bar(say: Console, doing: Doing) -> Iterator[Callable[[Report], None]]:
    """Show a progress bar with the remaining time and, between steps, the graph being compiled; in a pipe, nothing."""
    if not moves(say):
        yield lambda report: None
        return
    columns = (BarColumn(), TimeRemainingColumn(compact=True), _Said(doing))
    with Progress(*columns, console=say, transient=True) as progress:
        task = progress.add_task("")

        def show(report: Report) -> None:
            if report.batches is None or report.epochs is None:
                total, done = report.epochs, report.epoch - (not report.complete)
            else:
                total, done = report.epochs * report.batches, (report.epoch - 1) * report.batches + report.batch
            progress.update(task, total=total, completed=done, description=shown(str(report)))

        yield show


class Follow:
    """The progress of `fit`: the graphs being compiled, a bar, and a line for each complete epoch and validation."""

    INTERVAL = 0.2
    """Seconds between moves of the bar."""

    def __init__(self, quiet: bool, doing: Doing) -> None:
        self.say = Console(quiet=quiet, highlight=False, soft_wrap=True, markup=False, emoji=False)
        self.doing = doing

    def compiling(self) -> AbstractContextManager[None]:
        return compiling(self.say, self.doing, "compile=False does without") if moves(self.say) else nullcontext()

    def reports(self, reports: Reports, inside: Callable[[Report], bool]) -> Reports:
        """Pass Reports on; those for which `inside` is true only move the bar."""
        sent: State | None = None
        due: Callable[[int], bool] | None = None
        with closing(reports), bar(self.say, self.doing) as show:
            while True:
                try:
                    report = next(reports) if sent is None else reports.send(sent)
                except StopIteration:
                    return
                show(report)
                due = due or printed(report.epochs or 1)
                if sent is None and (due(report.epoch) if report.complete else report.validate):
                    self.say.print(shown(str(report)))
                sent = None if inside(report) else (yield report)
