"""Landscape: how a metric depends on the settings of a sweep, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from attrs import frozen
from rich.table import Table

from cli import ranking as better
from pipeline.log import Row
from pipeline.plot import COLOURS, STYLES
from pipeline.state import format_metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Point: TypeAlias = tuple[Mapping[str, Any], Sequence[Row]]
"""The values of the axes of a run, and its epochs."""

LINES = 8
"""Settings that a picture tells apart by colour; others are grey."""
FILLED = "os^Dv<>p"
"""Marks that may be hollow."""
ROWS = 20
"""Of more settings, a table shows the best ones."""


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def words(chosen: Mapping[str, Any]) -> str:
    """A setting in words: `lr 0.1, momentum 0.9`."""
    return ", ".join(f"{name} {_text(value)}" for name, value in chosen.items())


def _last(point: Point, metric: str) -> float:
    """The metric of the last epoch; NaN where it is not finite."""
    value = point[1][-1].get(f"validate/{metric}") if point[1] else None
    return float("nan") if value is None else float(value)


@frozen(eq=False)
class Setting:
    """A setting, and what those of its runs ended with that did most epochs."""

    chosen: Mapping[str, Any]
    epochs: int
    values: np.ndarray


def _settings(points: Sequence[Point], metric: str) -> list[Setting]:
    """Each setting: first what was trained longest, and of as many epochs the best mean."""
    found: dict[str, list[Point]] = {}
    for p in points:
        found.setdefault(repr(sorted(p[0].items(), key=str)), []).append(p)
    sign = -1.0 if _high(points, metric) else 1.0
    made = []
    for runs in found.values():
        epochs = max(rows[-1]["epoch"] for _, rows in runs)
        values = [_last(p, metric) for p in runs if p[1][-1]["epoch"] == epochs]
        made.append(Setting(runs[0][0], epochs, np.asarray(values)))

    def rank(s: Setting) -> tuple[int, float]:
        mean = float(np.mean(s.values))
        return -s.epochs, sign * mean if mean == mean else float("inf")

    return sorted(made, key=rank)


def table(names: Sequence[str], points: Sequence[Point], metric: str, *, most: int = ROWS, title: str = "") -> Table:
    """The settings, the best mean over seeds first: mean, standard deviation and best."""
    rows = _settings(points, metric)
    more = f"{len(rows) - most} more settings" if len(rows) > most else ""
    trained = len({s.epochs for s in rows}) > 1  # not all as long
    heads = [*names, "mean", "+-", "best", "runs", *(["epochs"] if trained else [])]
    made = Table(*heads, box=None, pad_edge=False, title=title or None, caption=more or None)
    for s in rows[:most]:
        values = s.values
        spread = _number(metric, float(values.std(ddof=1))) if len(values) > 1 else ""
        best = values.max() if _high(points, metric) else values.min()
        numbers = _number(metric, float(values.mean())), spread, _number(metric, float(best)), str(len(values))
        made.add_row(*(_text(s.chosen[n]) for n in names), *numbers, *([str(s.epochs)] if trained else []))
    made.columns[len(names)].header = f"mean {metric}"
    return made


def _high(points: Sequence[Point], metric: str) -> bool:
    return better.of(metric, [r for _, rows in points for r in rows[:1]]) == "high"


def _number(metric: str, value: float) -> str:
    return "not finite" if value != value else format_metric(metric, value).removeprefix(f"{metric} ")


def picture(names: Sequence[str], points: Sequence[Point], metric: str) -> Figure:
    """The metric over the axis that has most numbers, a line for each setting of the others, with the range over
    seeds; hollow where a setting was not trained to the end."""
    from matplotlib.figure import Figure as New

    rows = [s for s in _settings(points, metric) if np.isfinite(s.values).any()]
    numbers = {n: {s.chosen[n] for s in rows if isinstance(s.chosen[n], int | float)} for n in names}
    over = max(names, key=lambda n: len(numbers[n]))
    lines: dict[str, list[Setting]] = {}
    for s in rows:  # the best lines first
        lines.setdefault(words({n: s.chosen[n] for n in names if n != over}), []).append(s)
    whole = max((s.epochs for s in rows), default=0)
    figure: Figure = New(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    single = len(lines) > max(len(rows) / 2, 1)
    if single:  # drawn at random, so that there are points and no lines
        lines = {"": [s for found in lines.values() for s in found]}
    for k, (name, found) in reversed(list(enumerate(lines.items()))):
        ordered = sorted(found, key=lambda s: (str(type(s.chosen[over])), s.chosen[over]))
        at = [s.chosen[over] for s in ordered]
        mean, low, high = ([float(f(s.values)) for s in ordered] for f in (np.nanmean, np.nanmin, np.nanmax))
        known = k < LINES
        style: dict[str, Any] = {
            "color": COLOURS[k % len(COLOURS)] if known else "#bbbbbb",
            "marker": FILLED[k % 8],
            "markersize": 4,
        }
        label = (name or None) if known else None
        axes.plot(
            at, mean, linestyle="" if single else STYLES[0], linewidth=1.3 if known else 0.6, label=label, **style
        )
        short = [(x, y) for x, y, s in zip(at, mean, ordered, strict=True) if s.epochs < whole]
        if short:
            axes.plot(*zip(*short, strict=True), linestyle="", markerfacecolor="white", **style)
        if known and low != high and not single:
            axes.fill_between(at, low, high, color=style["color"], alpha=0.15, linewidth=0)
    places = numbers[over]
    if places and min(places) > 0 and max(places) > 30 * min(places):
        axes.set_xscale("log")
    axes.set_xlabel(over, fontsize=9)
    hollow = " (hollow: before the last one)" if any(s.epochs < whole for s in rows) else ""
    axes.set_ylabel(f"held-out {metric}, last epoch{hollow}", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(visible=True, linewidth=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        title = None if len(lines) <= LINES else f"the best {LINES} of {len(lines)}"
        axes.legend(handles[::-1], labels[::-1], fontsize=7, frameon=False, title=title, title_fontsize=7)
    return figure
