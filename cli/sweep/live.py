"""Output of a sweep during training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table

from cli import ranking
from cli.sweep import picture
from cli.sweep.grid import Axis
from cli.sweep.groups import Chunk, Member
from cli.sweep.train import row
from pipeline import log
from pipeline.log import Row
from pipeline.state import format_metric

SHOWN = 8
"""Rows of the table of the best settings."""


@contextmanager
def shown(
    say: Console, axes: Sequence[Axis], members: Sequence[Member], results: Mapping[str, list[Row]], metric: str
) -> Iterator[Callable[[Chunk, Sequence[Row]], None]]:
    """A function to call after each epoch of a chunk.

    On a terminal, it shows the best settings so far; in a pipe, it prints a line for each finished chunk.
    """
    names = [a.name for a in axes]

    def best_so_far(chunk: Chunk, rows: Sequence[Row]) -> Table:
        last = {**rows[-1], "better": log.declared(rows)}
        now = {**results, **{m.name: [row(last, j)] for j, m in enumerate(chunk.members)}}
        points = [(m.chosen, now[m.name]) for m in members if m.name in now]
        done = sum(r[-1]["epoch"] == chunk.members[0].config.run.epochs for r in results.values())
        title = f"epoch {rows[-1]['epoch']} of {chunk.end}, {done} of {len(members)} runs done"
        return picture.table(names, points, metric, most=SHOWN, title=title)

    def line(chunk: Chunk, rows: Sequence[Row]) -> None:
        if rows[-1]["epoch"] == chunk.end:
            values = [v for v in rows[-1][f"validate/{metric}"] if v is not None]
            pick = max if ranking.direction_of(metric, rows) == "high" else min
            best = format_metric(metric, pick(values, default=float("nan")))
            up_to = f" up to epoch {chunk.end}" if chunk.end < chunk.members[0].config.run.epochs else ""
            say.print(f"trained {len(chunk.members)} runs{up_to}, the best with {best}")

    if not say.is_terminal or say.quiet:
        yield line
        return
    with Live(console=say, transient=True, refresh_per_second=4) as live:
        yield lambda chunk, rows: live.update(best_so_far(chunk, rows))
