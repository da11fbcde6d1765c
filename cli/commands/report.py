"""`pipe report`: a run as one HTML file."""

from __future__ import annotations

import shlex
from base64 import b64encode
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import frozen
from torch import Tensor
from torch.nn import functional as F

from cli import classes, record
from cli import config as settings
from cli import folder as folders
from cli import ranking as better
from cli.build import Job
from cli.commands.predict import named
from cli.predictions import Answers, called
from cli.progress import tell, warn
from cli.recipes.data_card import About
from cli.recipes.setting import flag
from cli.saved_run import Past
from pipeline import html, plot
from pipeline.errors import PipeError
from pipeline.state import format_metric

WORST = 24
"""Samples that are shown."""
BATCH = 1024
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; font-size: 13px; } th, td { padding: 2px 9px; text-align: left; }
thead th { border-bottom: 1px solid #999; } tbody tr:nth-child(even) { background: #f6f6f6; }
.matrix td { text-align: right; min-width: 1.8rem; } .matrix tr:nth-child(even) { background: none; }
pre { background: #f6f6f6; padding: .6rem; white-space: pre-wrap; } svg { max-width: 100%; height: auto; }
.worst { display: flex; flex-wrap: wrap; gap: 12px; } figure { margin: 0; font-size: 12px; }
.worst img { height: 84px; image-rendering: pixelated; border: 1px solid #ccc; display: block; }
.wide { overflow-x: auto; }
"""


def run(past: Past, out: str | None) -> None:
    """Write the report of a run."""
    path = Path(out) if out is not None else past.folder / "report.html"
    folders.replace(path, page(past).encode())
    tell(str(path))


def page(past: Past) -> str:
    """The report as a text."""
    facts = past.document.get("facts", {})
    title = html.escape(past.folder.name)
    parts = [f"<h1>{title}</h1>", _summary(past, facts)]
    if past.rows:
        best = better.best_epoch(past.rows, past.config.run.best)
        metric = None if best is None else best[1]
        parts += ["<h2>Curves</h2>", plot.svg(plot.curves(past.rows, best=metric)), _metrics(past, best)]
    try:
        parts += _measured(past)
    except PipeError as e:
        warn(f"classes and samples are left out: {e}")
        parts.append(f"<p>Classes and samples are left out: {html.escape(str(e))}</p>")
    parts += ["<h2>Settings</h2>", f"<pre>{html.escape(command(past))}</pre>", _settings(past)]
    versions = past.document.get("versions", {})
    kept = {**{k: v for k, v in facts.items() if k != "hyper"}, **{f"version of {k}": v for k, v in versions.items()}}
    parts += ["<h2>Made with</h2>", html.table(["", ""], [(k, str(v)) for k, v in kept.items()])]
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def command(past: Past) -> str:
    """The command that makes the run again."""
    flat = past.config.flat
    own = past.config.pipeline.name
    known = settings.make({k: flat[k] for k in ("data", "model", "optimizer") if own is None})
    words = ["pipe", "train", *([own] if own is not None else [])]
    for name, value in flat.items():
        named_always = own is None and name in ("data", "model", "optimizer")
        if name in ("out", "pipeline") or value is None or (value == known.flat.get(name) and not named_always):
            continue
        if "." in name:
            words += ["--set", f"{name}={value}"]
        elif isinstance(value, bool):
            words.append(flag(name) if value else flag(name).replace("--", "--no-", 1))
        else:
            words += [flag(name), ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    return shlex.join(words)


def _summary(past: Past, facts: dict[str, Any]) -> str:
    lines = [f"{past.config.source}: {facts.get('training_samples', '?')} training and "
             f"{facts.get('held_out_samples', '?')} held-out samples"]  # fmt: skip
    if past.config.pipeline.name is None:
        lines += past.about.notes
    if "model" in facts:
        lines.append(f"{facts['model']}: {facts.get('parameters', 0):,} parameters")
    best = better.best_epoch(past.rows, past.config.run.best)
    if best is not None:
        lines.append(f"best {format_metric(best[1], best[2])} in epoch {best[0]} of {past.rows[-1]['epoch']}")
    seconds = sum(row.get("seconds") or 0 for row in past.rows)
    lines.append(f"{seconds:.1f} s of training on {facts.get('device', '?')}, {facts.get('threads', '?')} threads")
    return "".join(f"<p>{html.escape(line)}</p>" for line in lines)


def _metrics(past: Past, best: tuple[int, str, float] | None) -> str:
    last = past.rows[-1]
    at = next((r for r in past.rows if best is not None and r["epoch"] == best[0]), last)
    names = dict.fromkeys(k.partition("/")[2] for k in last if k.startswith(("train/", "validate/")))
    rows = [[name, *(_cell(r.get(f"{part}/{name}")) for r in (at, last) for part in ("train", "validate"))]
            for name in names]  # fmt: skip
    heads = [f"epoch {r['epoch']}, {part}" for r in (at, last) for part in ("training", "held out")]
    return html.table(["metric", *heads], rows)


def _cell(value: Any) -> Any:
    return value if isinstance(value, int | float) else ""


def _measured(past: Past) -> list[str]:
    """Classes, confusion matrix and the worst samples, of the best epoch on what was held out."""
    if past.config.pipeline.name is not None:
        return []
    made, state, _ = past.restored("best")
    [*record.differences(past.document, record.facts(made, state))]  # raises where the data are others
    about = past.about
    parts: list[str] = []
    figures = classes.figures(made.pipe, about, state, made.held_out)
    if figures is not None:
        rows = zip(figures.names, figures.precision, figures.recall, figures.f1, strict=True)
        parts += ["<h2>Classes</h2>", html.table(["class", "precision", "recall", "F1"], rows)]
        if figures.confusion is not None:
            parts += ["<h2>What is taken for what</h2>", _matrix(figures.names, figures.confusion)]
    found = worst(past, made, about) if about.task != "language modelling" else []
    if found:
        parts += [f"<h2>The worst {len(found)} of the held-out samples</h2>", _samples(found, about)]
    return parts


def _matrix(names: Sequence[str], matrix: Sequence[Sequence[int]]) -> str:
    rows = []
    for name, row in zip(names, matrix, strict=True):
        total = max(sum(row), 1)
        cells = "".join(
            f'<td style="background: rgba(0, 114, 178, {n / total:.2f}){"; color: #fff" if n > total / 2 else ""}">'
            f"{n:,}</td>" if n else "<td></td>"
            for n in row
        )  # fmt: skip
        rows.append(f"<tr><th>{html.escape(name)}</th>{cells}</tr>")
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    return (
        "<p>Rows are true, columns predicted.</p>"
        f'<div class="wide"><table class="matrix"><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'
    )


@frozen(eq=False)
class Sample:
    """A held-out sample that was told badly."""

    row: int
    loss: float
    inputs: Tensor
    true: str
    predicted: str
    cells: dict[str, Any]
    """As it is in the file, of a table."""


def worst(past: Past, made: Job, about: About) -> list[Sample]:
    """The held-out samples with the largest loss, the largest first."""
    module, inputs, _ = past.module("best")
    answers = Answers(about).eval()
    losses: list[Tensor] = []
    for begin in range(0, len(made.held_out), BATCH):
        batch = made.held_out[torch.arange(begin, min(begin + BATCH, len(made.held_out)))]
        with torch.no_grad():
            losses.append(_loss(answers(called(module, inputs, batch)), batch["targets"], about))
    every = torch.cat(losses)
    order = every.nan_to_num(torch.inf).argsort(descending=True, stable=True)[:WORST]
    batch = made.held_out[order]
    with torch.no_grad():
        values = answers(called(module, inputs, batch))
    assert made.prepared is not None
    cells = made.prepared.raw() if made.prepared.raw is not None else None
    return [
        Sample(
            int(row), float(every[row]), batch["inputs"][i], _true(batch["targets"][i], about),
            _predicted(values[i : i + 1], about),
            {} if cells is None else {name: column[int(row)] for name, column in cells.columns.items()},
        )
        for i, row in enumerate(order)
    ]  # fmt: skip


def _loss(answers: Tensor, targets: Tensor, about: About) -> Tensor:
    """Of each sample (B,): minus the log probability of what is true, or the absolute error."""
    if about.task == "classification":
        return -answers.gather(1, targets[:, None]).squeeze(1).log()
    if about.task == "several labels":
        return F.binary_cross_entropy(answers, targets, reduction="none").sum(1)
    return (answers - targets.reshape(answers.shape)).abs().reshape(len(answers), -1).mean(1)


def _true(target: Tensor, about: About) -> str:
    if about.task == "classification":
        return about.classes[int(target)] if about.classes else str(int(target))
    if about.task == "several labels":
        return ", ".join(n for n, there in zip(about.classes, target.tolist(), strict=False) if there) or "none"
    return ", ".join(f"{v:.4g}" for v in target.reshape(-1).tolist())


def _predicted(answers: Tensor, about: About) -> str:
    found = named(about, answers.numpy())
    if about.task == "classification":
        return f"{found['prediction'][0]} ({float(found['probability'][0]):.1%})"
    if about.task == "several labels":
        return ", ".join(n.removeprefix("prediction_") for n, v in found.items() if v.dtype == bool and v[0]) or "none"
    return ", ".join(f"{float(v[0]):.4g}" for v in found.values())


def _samples(found: Sequence[Sample], about: About) -> str:
    if found[0].inputs.ndim == 3 and found[0].inputs.shape[0] in (1, 3):
        each = [
            f'<figure><img alt="sample {s.row}" src="{_png(s.inputs)}"><figcaption>'
            f"{html.escape(f'{s.true}, taken for {s.predicted}')}</figcaption></figure>"
            for s in found
        ]
        return f'<div class="worst">{"".join(each)}</div>'
    names = [n for n in found[0].cells if n not in about.target.split(", ")]
    rows = [[s.row, s.true, s.predicted, s.loss, *(_shown(s.cells[n]) for n in names)] for s in found]
    head = ["held-out sample", f"true {about.target}", "predicted", "loss", *names]
    return f'<div class="wide">{html.table(head, rows)}</div>'


def _shown(value: Any) -> Any:
    return "" if value is None else value


def _png(image: Tensor) -> str:
    """An image (C, H, W) of any range as a data URI."""
    from matplotlib.image import imsave

    pixels = image.float().permute(1, 2, 0).numpy()
    low, high = float(np.nanmin(pixels)), float(np.nanmax(pixels))
    if not 0 <= low <= high <= 1:
        pixels = (pixels - low) / ((high - low) or 1)
    file = BytesIO()
    imsave(file, pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=1, format="png")
    return "data:image/png;base64," + b64encode(file.getvalue()).decode()


def _settings(past: Past) -> str:
    return html.table(["setting", "value"], _flat(past))


def _flat(past: Past) -> Iterator[tuple[str, str]]:
    for table, values in past.config.tables.items():
        for name, value in values.items():
            yield f"{table}.{name}", str(value)
