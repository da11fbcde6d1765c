"""Where does overhead end and arithmetic begin?

A step of a classifier (64-64-64-10, batch 64, AdamW, gradients clipped to norm 1), as one size grows by 2, 4, 8 and 16:
depth, width, batch, samples, and the number of parameter tensors (the same numbers in more tensors).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import charts, ours
from benchmarks.harness import Contender, Done, Race, Work
from pipeline import Pipeline, backward, forward, load, loss, models, place, update

LR, CLIP = 1e-3, 1.0
OURS, HAND = "ours, one step a call", "torch by hand"
FACTORS = (1, 2, 4, 8, 16)


@frozen
class Size:
    depth: int = 2
    """Hidden layers."""
    width: int = 64
    batch: int = 64
    samples: int = 1024
    parts: int = 1
    """Tensors that each weight and bias is split into."""


AXES: dict[str, Callable[[int], Size]] = {
    "depth": lambda k: Size(depth=2 * k),
    "width": lambda k: Size(width=64 * k),
    "batch": lambda k: Size(batch=64 * k),
    "data": lambda k: Size(samples=1024 * k),
    "tensors": lambda k: Size(parts=k),
}


class Split(nn.Module):
    """A linear layer with its weight in several tensors. Shapes: (B, before) -> (B, after)."""

    def __init__(self, before: int, after: int, parts: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(before, after // parts) for _ in range(parts))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], 1)


def model(size: Size) -> nn.Module:
    torch.manual_seed(0)
    widths = [64, *[size.width] * size.depth]
    if size.parts == 1:
        return models.mlp(*widths, 10)
    hidden = [m for a, b in itertools.pairwise(widths) for m in (Split(a, b, size.parts), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(size.width, 10))


def data(size: Size) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    return torch.randn(size.samples, 64, generator=random), torch.randint(10, (size.samples,), generator=random)


def epochs(size: Size) -> int:
    """About 64 steps a work."""
    return max(64 * size.batch // size.samples, 1)


def by_hand(size: Size) -> Any:
    inputs, targets = data(size)

    def start() -> Work:
        params = list((net := model(size)).parameters())
        optimizer = torch.optim.AdamW(params, lr=LR)

        def work() -> Done:
            steps = 0
            for _ in range(epochs(size)):
                total = torch.zeros(())
                for rows in torch.randperm(size.samples).split(size.batch):
                    optimizer.zero_grad()
                    value = F.cross_entropy(net(inputs[rows]), targets[rows])
                    value.backward()
                    nn.utils.clip_grad_norm_(params, CLIP)
                    optimizer.step()
                    total += value.detach()
                    steps += 1
            return Done(steps, total.item() * size.batch / size.samples)

        return work

    return start


def single(size: Size) -> Any:
    pipe = Pipeline(
        load.batches(data(size), size=size.batch),
        place.on("cpu"),
        forward.model(lambda: model(size)),
        loss.cross_entropy(),
        backward.gradients(),
        update.clip_norm(CLIP),
        update.adamw(lr=LR, weight_decay=0.01),
    )
    return ours.single(pipe, epochs(size))


def _title(axis: str, factor: int) -> str:
    return f"{axis} x {factor}" if factor > 1 else "once"


POINTS = {_title(axis, k): size(k) for axis, size in AXES.items() for k in FACTORS}
CONTENDERS: dict[str, Contender] = {
    f"{name}, {point}": functools.partial(make, size)
    for point, size in POINTS.items()
    for name, make in ((OURS, single), (HAND, by_hand))
}
RACES = [
    Race(
        title=point,
        contenders=[f"{OURS}, {point}", f"{HAND}, {point}"],
        baseline=f"{HAND}, {point}",
        rounds=3,
        tolerance=0.1,
    )
    for point in POINTS
]


def draw(races: Sequence[charts.Measured]) -> charts.Picture:
    """Times as fast as torch by hand, as one thing grows."""
    results = {name: r for measured in races for name, r in charts.ran(measured).items()}
    titles = {(axis, k): _title(axis, k) for axis in AXES for k in FACTORS}
    spreads = {at: charts.ratios(results[f"{OURS}, {t}"], results[f"{HAND}, {t}"]) for at, t in titles.items()}
    last = {axis: spreads[axis, FACTORS[-1]][1] for axis in AXES}
    most, least = max(last, key=last.__getitem__), min(last, key=last.__getitem__)
    figure, axes = charts.canvas(
        f"Less overhead: {last[most]:.0f} times as fast at 16 x the {most}, {last[least]:.1f} at 16 x the {least}",
        "how many times as much", left=0.75, height=3.6, right=1.5,
    )  # fmt: skip
    for (axis, end), colour, mark in zip(last.items(), charts.COLOURS, charts.MARKS, strict=True):
        low, median, high = zip(*(spreads[axis, k] for k in FACTORS), strict=True)
        axes.plot(FACTORS, median, f"{mark}-", color=colour, linewidth=1.6)
        axes.vlines(FACTORS, low, high, color=colour, linewidth=2)
        axes.annotate(f"{axis}, {end:.1f} x", (FACTORS[-1], end), xytext=(9, 0), textcoords="offset points",
                      va="center", size=10)  # fmt: skip
    axes.axhline(1, color="#111827", linewidth=1, linestyle="--")
    axes.set_xscale("log", base=2)
    axes.set_xticks(FACTORS, [str(k) for k in FACTORS])
    axes.set_xticks([], minor=True)
    axes.set_ylim(0, None)
    axes.set_ylabel("times as fast as torch by hand", size=10, color="#374151")
    return figure
