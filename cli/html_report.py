"""A run as one HTML file; the page itself is templates/report.html."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from cli import classes, ranking, run_table
from cli import config as settings
from cli.flags import words
from cli.progress import warn
from cli.sampling import sample_held_out
from cli.saved_run import Past
from cli.settled import by_recipe
from cli.worst import Sample, worst
from pipeline import plot
from pipeline.errors import PipeError
from pipeline.state import format_metric
from pipeline.text import shown


def page(past: Past) -> str:
    """The report as HTML. All texts are escaped, their control characters too."""
    facts = past.document.get("facts", {})
    versions = past.document.get("versions", {})
    best = _best(past)
    curves = plot.svg(plot.curves(past.rows, best=best[1] if best else None)) if past.rows else None
    return template("report.html", autoescape=True, finalize=_text, lstrip_blocks=True).render(
        title=past.folder.name,
        summary=summary(past),
        curves=curves and Markup(curves),
        metrics=_metrics(past, best) if past.rows else None,
        command=command(past),
        settings=[(f"{t}.{k}", str(v)) for t, values in past.config.tables.items() for k, v in values.items()],
        facts=[
            *((k, str(v)) for k, v in facts.items() if k != "hyper"),
            *((f"version of {k}", str(v)) for k, v in versions.items()),
        ],
        **_measured(past),
    )


def template(name: str, **options: Any) -> Template:
    """A file of templates/."""
    environment = Environment(loader=PackageLoader("cli"), undefined=StrictUndefined, trim_blocks=True, **options)
    return environment.get_template(name)


def _best(past: Past) -> tuple[int, str, float] | None:
    """The best epoch, its metric and its value; of a member of a sweep, the last one, as it keeps no others."""
    best = ranking.best_epoch(past.rows, past.config.run.best)
    try:
        epoch = past.saved("best").epoch
    except PipeError:  # its checkpoints are gone
        return best
    row = next((r for r in past.rows if r["epoch"] == epoch), {})
    value = None if best is None else row.get(f"validate/{best[1]}")
    return best if best is None or value is None else (epoch, best[1], value)


def _text(value: object) -> object:
    """A value as text on the page."""
    if isinstance(value, Markup):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    return "" if value is None else shown(str(value))


def command(past: Past) -> str:
    """The command that trains the run again: data, model, optimizer, and each setting that is no default then."""
    flat, function, run = past.config.flat, past.config.pipeline.name, past.config.run
    named: dict[str, Any] = {"pipeline": function}
    if function is None:
        named = {name: flat[name] for name in ("data", "model", "optimizer")}
        flat["lr"] = past.config.optimizer.base
    more = named
    idle = ["out", "shard", *([] if run.compile else ["eager_steps", "backend"])]
    if run.splits_by == run.seed:
        idle.append("split_seed")
    while more:  # a setting may change the defaults of others
        defaults = settings.make(named)
        if function is None:
            defaults = by_recipe(defaults, past.about.fixed, past.facts.get("training_samples", 1))
        known = {**defaults.flat, "lr": defaults.optimizer.base}
        more = {name: value for name, value in flat.items()
                if name not in (*named, *idle) and value not in (None, known.get(name))}  # fmt: skip
        named |= more
    arguments = [] if function is None else [function]
    for name, value in named.items():
        if name != "pipeline":
            arguments += words(name, value)
    return shlex.join(["pipe", "train", *arguments])


def summary(past: Past) -> list[str]:
    """Lines on the data, the model and the training."""
    facts, best = past.facts, _best(past)
    training, held_out = (facts.get(f"{name}_samples", "?") for name in ("training", "held_out"))
    lines = [f"{past.config.source}: {training} training and {held_out} held-out samples"]
    if past.config.pipeline.name is None:
        lines += past.about.notes
    if "model" in facts:
        lines.append(f"{facts['model']}: {facts.get('parameters', 0):,} parameters")
    if best is not None:
        word = "best " * (best == ranking.best_epoch(past.rows, past.config.run.best))
        lines.append(f"{word}{format_metric(best[1], best[2])} in epoch {best[0]} of {past.rows[-1]['epoch']}")
    seconds = sum(row.get("seconds") or 0 for row in past.rows)
    took = f"{run_table.duration(seconds)} of training on {facts.get('device', '?')}"
    return [*lines, f"{took}, {facts.get('threads', '?')} threads"]


def _metrics(past: Past, best: tuple[int, str, float] | None) -> tuple[list[str], list[list[Any]]]:
    """Head and rows of a table: each metric in the best epoch and the last one."""
    last = past.rows[-1]
    epochs = [next((r for r in past.rows if best is not None and r["epoch"] == best[0]), last), last]
    names = dict.fromkeys(k.partition("/")[2] for k in last if k.startswith(("train/", "validate/")))
    head = [f"epoch {r['epoch']}, {split}" for r in epochs for split in ("training", "held out")]
    rows = [[name, *(_number(r.get(f"{split}/{name}")) for r in epochs for split in ("train", "validate"))]
            for name in names]  # fmt: skip
    return ["metric", *head], rows


def _number(value: Any) -> Any:
    return value if isinstance(value, int | float) else None


def _measured(past: Past) -> dict[str, Any]:
    """Classes and the worst samples of the best epoch on the held-out data, or the reason for leaving them out."""
    parts: dict[str, Any] = {"fault": None, "classes": None, "worst": (), "worst_table": None, "sample": None}
    if past.config.pipeline.name is not None:
        return parts
    try:
        job, state, _ = past.restored("best")
        about = past.about
        figures = classes.figures(job.pipe, about, state, job.held_out, past.decision("best"))
        if figures is not None:
            rows = [*zip(figures.names, figures.precision, figures.recall, figures.f1, strict=True)]
            parts["classes"] = {"names": figures.names, "rows": rows, "confusion": figures.confusion}
        if about.task == "language modelling":
            parts["sample"] = sample_held_out(job, state)
        else:
            samples = worst(past, job, about)
            parts |= {"worst": samples, "worst_table": _worst_table(samples, about.target)}
    except PipeError as e:
        warn(f"classes and samples are left out: {e}")
        parts["fault"] = str(e)
    return parts


def _worst_table(samples: Sequence[Sample], target: str) -> tuple[list[str], list[list[Any]]]:
    names = [n for n in samples[0].cells if n not in target.split(", ")]
    head = ["held-out sample", f"true {target}", "predicted", "loss", *names]
    return head, [[s.row, s.true, s.predicted, s.loss, *(s.cells[n] for n in names)] for s in samples]
