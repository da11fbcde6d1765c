"""`pipe explain`: the story of a run's graphs."""

from __future__ import annotations

from typing import Any

import click

from cli import arguments, as_json
from cli.flags import settings
from cli.help import SettingsCommand


@click.command("explain", cls=SettingsCommand)
@arguments.source
@settings
def command(file: str | None, **options: Any) -> as_json.Found:
    """Compile the graphs of a run, and show what was captured, fused, checked and kept. Trains nothing.

    With the options of `pipe train`. If steps run uncompiled, it says why.
    """
    from cli.benchmark import explain

    return explain(arguments.train_config(file, options))
