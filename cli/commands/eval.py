"""`pipe eval`: measure a run's model."""

from __future__ import annotations

import click

from cli import arguments, as_json, completion


@click.command("eval")
@arguments.run
@click.option(
    "--data",
    metavar="DATA",
    shell_complete=completion.data,
    help="other data of the same kind  [default: the run's held-out data]",
)
@arguments.skip_bad
@click.option("--weights", default="best", help="best, last, or the step of a checkpoint", show_default=True)
@arguments.trusted
@arguments.accepted
def command(run: str, data: str | None, skip_bad: bool, weights: str, trust: bool, accept: bool) -> as_json.Found:
    """Measure a RUN's model: all metrics, each class, and the confusion matrix.

    On the run's held-out data, the figures equal the training's output for that epoch. The runs of --folds are measured
    together: on other data their mean, without --data each on the samples that it held out.
    """
    runs = arguments.saved_runs(run, trust, accept)
    from cli import evaluation
    from cli.progress import plain

    if len(runs) > 1:
        found = evaluation.of_folds(runs, data, skip_bad=skip_bad, weights=weights)
    else:
        found = evaluation.of_run(runs[0], data, skip_bad=skip_bad, weights=weights)
    say = plain(False)
    for line in found.lines:
        say.print(line)
    return found.json
