"""`pipe profile`: where the time of a step goes."""

from __future__ import annotations

from typing import Any

import click

from cli import arguments, as_json
from cli.flags import settings
from cli.help import SettingsCommand


@click.command("profile", cls=SettingsCommand)
@arguments.source
@settings
@click.option("--steps", type=click.IntRange(1, 10_000), metavar="N", default=10, help="steps to look at [default: 10]")
@click.option("--trace", metavar="FILE", help="write a trace for https://ui.perfetto.dev")
def command(file: str | None, steps: int, trace: str | None, **options: Any) -> as_json.Found:
    """Show the time and the memory of a step by stage and submodule. Trains nothing.

    With the options of `pipe train`. The step is uncompiled, as a graph has no stages any more; the time of a compiled
    one is beside it, unless --no-compile is given. Forward and backward are of the same lines of code; kept is what the
    forward leaves in memory.
    """
    from cli.benchmark import profile

    return profile(arguments.train_config(file, options), steps=steps, trace=trace)
