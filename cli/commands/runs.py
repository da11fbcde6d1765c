"""`pipe runs`: list and compare runs."""

from __future__ import annotations

import click

from cli import as_json, completion


@click.command("runs")
@click.argument("folders", nargs=-1, metavar="[FOLDER | RUN RUN ...]", shell_complete=completion.runs)
@click.option("--sort", metavar="NAME", help="by a metric (best first), epochs, seconds or a setting")
@click.option("--filter", "filters", multiple=True, metavar="NAME=VALUE", help="only runs with this setting or state")
def command(folders: tuple[str, ...], sort: str | None, filters: tuple[str, ...]) -> as_json.Found:
    """List the runs in a FOLDER, with the settings in which they differ; show two or more RUNs side by side."""
    from cli.run_table import run

    return run(folders, sort=sort, filters=filters)
