"""`pipe doctor`: check this machine for training."""

from __future__ import annotations

import json
import sys

import click


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="as JSON")
def command(as_json: bool) -> None:
    """Check compiler, cores, GPU, cache, memory and disk, with advice for each problem.

    The exit code is 1 if something stops training.
    """
    from cli import doctor
    from cli.progress import tell

    found = doctor.examined()
    if as_json:
        tell(json.dumps(doctor.facts(found), indent=1, ensure_ascii=False))
    else:
        for line in doctor.lines(found):
            tell(line)
    sys.exit(0 if doctor.well(found) else 1)
