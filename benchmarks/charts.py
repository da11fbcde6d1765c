"""Benchmark pictures, to be read at 800 pixels: medians as points, quartiles as whiskers, one message in the title."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from attrs import frozen

from benchmarks.harness import Race, Result, quartiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Measured: TypeAlias = tuple[Race, list[Result]]
Picture: TypeAlias = "Figure"
Draw: TypeAlias = Callable[[Sequence[Measured]], Picture]
Spread: TypeAlias = tuple[float, float, float]
"""Lower quartile, median, upper quartile."""

OURS, GREY = "#d55e00", "#6b7280"
COLOURS = ("#0072b2", "#009e73", "#cc79a7", "#e69f00", "#000000")
"""Told apart also with colour blindness. Source: Okabe and Ito, Color universal design (2008)."""
MARKS = "osD^v"
WIDTH, ROW = 8.0, 0.33
TOP, LEGEND, BOTTOM, RIGHT = 0.55, 0.35, 0.8, 0.2
LETTER = 0.078
"""All in inches."""


@frozen
class Point:
    spread: Spread
    note: str = ""
    colour: str = GREY
    mark: str = "o"
    lift: float = 0.0
    """Rows above its row, for several points of one row."""


def ran(measured: Measured) -> dict[str, Result]:
    """The results of contenders that ran, by name."""
    return {r.name: r for r in measured[1] if r.seconds}


def times(result: Result, scale: float = 1e6) -> Spread:
    """Time a step, in µs."""
    low, median, high = quartiles(result.seconds)
    return scale * low, scale * median, scale * high


def ratios(result: Result, base: Result) -> Spread:
    """Times as fast as `base`, from the ratio in each round."""
    return quartiles([b / a for a, b in zip(result.seconds, base.seconds, strict=True)])


def colour(name: str) -> str:
    return OURS if name.startswith("ours") else GREY


def rows(title: str, axis_label: str, points: Mapping[str, Sequence[Point]], *, height: float = ROW,
         start: float = 0.0, log: bool = False, legend: Mapping[str, Point] | None = None) -> Figure:  # fmt: skip
    """A row of points for each label, the first on top; `height` of a row in inches. The axis begins at `start`."""
    names = list(points)
    left = 0.25 + LETTER * max(map(len, names))
    figure, axes = canvas(title, axis_label, left, height * len(names), legend=bool(legend))
    width = WIDTH - left - RIGHT
    ends = [(p.spread[2], 1 - (0.15 + LETTER * len(p.note)) / width) for row in points.values() for p in row]
    if log:
        axes.set_xscale("log")
        axes.set_xlim(start, max(start * (high / start) ** (1 / room) for high, room in ends))
        ticks = [m * 10**k for k in range(6) for m in (1, 3)]
        most = max(high for high, _ in ends)
        axes.set_xticks(shown := [x for x in ticks if start < x <= most], [f"{x:,}" for x in shown])
        axes.set_xticks([], minor=True)
    else:
        axes.set_xlim(start, max(start + (high - start) / room for high, room in ends))
    for y, name in enumerate(names):
        axes.axhline(y, color="#e5e7eb", linewidth=0.8, zorder=0)
        for p in points[name]:
            draw(axes, p, y - p.lift)
    axes.set_yticks(range(len(names)), names)
    for tick, name in zip(axes.get_yticklabels(), names, strict=True):
        tick.set(color=colour(name), fontweight="bold" if colour(name) == OURS else "normal")
    axes.set_ylim(len(names) - 0.5, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    if legend:
        for name, p in legend.items():
            axes.plot([], [], p.mark, color=p.colour, label=name, markersize=7)
        figure.legend(loc="upper left", bbox_to_anchor=(0, 1 - (TOP - 0.1) / figure.get_figheight()), ncols=len(legend),
                      frameon=False, fontsize=9.5, handletextpad=0.1, columnspacing=1.2)  # fmt: skip
    return figure


def canvas(title: str, axis_label: str, left: float, height: float, *, right: float = RIGHT,
           legend: bool = False) -> tuple[Figure, Axes]:  # fmt: skip
    """Axes `height` inches high, below a title as wide as the picture, with room for a legend."""
    from matplotlib.figure import Figure  # not for a contender, whose memory is measured

    whole = height + TOP + LEGEND * legend + BOTTOM
    figure = Figure(figsize=(WIDTH, whole))
    axes = figure.add_axes((left / WIDTH, BOTTOM / whole, 1 - (left + right) / WIDTH, height / whole))
    figure.text(0.012, 1 - 0.16 / whole, title, size=13, weight="bold", va="top")
    axes.set_xlabel(axis_label, size=10, color="#374151")
    axes.tick_params(labelsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def draw(axes: Axes, point: Point, y: float) -> None:
    low, median, high = point.spread
    axes.plot([low, high], [y, y], color=point.colour, linewidth=2, solid_capstyle="butt")
    axes.plot([median], [y], point.mark, color=point.colour, markersize=7)
    axes.annotate(
        point.note, (high, y), xytext=(7, 0), textcoords="offset points", va="center", size=10, color=point.colour,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
    )  # fmt: skip


def line_at_one(figure: Figure) -> Figure:
    """With a line where two are equally fast."""
    figure.axes[0].axvline(1, color="#111827", linewidth=1, linestyle="--", zorder=0)
    return figure


def save(figure: Figure, facts: Mapping[str, Any], races: Sequence[Measured], path: Path) -> None:
    """Write the picture, with a line below that says how it was measured."""
    threads = sorted({race.threads for race, _ in races})
    count = " or ".join(map(str, threads)) + (" thread" if threads == [1] else " threads")
    rounds = " or ".join(map(str, sorted({len(r.seconds) for _, results in races for r in results if r.seconds})))
    figure.text(
        0.012, 0.1 / figure.get_figheight(), size=8.5, color=GREY,
        s=f"Median and quartiles of {rounds} interleaved rounds; {facts['machine']['cpu']}, {count}; "
        f"{facts['date'][:10]}, commit {facts['commit'][:10]}",
    )  # fmt: skip
    figure.savefig(path, dpi=200)
