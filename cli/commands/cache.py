"""`pipe cache`: the compiled programs on disk."""

from __future__ import annotations

import click

from cli import as_json


@click.command("cache")
@click.argument("action", type=click.Choice(["list", "verify", "clear"]), default="list")
def command(action: str) -> as_json.Found:
    """List the compiled programs on disk, check them for damage, or remove them all."""
    from cli.program_cache import run

    return run(action)
