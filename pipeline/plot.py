"""Plot: the curves of one run or several, as a matplotlib figure.

    figure = plot.curves(fit(pipe, epochs=20, validate=test))
    figure.savefig("curves.svg")

A notebook shows the curves of `Reports(fit(...))` by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from itertools import cycle
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from pipeline import html
from pipeline.direction import Direction, direction, rank
from pipeline.errors import ConfigError, did_you_mean
from pipeline.log import Row, declared, line
from pipeline.state import Report
from pipeline.text import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 500
"""Most points of a curve; longer ones are drawn as mean and range of so many intervals."""
FEW = 40
"""Most epochs that are marked, and rows in a notebook."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
"""Safe for colour blindness. Source: Okabe and Ito, Color universal design (2008)."""
WIDTH, HEIGHT = 5.2, 3.1
"""Inches of a panel."""
STYLES = ("-", "--", "-.", ":")
MARKS = "oxsv^d+*"
_SKIPPED = ("epoch", "step", "seconds", "samples_per_second")
USUAL = ("accuracy", "r2", "perplexity", "loss")
"""Metrics of the best epoch unless one is named; the first that there is."""
_FIRST = ("loss", "accuracy", "r2", "perplexity")
_LAST = ("gradient norm", "update ratio", "learning rate")

Curve: TypeAlias = Iterable[Report | Mapping[str, Any]]
Points: TypeAlias = Sequence[float]


class Reports(list[Report]):
    """A list of Reports, shown in a notebook as curves and a table: `Reports(fit(pipe, epochs=20))`."""

    def _repr_html_(self) -> str:
        rows = _rows(self)
        if not rows:
            return "no complete epoch yet"
        names = [k for k, v in rows[-1].items() if k.count("/") < 2 and not isinstance(v, list | dict)]
        note = "" if len(rows) <= FEW else f"<p>the last {FEW} of {len(rows):,} epochs</p>"
        return svg(curves(rows)) + note + html.table(names, [[r.get(name, "") for name in names] for r in rows[-FEW:]])


def svg(figure: Figure) -> str:
    """A figure as an SVG element; the same text for the same figure."""
    from matplotlib import rc_context

    text = StringIO()
    with rc_context({"svg.hashsalt": "pipe", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return shown(text.getvalue()[text.getvalue().index("<svg") :])


def curves(
    reports: Curve | Mapping[str, Curve], *, metrics: Sequence[str] = (), best: str | None = None,
    better: Direction | None = None,
) -> Figure:  # fmt: skip
    """A panel over epochs for each metric; of one run, held-out data solid and training dashed.

    - `reports`: Reports, or rows of a metrics.jsonl; of several runs, by name.
    - `metrics`: metrics to show; by default all that are one number, without details ("update ratio/layers.0"). Views
      of one run's metric, such as "ema.loss", share its panel.
    - `best`: a metric, to mark its best epoch; by default the validation's accuracy, r2, perplexity or loss. `better`:
      "high" or "low"; by default what the metric declares.

    Raises ConfigError if there is nothing to show.
    """
    runs = reports if isinstance(reports, Mapping) else {"": reports}
    lines = {name: _rows(run) for name, run in runs.items()}
    if not any(lines.values()):
        raise ConfigError("there is no complete epoch to draw")
    shown = _panels(lines, metrics)
    rows = next(iter(lines.values()))
    marked = best_epoch(rows, best, better) if len(lines) == 1 else None
    figure, panels = _grid(len(shown))
    for i, (axes, metric) in enumerate(zip(panels, shown, strict=True)):
        if len(lines) == 1:
            _draw_run(axes, metric, rows, marked)
        else:
            _draw_runs(axes, metric, lines)
        _finish(axes, metric, legend=i == 0 or len(lines) == 1)
    return figure


def _panels(lines: Mapping[str, Sequence[Row]], metrics: Sequence[str]) -> list[str]:
    """The metrics to show. Raises ConfigError for an unknown one."""
    names = [k for rows in lines.values() for r in rows for k, v in r.items() if k not in _SKIPPED and _number(v)]
    known = list(dict.fromkeys(map(_metric, names)))
    for name in metrics:
        if name not in known:
            raise ConfigError(f"there is no metric {name!r}{did_you_mean(name, known)}")
    if metrics:
        return list(metrics)
    shown = sorted((k for k in known if "/" not in k), key=_order)
    return shown if len(lines) > 1 else [k for k in shown if "." not in k or k.rpartition(".")[2] not in known]


def _grid(count: int) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels, in two columns."""
    from matplotlib.figure import Figure as New  # imports for a tenth of a second

    columns = min(count, 2)
    height = -(-count // columns)
    figure: Figure = New(figsize=(WIDTH * columns, HEIGHT * height))
    # Fixed margins: a layout engine takes longer than drawing.
    left, right, top, bottom = 0.6 / WIDTH, 0.15 / WIDTH, 0.35 / HEIGHT, 0.45 / HEIGHT
    size = (1 - left - right) / columns, (1 - top - bottom) / height
    corners = [((i % columns + left) / columns, (height - 1 - i // columns + bottom) / height) for i in range(count)]
    return figure, [figure.add_axes((*corner, *size)) for corner in corners]


def best_epoch(
    rows: Sequence[Row], metric: str | None = None, better: Direction | None = None
) -> tuple[int, str, float] | None:
    """Epoch, metric and value of the best validation; ties go by the loss, then to the later one."""
    seen = [{_metric(k): v for k, v in r.items() if not k.startswith("train/")} for r in rows]
    known = declared(rows)
    name = metric or next((n for n in USUAL if n in known and n in seen[-1]), "")
    if not (seen := [r for r in reversed(seen) if _number(r.get(name))]):
        return None
    way = direction(name, known, better)
    best = min(seen, key=lambda r: rank(name, way, r))
    return best["epoch"], name, best[name]


def _draw_run(axes: Axes, metric: str, rows: Sequence[Row], best: tuple[int, str, float] | None) -> None:
    """Training and held-out curves of a run, with its best epoch."""
    held_out, training = _points(rows, f"validate/{metric}"), _points(rows, f"train/{metric}")
    color, style, mark = ("#666666", "--", "x") if held_out[1] else ("#000000", "-", ".")
    _draw(axes, *training, label="training", color=color, style=style, marker=mark if len(rows) == 1 else "")
    marker = "." if len(rows) <= FEW else ""
    _draw(axes, *held_out, label="held-out", color="#000000", style="-", marker=marker)
    views = sorted({k.removeprefix("validate/") for r in rows for k in r if k.endswith(f".{metric}")})
    for name, color in zip(views, cycle(COLOURS), strict=False):
        points = _points(rows, f"validate/{name}")
        _draw(axes, *points, label=name.removesuffix(f".{metric}"), color=color, style="-", marker=marker)
    if best is not None and len(rows) > 1:
        epoch, name, value = best
        axes.axvline(epoch, color="#999999", linewidth=0.8, linestyle=":")
        if name == metric or name in views:
            axes.plot([epoch], [value], "*", color="#000000", markersize=10, label=f"best: epoch {epoch}")


def _draw_runs(axes: Axes, metric: str, runs: Mapping[str, Sequence[Row]]) -> None:
    """A curve for each run, of held-out data if it has any, with its own colour and mark."""
    curves = [_points(rows, f"validate/{metric}") for rows in runs.values()]
    curves = [c if c[1] else _points(rows, f"train/{metric}") for c, rows in zip(curves, runs.values(), strict=True)]
    for k, (name, points) in enumerate(zip(runs, curves, strict=True)):
        style = STYLES[k // len(COLOURS) % len(STYLES)]
        hidden = sum(points == later for later in curves[k + 1 :])  # a wide line is seen beneath equal ones
        _draw(
            axes, *points, label=name, color=COLOURS[k % len(COLOURS)], style=style, marker=MARKS[k % 8], wider=hidden
        )


def _draw(axes: Axes, epochs: Points, values: Points, *, label: str, color: str, style: str, marker: str,
          wider: int = 0) -> None:  # fmt: skip
    """Draw a curve, unless it is empty."""
    if len(epochs) > POINTS:
        places, intervals = (np.array_split(np.asarray(x, dtype=float), POINTS) for x in (epochs, values))
        epochs, values = [x.mean() for x in places], [x.mean() for x in intervals]
        ends = [x.min() for x in intervals], [x.max() for x in intervals]
        axes.fill_between(epochs, *ends, color=color, alpha=0.2, linewidth=0)
    if len(epochs):
        every = 1 if marker == "." else max(len(epochs) // 10, 1)
        marks: dict[str, Any] = {"marker": marker, "markersize": 5 + 2 * wider, "markevery": every}
        width = 1.3 + 2 * wider
        axes.plot(epochs, values, label=_literal(label), color=color, linestyle=style, linewidth=width, **marks)


def _points(rows: Sequence[Row], name: str) -> tuple[Points, Points]:
    """The epochs with a number of this name, and the numbers."""
    has = [r for r in rows if _number(r.get(name))]
    return [r["epoch"] for r in has], [r[name] for r in has]


def _finish(axes: Axes, metric: str, legend: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.get_lines()])
    # A schedule has a shape of its own, as a cosine, which a logarithm would bend.
    linear = "accuracy" in metric or metric.startswith("r2") or metric == "learning rate"
    if not linear and values.min() > 0 and values.max() > 30 * values.min():
        axes.set_yscale("log")
    axes.set_title(_literal(metric), fontsize=12)
    axes.set_xlabel("epoch", fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.tick_params(labelsize=10)
    axes.grid(visible=True, linewidth=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if legend and len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(fontsize=9, frameon=False)


def _rows(run: Curve) -> list[Row]:
    return [line(r) if isinstance(r, Report) else dict(r) for r in run if not isinstance(r, Report) or r.complete]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _literal(name: str) -> str:
    """A name with its $ escaped, which begins mathematics in matplotlib."""
    return shown(name).replace("$", r"\$")


def _metric(name: str) -> str:
    return name.removeprefix("train/").removeprefix("validate/")


def _order(name: str) -> tuple[int, str]:
    known = (*_FIRST, "", *_LAST)
    return known.index(name if name in known else ""), name
