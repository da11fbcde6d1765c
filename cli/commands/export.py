"""`pipe export`: a run's model as a file that needs none of our code."""

from __future__ import annotations

import click

from cli import arguments, as_json


@click.command("export")
@arguments.run
@click.option(
    "--format", "kind", type=click.Choice(["torch", "onnx", "weights", "peft", "transformers"]),
    default="torch",
    help="a torch.export program, ONNX, the weights alone, the adapter of --lora, or a folder of transformers  "
    "[default: torch]",
)  # fmt: skip
@click.option(
    "--out", metavar="FILE", help="[default: RUN/model.pt2, model.onnx, weights.safetensors, adapter or transformers]"
)
@arguments.weights
@arguments.trusted
@arguments.accepted
def command(run: str, kind: str, out: str | None, weights: str, trust: bool, accept: bool) -> as_json.Found:
    """Write a RUN's model as a file that needs none of our code, with its data preparation inside.

    Batches may have any size. The file is compared with the model on held-out samples before it is written; a JSON
    beside it describes inputs and outputs. The runs of --folds are one program, which gives their mean, if their
    columns have the same categories.
    """
    runs = arguments.saved_runs(run, trust, accept)
    from cli.exporting import export

    return export(runs, kind, out, weights=weights)
