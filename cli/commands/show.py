"""`pipe show`: the pipeline of a run, without training."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from cli import arguments, as_json
from cli.flags import settings
from cli.help import SettingsCommand

if TYPE_CHECKING:
    from cli.config import TrainConfig
    from pipeline import State
    from pipeline.description import Description

POINTS = 20_000
"""Steps of a long run at which a schedule is evaluated."""
WIDTH, HEIGHT = 72, 13
"""Width and height of a chart, in characters."""


@click.command("show", cls=SettingsCommand)
@arguments.source
@partial(settings, bare={"schedule": "; --schedule alone draws the run's"})
def command(file: str | None, **options: Any) -> as_json.Found:
    """Show the stages, their wiring and the parameters of `pipe train` with the same options.

    With --schedule, also draw each hyperparameter that has a schedule.
    """
    draw = options["schedule"] is not None
    options["schedule"] = options["schedule"] or None
    return show(arguments.train_config(file, options), draw=draw)


def show(config: TrainConfig, *, draw: bool) -> dict[str, Any]:
    from rich.table import Table

    from cli import build
    from cli.progress import narrowed, plain
    from cli.settled import settled

    config, data = settled(config)
    job = build.job(config, data)
    state = build.first(job, config)
    say = plain(False)
    say.print(f"{config.source}: {job.data}\n")
    say.print(narrowed(str(job.stages), say))
    say.print(f"\n{job.model}")
    table = Table("parameter", "shape", "numbers", box=None, pad_edge=False, show_footer=True)
    table.columns[2].justify = "right"
    table.columns[0].footer, table.columns[2].footer = "all", f"{build.parameters(state.params):,}"
    for name, tensor in state.params.items():
        table.add_row(name, "x".join(map(str, tensor.shape)), f"{tensor.numel():,}")
    say.print(table)
    if draw:
        say.print("\n" + schedules(job.stages, state, build.steps(job.stages.load, config) or 0))
    stages = [{"name": s.name, "reads": s.values_read, "writes": s.values_written} for s in job.stages.stages]
    shapes = {name: tensor.shape for name, tensor in state.params.items()}
    return {"data": config.source, "model": job.model, "parameters": shapes, "stages": stages, "settings": config.flat}


def schedules(pipe: Description, state: State, steps: int) -> str:
    """A chart of each hyperparameter with a schedule, over a run of so many steps."""
    import torch

    from pipeline import Schedule
    from pipeline.programs.hyper import hyper_values

    at = torch.linspace(0, steps - 1, min(steps, POINTS), dtype=torch.float64).round().long()
    values = torch.vmap(lambda step: hyper_values(pipe.graph, {**state.tree, "step": step}))(at.to(state.step))
    charts = []
    for s in pipe.graph:
        for name, schedule in s.hyper.items():
            if isinstance(schedule, Schedule):
                until = f", as long as {' and '.join(schedule.watches)} gets better" if schedule.watches else ""
                title = f"{s.name}.{name} at each of {steps:,} steps{until}"
                charts.append(chart(title, at.tolist(), values[s.name][name].tolist()))
    return "\n\n".join(charts) or "no hyperparameter of this run has a schedule"


def chart(title: str, steps: Sequence[int], values: Sequence[float]) -> str:
    """A curve in braille characters; the axes have the numbers at their ends.

    >>> chart("lr", [0, 99], [0.1, 0.1]).split()[-3:]
    ['0', '99', 'step']
    """
    import plotext

    plotext.terminal.limit(False, False)  # its size does not depend on the terminal
    figure = plotext.figure
    figure.clear()
    figure.plot_size(WIDTH, HEIGHT)
    figure.title(title)
    figure.label("step")
    for axis, numbers, form in (("x", steps, ","), ("y", values, ".4g")):
        ends = sorted({min(numbers), max(numbers)})
        figure.ruler(axis).ticks(ends, [format(n, form) for n in ends])
    figure.draw(figure.signal([*steps], [*values], marker="braille").lines())
    lines = figure.build().string(colorless=True).splitlines()
    return "\n".join(line.rstrip() for line in lines)
