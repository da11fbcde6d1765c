"""`pipe doctor`: check this machine for training."""

from __future__ import annotations

import click

from cli import as_json


@click.command("doctor")
def command() -> as_json.Found:
    """Check compiler, cores, GPU, cache, memory and disk, with advice for each problem.

    The exit code is 1 if something stops training.
    """
    from cli import doctor
    from cli.progress import tell

    found = doctor.examined()
    for line in doctor.lines(found):
        tell(line)
    return doctor.facts(found)
