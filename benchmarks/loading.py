"""How long does an epoch of shuffled batches take to load from memory?

50,000 samples of 64 float32 numbers with a target each, batch 256: loading alone. A step is a batch.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks import charts
from benchmarks.harness import Contender, Done, Race, Target
from pipeline import load

SAMPLES, SIZE, BATCHES = 50_000, 256, 196
OURS, LOADER, HAND = "ours", "torch DataLoader(TensorDataset)", "torch randperm and index"


@functools.cache
def data() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return torch.randn(SAMPLES, 64, generator=random), torch.randint(10, (SAMPLES,), generator=random)


def ours() -> Any:
    source = load.batches(data(), size=SIZE)
    epoch = -1

    def work() -> Done:
        nonlocal epoch
        epoch += 1
        batches = samples = 0
        for batch in source.epoch(0, epoch):
            batches += 1
            samples += len(batch["inputs"])
        return _checked(batches, samples)

    return lambda: work


def loader() -> Any:
    source = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data()), batch_size=SIZE, shuffle=True)

    def work() -> Done:
        batches = samples = 0
        for x, _ in source:
            batches += 1
            samples += len(x)
        return _checked(batches, samples)

    return lambda: work


def by_hand() -> Any:
    inputs, targets = data()

    def work() -> Done:
        batches = samples = 0
        for rows in torch.randperm(SAMPLES).split(SIZE):
            x, _ = inputs[rows], targets[rows]
            batches += 1
            samples += len(x)
        return _checked(batches, samples)

    return lambda: work


def _checked(batches: int, samples: int) -> Done:
    assert (batches, samples) == (BATCHES, SAMPLES)
    return Done(batches)


CONTENDERS: dict[str, Contender] = {LOADER: loader, HAND: by_hand, OURS: ours}

RACES: list[Race] = [
    Race(
        title="Loading 50,000 x 64 float32 from memory, batch 256",
        contenders=list(CONTENDERS),
        baseline=LOADER,
        targets=[Target(OURS, LOADER, 25)],
    )
]


def draw(races: Sequence[charts.Measured]) -> charts.Picture:
    """Times as fast as a DataLoader."""
    results = charts.ran(races[0])
    spreads = {name: charts.ratios(results[name], results[LOADER]) for name in (OURS, HAND, LOADER)}
    points = {
        name: [
            charts.Point(s, f"{s[1]:.0f} x  ({charts.times(results[name])[1]:,.0f} µs a batch)", charts.colour(name))
        ]
        for name, s in spreads.items()
    }
    return charts.rows(
        f"Shuffled batches from memory: {spreads[OURS][1]:.0f} times as fast as a DataLoader",
        "times as fast as a DataLoader", points, height=0.42,
    )  # fmt: skip
