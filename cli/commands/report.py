"""`pipe report`: a run as one HTML file."""

from __future__ import annotations

from pathlib import Path

import click

from cli import arguments, as_json


@click.command("report")
@arguments.run
@click.option("--out", metavar="FILE", help="[default: RUN/report.html]")
@arguments.trusted
@arguments.accepted
def command(run: str, out: str | None, trust: bool, accept: bool) -> as_json.Found:
    """Write one HTML file about a RUN: curves, classes, its worst predictions, settings."""
    past = arguments.saved_run(run, trust, accept)
    from cli.folder import replace
    from cli.html_report import page
    from cli.progress import tell

    path = Path(out) if out is not None else past.folder / "report.html"
    replace(path, page(past).encode())
    tell(str(path))
    return {"file": str(path), "run": run}
