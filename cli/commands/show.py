"""`pipe show`: what `pipe train` would train."""

from __future__ import annotations

import torch
from rich.table import Table

from cli import chart
from cli.build import first, job, parameters, steps
from cli.config import TrainConfig
from cli.progress import plain
from pipeline import Schedule, State
from pipeline.description import Description
from pipeline.programs.hyper import hyper_values

POINTS = 20_000
"""Of a longer run, so many steps are looked at."""


def run(config: TrainConfig, *, draw: bool = False) -> None:
    """Print the pipeline's table, the model's parameters and where each value comes from; with `draw`, the schedules
    too."""
    made = job(config)
    state = first(made, config)
    params = state.params
    say = plain(False)
    say.print(f"{config.source}: {made.data}\n\n{made.stages}\n\n{made.model}")
    table = Table("parameter", "shape", "numbers", box=None, pad_edge=False, show_footer=True)
    table.columns[2].justify = "right"
    table.columns[0].footer, table.columns[2].footer = "all", f"{parameters(params):,}"
    for name, tensor in params.items():
        table.add_row(name, "x".join(map(str, tensor.shape)), f"{tensor.numel():,}")
    say.print(table)
    say.print("\n" + wiring(made.stages))
    if draw:
        say.print("\n" + schedules(made.stages, state, steps(made.stages.load, config) or 0))


def schedules(pipe: Description, state: State, steps: int) -> str:
    """The course of each hyperparameter with a schedule over a run of so many steps, drawn."""
    at = torch.linspace(0, steps - 1, min(steps, POINTS), dtype=torch.float64).round().long()
    values = torch.vmap(lambda step: hyper_values(pipe.graph, {**state.tree, "step": step}))(at.to(state.step))
    charts = []
    for s in pipe.graph:
        for name, schedule in s.hyper.items():
            if isinstance(schedule, Schedule):
                until = f", as long as {' and '.join(schedule.watches)} gets better" if schedule.watches else ""
                title = f"{s.name}.{name} at each of {steps:,} steps{until}"
                charts.append(chart.draw(title, at.tolist(), values[s.name][name].tolist()))
    return "\n\n".join(charts) or "no hyperparameter of this run has a schedule"


def wiring(pipe: Description) -> str:
    """A line for each value that passes from one stage to another: `outputs: forward.model -> loss.cross_entropy`."""
    writers = {name: "State" for s in pipe.stages for name in s.keeps}
    readers: dict[tuple[str, str], list[str]] = {}
    for s in pipe.graph:
        for name in s.values_read:
            readers.setdefault((name, writers.get(name, "batch")), []).append(s.name)
        writers |= dict.fromkeys(s.values_written, s.name)
    return "\n".join(f"{name}: {writer} -> {', '.join(names)}" for (name, writer), names in readers.items())
