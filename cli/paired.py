"""Paired differences of two settings over seeds: their mean, its interval, p, and the seeds that would settle it."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from attrs import frozen

from pipeline.direction import Direction
from pipeline.errors import needs
from pipeline.plot import COLOURS
from pipeline.state import PERCENT

with needs("pipe compare tests differences by SciPy, which is missing", "scipy"):
    from scipy import special

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALPHA, POWER = 0.05, 0.8
"""Error rate of a difference where there is none, and share of real ones that are seen."""
MOST = 1000
"""Seeds above which no number is named."""
QUANTILES = 4096


@frozen
class Paired:
    """The paired t test of some differences, B - A."""

    count: int
    mean: float
    low: float
    """Of the interval of 95 %."""
    high: float
    p: float
    """Two-sided."""
    above: int
    """Pairs with a difference above 0."""
    below: int
    settle: int | None
    """Pairs that see a difference of this size and spread in 80 % of all comparisons; None above MOST."""


def paired(differences: Sequence[float]) -> Paired:
    """The paired t test. If all differences are the same, its p is that of the sign test: there is no spread.

    Source: Student, The probable error of a mean (1908).

    >>> found = paired([1.0, 2.0, 3.0, 4.0])
    >>> found.mean, round(found.low, 3), round(found.high, 3), round(found.p, 4), found.settle
    (2.5, 0.446, 4.554, 0.0305, 5)
    """
    x = np.asarray(differences, dtype=float)
    n, mean = len(x), float(x.mean())
    spread = float(x.std(ddof=1)) if x.min() < x.max() else 0.0
    half = float(special.stdtrit(n - 1, 1 - ALPHA / 2)) * spread / math.sqrt(n)
    p = 2 * float(special.stdtr(n - 1, -abs(mean) * math.sqrt(n) / spread)) if spread else 2.0 ** (1 - n)
    p = p if mean else 1.0
    above, below = int((x > 0).sum()), int((x < 0).sum())
    return Paired(n, mean, mean - half, mean + half, p, above, below, settling(mean, spread))


def settling(mean: float, spread: float) -> int | None:
    """The pairs by which the test sees a difference of this mean and spread with POWER."""
    if not mean:
        return None
    if not spread:  # only the sign test's p is left
        return math.ceil(1 - math.log2(ALPHA))
    count = bisect_left(range(2, MOST + 1), POWER, key=lambda n: power(abs(mean) / spread, n)) + 2
    return count if count <= MOST else None


def power(effect: float, count: int) -> float:
    """The probability that `count` pairs show a mean of so many standard deviations: the tails of the noncentral t, as
    a mean over the quantiles of the estimated deviation. (special.nctdtr has none of them from a shift of 8 on.)

    Source: Cohen, Statistical power analysis for the behavioral sciences (1988), 2.
    """
    free, shift = count - 1, effect * math.sqrt(count)
    middles = (np.arange(QUANTILES) + 0.5) / QUANTILES
    bound = special.stdtrit(free, 1 - ALPHA / 2) * np.sqrt(special.chdtri(free, 1 - middles) / free)
    return float((special.ndtr(shift - bound) + special.ndtr(-shift - bound)).mean())


def sentences(test: Paired, metric: str, better: Direction) -> Iterator[str]:
    """The verdict, and what the seeds say of it."""
    percent = metric.rpartition(".")[2].startswith(PERCENT)
    ahead = "B" if (test.mean > 0) == (better == "high") else "A"
    mean, low, high = (f"{100 * x:.2f}" if percent else f"{x:.3g}" for x in (abs(test.mean), *_oriented(test)))
    unit, way = " points" if percent else "", "higher" if (better == "high") else "lower"
    p = f"p = {test.p:.2g}" if test.p >= 1e-4 else "p < 0.0001"
    with_ = "" if test.p < ALPHA else f" with {ahead}"
    size = f"{metric} {mean}{unit} {way}{with_} (95 % interval {low} to {high}), {p}, {test.count} seeds"
    many = f"{test.settle} seeds" if test.settle else f"no number of seeds under {MOST:,}"
    if not test.mean:
        yield f"verdict no difference seen: the mean {metric} of A and B is the same, {test.count} seeds"
    elif test.p < ALPHA:
        yield f"verdict {ahead} is better: {size}"
    else:
        yield f"verdict no difference seen: {size}; {many} would show one of this size"
    wins = test.above if better == "high" else test.below
    yield f"pairs   B is better with {wins} of {test.count} seeds, A with {test.above + test.below - wins}"


def _oriented(test: Paired) -> tuple[float, float]:
    """The interval, of a difference with a mean above 0."""
    return (test.low, test.high) if test.mean > 0 else (-test.high, -test.low)


def picture(a: Sequence[float], b: Sequence[float], test: Paired, metric: str) -> Figure:
    """Each pair as a line from A to B, and each difference with their mean and its interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for x, y in zip(a, b, strict=True):
        left.plot([0, 1], [x, y], "o-", color=COLOURS[0] if y > x else COLOURS[1], markersize=3, linewidth=0.8)
    left.plot([0, 1], [np.mean(a), np.mean(b)], "s-", color="#000000", label="mean")
    left.set_xticks([0, 1], ["A", "B"])
    left.set_xlim(-0.3, 1.3)
    left.set_ylabel(f"held-out {metric}, last epoch", fontsize=9)
    right.plot(np.subtract(b, a), range(len(a)), "o", color="#666666", markersize=4, label="a seed")
    right.axvline(test.mean, color=COLOURS[2], label="mean")
    right.axvspan(test.low, test.high, color=COLOURS[2], alpha=0.2, linewidth=0, label="its 95 % interval")
    right.axvline(0, color="#000000", linewidth=0.8, linestyle="--")
    right.set_yticks([])
    right.set_xlabel(f"{metric}, B - A", fontsize=9)
    for axes in (left, right):
        axes.legend(fontsize=7, frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    return figure
