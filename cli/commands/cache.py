"""`pipe cache`: the compiled programs on disk."""

from __future__ import annotations

import click

from cli import as_json, completion


@click.command("cache")
@click.argument(
    "action",
    default="list",
    metavar="[list|verify|clear]",
    shell_complete=completion.names(("list", "verify", "clear")),
)
def command(action: str) -> as_json.Found:
    """List the compiled programs on disk, check them for damage, or remove them all."""
    from cli.program_cache import run

    return run(action)
