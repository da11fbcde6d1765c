"""`pipe eval`: measure a run's model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from cli import arguments
from cli.recipes.setting import refusal

if TYPE_CHECKING:
    from cli.saved_run import Past


@click.command("eval")
@click.argument("run")
@click.option("--data", metavar="DATA", help="other data of the same kind  [default: the run's held-out data]")
@arguments.skip_bad
@click.option("--json", "as_json", is_flag=True, help="as JSON")
@click.option("--weights", default="best", help="best, last, or the step of a checkpoint  [default: best]")
@arguments.trusted
@arguments.accepted
def command(
    run: str, data: str | None, skip_bad: bool, as_json: bool, weights: str, trust: bool, accept: bool
) -> None:  # fmt: skip
    """Measure a RUN's model: all metrics, each class, and the confusion matrix.

    On the run's held-out data, the figures equal the training's output for that epoch.
    """
    evaluate(arguments.saved_run(run, trust, accept), data, skip_bad=skip_bad, weights=weights, as_json=as_json)


def evaluate(past: Past, data: str | None, *, skip_bad: bool, weights: str, as_json: bool) -> None:
    from cli import baseline, classes, record
    from cli.decision import decided
    from cli.new_data import Batches
    from cli.progress import plain, tell, warn
    from pipeline.loop import validated
    from pipeline.state import format_metric

    job, state, saved = past.restored(weights)
    if data is None:
        for difference in record.differences(past.document, record.facts(job, state)):
            warn(f"{difference}: the last digits may differ")
        if job.held_out is None:
            raise refusal(f"{past.folder} held nothing out; name data by --data")
    samples: Any = job.held_out if data is None else Batches(past, data, skip_bad)
    about = past.about if past.config.pipeline.name is None else None
    decision = past.decision(weights)
    pipe = decided(job.pipe, decision)
    program: Any = pipe
    if past.config.run.compile:
        program = pipe.compile(backend=past.config.run.backend, fallback="eager")
    metrics = validated(pipe.program, program, state, {"": job.validation if data is None else samples})
    figures = None if about is None else classes.figures(job.pipe, about, state, samples, decision)
    base = baseline.baseline(job, None if data is None else samples)
    if as_json:
        facts = {"run": str(past.folder), "weights": weights, "epoch": saved.epoch, "step": saved.step,
                 "data": data or past.config.source, "metrics": metrics,
                 **({} if base is None else {"baseline": base.metrics}),
                 **({} if about is None else decision.facts(about))}  # fmt: skip
        tell(json.dumps({**facts, **({} if figures is None else figures.json)}, indent=1, ensure_ascii=False))
        return
    say = plain(False)
    say.print(f"run     {past.folder}, weights of epoch {saved.epoch} ({weights})")
    say.print(f"data    {data or f'{past.config.source}, held-out samples'}")
    for name, value in metrics.items():
        if isinstance(value, int | float) and "/" not in name:
            say.print(f"        {format_metric(name, value)}")
    for line in decision.lines(about) if about is not None else ():
        say.print(f"        {line}")
    if base is not None:
        best = metric if (metric := past.config.run.best or job.best) in metrics else None
        say.print(base.line(best))
        for line in base.warning(job, state, best, metrics[best]) if best is not None else ():
            say.print(line)
    if figures is not None:
        say.print(f"\n{figures}\n")
        say.print(figures.matrix)
        for line in figures.unseen:
            say.print(line)
