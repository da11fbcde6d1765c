"""`pipe eval`: how well a run's model does, on what it held out or on other data."""

from __future__ import annotations

import json
from typing import Any

from cli import classes, record
from cli.new_data import Batches
from cli.progress import plain, tell, warn
from cli.recipes.setting import refusal
from cli.saved_run import Past
from pipeline.loop import validated
from pipeline.state import format_metric


def run(past: Past, data: str | None, *, weights: str, as_json: bool) -> None:
    """Print every metric, each class's figures, and the confusion matrix."""
    made, state, saved = past.restored(weights)
    if data is None:
        for difference in record.differences(past.document, record.facts(made, state)):
            warn(f"{difference}: the last digits may differ")
        if made.held_out is None:
            raise refusal(f"{past.folder} held nothing out; name data by --data")
    seen: Any = made.held_out if data is None else Batches(past, data)
    program: Any = made.pipe
    if past.config.run.compile:
        program = made.pipe.compile(backend=past.config.run.backend, fallback="eager")
    metrics = validated(made.pipe, program, state, {"": made.validation if data is None else seen})
    about = past.about if past.config.pipeline.name is None else None
    figures = None if about is None else classes.figures(made.pipe, about, state, seen)
    if as_json:
        found = {"run": str(past.folder), "weights": weights, "epoch": saved.epoch, "step": saved.step,
                 "data": data or past.config.source, "metrics": metrics}  # fmt: skip
        tell(json.dumps({**found, **({} if figures is None else figures.json)}, indent=1, ensure_ascii=False))
        return
    say = plain(False)
    say.print(f"run     {past.folder}, weights of epoch {saved.epoch} ({weights})")
    say.print(f"data    {data or f'{past.config.source}, what was held out'}")
    for name, value in metrics.items():
        if isinstance(value, int | float) and "/" not in name:
            say.print(f"        {format_metric(name, value)}")
    if figures is not None:
        say.print(f"\n{figures}\n")
        say.print(figures.matrix)
