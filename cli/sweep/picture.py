"""A metric by the settings of a sweep, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from attrs import frozen
from rich.table import Table

from cli import ranking
from cli.sweep.grid import Axis
from pipeline.log import Row
from pipeline.plot import COLOURS
from pipeline.state import format_metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point: TypeAlias = tuple[Mapping[str, Any], Sequence[Row]]
"""The values of a run on the axes, and its epochs."""

LINES = 8
"""Lines of a picture with a colour of their own; others are grey."""
MARKS = "os^Dv<>p"
"""Marks that can be hollow."""
ROWS = 20
"""Settings in a table, the best ones."""


def words(chosen: Mapping[str, Any]) -> str:
    """A setting in words: `lr 0.1, momentum 0.9`."""
    return ", ".join(f"{name} {_text(value)}" for name, value in chosen.items())


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@frozen(eq=False)
class Setting:
    """A setting, and the last metric of each of its longest runs."""

    chosen: Mapping[str, Any]
    epochs: int
    values: np.ndarray
    """NaN for a run that is not finite."""


def _settings(points: Sequence[Point], metric: str) -> list[Setting]:
    """Each setting, sorted by epochs, then by mean, the best first."""
    runs_of: dict[str, list[Point]] = {}
    for p in points:
        runs_of.setdefault(repr(sorted(p[0].items(), key=str)), []).append(p)
    settings = []
    for runs in runs_of.values():
        epochs = max(rows[-1]["epoch"] for _, rows in runs)
        ends = [rows[-1].get(f"validate/{metric}") for _, rows in runs if rows[-1]["epoch"] == epochs]
        settings.append(Setting(runs[0][0], epochs, np.asarray([float("nan") if v is None else v for v in ends])))
    sign = -1.0 if _high(points, metric) else 1.0

    def rank(s: Setting) -> tuple[int, float]:
        mean = float(np.mean(s.values))
        return -s.epochs, sign * mean if mean == mean else float("inf")

    return sorted(settings, key=rank)


def _high(points: Sequence[Point], metric: str) -> bool:
    return ranking.direction_of(metric, [r for _, rows in points for r in rows[:1]]) == "high"


def table(names: Sequence[str], points: Sequence[Point], metric: str, *, most: int = ROWS, title: str = "") -> Table:
    """Mean, standard deviation and best value over the seeds of each setting, the best mean first."""
    rows = _settings(points, metric)
    more = f"{len(rows) - most} more settings" if len(rows) > most else ""
    halved = len({s.epochs for s in rows}) > 1
    heads = [*names, f"mean {metric}", "+-", "best", "runs", *(["epochs"] if halved else [])]
    table = Table(*heads, box=None, pad_edge=False, title=title or None, caption=more or None)
    for s in rows[:most]:
        values = s.values
        deviation = _number(metric, float(values.std(ddof=1))) if len(values) > 1 else ""
        best = values.max() if _high(points, metric) else values.min()
        numbers = _number(metric, float(values.mean())), deviation, _number(metric, float(best)), str(len(values))
        table.add_row(*(_text(s.chosen[n]) for n in names), *numbers, *([str(s.epochs)] if halved else []))
    return table


def edges(axes: Sequence[Axis], points: Sequence[Point], metric: str) -> list[str]:
    """The axes at whose end the best mean lies, in words: values beyond it may be better."""
    chosen = _settings(points, metric)[0].chosen
    ends = [(a, end) for a in axes if (end := a.end(chosen[a.name]))]
    return [f"the best {a.name}, {_text(chosen[a.name])}, is at the {end} end of what was tried" for a, end in ends]


def _number(metric: str, value: float) -> str:
    return "not finite" if value != value else format_metric(metric, value).removeprefix(f"{metric} ")


def picture(names: Sequence[str], points: Sequence[Point], metric: str, heading: str = "") -> Figure:
    """The metric over the axis with the most numbers: one line per setting of the other axes, with its range over
    seeds.

    Points are hollow if they were not trained to the end. Settings drawn at random are points without lines.
    """
    from matplotlib.figure import Figure

    rows = [s for s in _settings(points, metric) if np.isfinite(s.values).any()]
    numbers = {n: {s.chosen[n] for s in rows if isinstance(s.chosen[n], int | float)} for n in names}
    x_axis = max(names, key=lambda n: len(numbers[n]))
    lines: dict[str, list[Setting]] = {}  # the best first
    for s in rows:
        lines.setdefault(words({n: s.chosen[n] for n in names if n != x_axis}), []).append(s)
    scattered = len(lines) > max(len(rows) / 2, 1)
    if scattered:
        lines = {"": rows}
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    longest = max((s.epochs for s in rows), default=0)
    for k, (name, line) in reversed(list(enumerate(lines.items()))):
        _draw(axes, k, name, line, x_axis, longest, scattered)
    if numbers[x_axis] and min(numbers[x_axis]) > 0 and max(numbers[x_axis]) > 30 * min(numbers[x_axis]):
        axes.set_xscale("log")
    axes.set_xlabel(x_axis, fontsize=9)
    hollow = " (hollow: stopped earlier)" if any(s.epochs < longest for s in rows) else ""
    axes.set_ylabel(f"held-out {metric}, last epoch{hollow}", fontsize=9)
    axes.set_title(heading, fontsize=10)
    axes.tick_params(labelsize=8)
    axes.grid(visible=True, linewidth=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        title = None if len(lines) <= LINES else f"the best {LINES} of {len(lines)}"
        axes.legend(handles[::-1], labels[::-1], fontsize=7, frameon=False, title=title, title_fontsize=7)
    return figure


def _draw(axes: Axes, k: int, name: str, line: Sequence[Setting], x_axis: str, longest: int, scattered: bool) -> None:
    """The k-th best line."""
    settings = sorted(line, key=lambda s: (str(type(s.chosen[x_axis])), s.chosen[x_axis]))
    at = [s.chosen[x_axis] for s in settings]
    mean, low, high = ([float(f(s.values)) for s in settings] for f in (np.nanmean, np.nanmin, np.nanmax))
    coloured = k < LINES
    colour = COLOURS[k % len(COLOURS)] if coloured else "#bbbbbb"
    style: dict[str, Any] = {"color": colour, "marker": MARKS[k % len(MARKS)], "markersize": 4}
    axes.plot(
        at, mean, linestyle="" if scattered else "-", linewidth=1.3 if coloured else 0.6,
        label=(name or None) if coloured else None, **style,
    )  # fmt: skip
    short = [(x, y) for x, y, s in zip(at, mean, settings, strict=True) if s.epochs < longest]
    if short:
        axes.plot(*zip(*short, strict=True), linestyle="", markerfacecolor="white", **style)
    if coloured and low != high and not scattered:
        axes.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
