"""`pipe package`: a folder with a run's model, to hand over."""

from __future__ import annotations

import click

from cli import arguments, as_json


@click.command("package")
@arguments.run
@click.option("--out", metavar="FOLDER", help="[default: RUN/package]")
@arguments.weights
@arguments.trusted
@arguments.accepted
def command(run: str, out: str | None, weights: str, trust: bool, accept: bool) -> as_json.Found:
    """Write a folder that predicts and serves a RUN's model, and needs none of our code.

    It has the weights, the model as a program, a model card, predict.py, serve.py for HTTP, requirements.txt and a
    Dockerfile. predict.py gives the values of pipe predict. To share it on the Hub: hf upload NAME FOLDER
    """
    past = arguments.saved_run(run, trust, accept)
    from cli.packaging import package

    return {"file": str(package(past, out, weights=weights)), "run": run}
