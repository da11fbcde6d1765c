"""`pipe show`: what `pipe train` would train."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from cli.build import job, parameters
from cli.config import TrainConfig
from pipeline import Pipeline


def run(config: TrainConfig) -> None:
    """Print the pipeline's table, the model's parameters and where each value comes from."""
    made = job(config)
    params = made.pipe.init(config.seed).params
    say = Console(highlight=False, soft_wrap=True, markup=False)
    say.print(f"{config.data}: {made.data}\n\n{made.pipe}\n\n{made.model}")
    table = Table("parameter", "shape", "numbers", box=None, pad_edge=False, show_footer=True)
    table.columns[2].justify = "right"
    table.columns[0].footer, table.columns[2].footer = "all", f"{parameters(params):,}"
    for name, tensor in params.items():
        table.add_row(name, "x".join(map(str, tensor.shape)), f"{tensor.numel():,}")
    say.print(table)
    say.print("\n" + wiring(made.pipe))


def wiring(pipe: Pipeline) -> str:
    """A line for each value that passes from one stage to another: `outputs: forward.model -> loss.cross_entropy`."""
    writers = {name: "State" for s in pipe.stages for name in s.keeps}
    readers: dict[tuple[str, str], list[str]] = {}
    for s in pipe.graph:
        for name in s.values_read:
            readers.setdefault((name, writers.get(name, "batch")), []).append(s.name)
        writers |= dict.fromkeys(s.values_written, s.name)
    return "\n".join(f"{name}: {writer} -> {', '.join(names)}" for (name, writer), names in readers.items())
