"""`pipe bench`: measure how fast a run would step."""

from __future__ import annotations

from typing import Any

import click

from cli import arguments, as_json
from cli.flags import settings
from cli.help import SettingsCommand


@click.command("bench", cls=SettingsCommand)
@arguments.source
@settings
@click.option("--seconds", type=float, metavar="X", default=2.0, help="seconds to measure each way  [default: 2]")
def command(file: str | None, seconds: float, **options: Any) -> as_json.Found:
    """Measure the speed of `pipe train` with the same options on this machine. Trains nothing.

    The ways to step are timed in turns: eager, compiled with one step a call, and fused with many steps a call. The
    floor is an eager step's matrix products, convolutions and attention alone, called from Python one by one, without
    bias, activations, loss, update or batch. Small ones can be quicker inside a fused step.
    """
    from cli.benchmark import run

    return run(arguments.train_config(file, options), seconds=seconds)
