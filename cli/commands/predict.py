"""`pipe predict`: a run's predictions for other data."""

from __future__ import annotations

import click

from cli import arguments, as_json, completion
from cli.recipes.setting import refusal


@click.command("predict")
@arguments.run
@click.option(
    "--data",
    required=True,
    metavar="DATA",
    shell_complete=completion.data,
    help="file or folder of the kind that the run was trained on",
)
@click.option("--out", metavar="FILE", help="preds.csv, .parquet or .npz  [default: CSV to the terminal]")
@click.option("--raw-text", is_flag=True, help="do not escape formulas and control characters in CSV")
@arguments.skip_bad
@arguments.weights
@arguments.trusted
@arguments.accepted
def command(
    run: str, data: str, out: str | None, raw_text: bool, skip_bad: bool, weights: str, trust: bool, accept: bool
) -> as_json.Found:
    """Predict DATA with a RUN's model: its rows, in their order, with the predictions beside them.

    Columns are matched by name; the target may be missing. A file may be larger than memory. A .npz file has only the
    predictions, and by --skip-bad the lines of their rows. The runs of --folds predict their mean. In CSV, a text that
    a spreadsheet would take for a formula gets a ' in front.
    """
    if out is None and as_json.asked():
        raise refusal("--json needs a file for the predictions: add --out preds.csv")
    runs = arguments.saved_runs(run, trust, accept)
    from cli.prediction_files import predict

    return predict(runs, data, out, weights=weights, raw=raw_text, skip_bad=skip_bad)
