"""How long does a grid of 16 learning rates by 4 seeds take, beside the tutorials' loop in a pool of processes?

A classifier of the digits, 64-32-10, by SGD with momentum, batch 64, 20 epochs, the held-out accuracy after each: 64
runs. The pool has a started process for each core, with imports and data; ours has compiled programs. The time is of
one run's step, with initialization.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import charts
from benchmarks.harness import Contender, Done, Race, Target, Work
from pipeline import Pipeline, backward, evaluate, fit, forward, load, loss, models, place, sources, sweep, update

EPOCHS, SIZE, SEEDS = 20, 64, 4
RATES = [10 ** (-3 + i / 5) for i in range(16)]
OURS, POOL = "ours, a sweep", "torch, the tutorials' loop, a process for each core"


def digits() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Training and held-out samples: inputs (N, 1, 8, 8) and targets (N,)."""
    return [(part.tensors["inputs"], part.tensors["targets"]) for part in sources.digits()]


def run(setting: tuple[float, int]) -> tuple[int, float, float]:
    """One run as in torch's tutorials: steps, loss of the last epoch, held-out accuracy."""
    lr, seed = setting
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    train, test = (TensorDataset(*part) for part in _digits())
    batches, held_out = DataLoader(train, batch_size=SIZE, shuffle=True), DataLoader(test, batch_size=SIZE)
    model, criterion = models.mlp(64, 32, 10), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    steps, mean, accuracy = 0, 0.0, 0.0
    for _ in range(EPOCHS):
        model.train()
        total = 0.0
        for x, y in batches:
            optimizer.zero_grad()
            value = criterion(model(x), y)
            value.backward()
            optimizer.step()
            total += value.item() * len(x)
            steps += 1
        mean = total / len(train)
        model.eval()
        with torch.no_grad():
            accuracy = sum(int((model(x).argmax(1) == y).sum()) for x, y in held_out) / len(test)
    return steps, mean, accuracy


_digits = functools.cache(digits)


def pool() -> Callable[[], Work]:
    processes = get_context("spawn").Pool(os.cpu_count())
    processes.map(run, [(0.1, 0)] * 8, chunksize=1)  # imports and data

    def work() -> Done:
        ends = processes.map(run, [(lr, seed) for lr in RATES for seed in range(SEEDS)], chunksize=1)
        return Done(sum(steps for steps, _, _ in ends), accuracy=_best([accuracy for _, _, accuracy in ends]))

    return lambda: work


def ours() -> Callable[[], Work]:
    train, test = sources.digits()
    pipe = Pipeline(
        load.batches(train, size=SIZE),
        place.on("cpu"),
        forward.model(lambda: models.mlp(64, 32, 10)),
        loss.cross_entropy(),
        evaluate.accuracy(),
        backward.gradients(),
        update.sgd(lr=0.1, momentum=0.9),
    )
    runs = sweep(pipe, seeds=SEEDS, hyper={"lr": RATES})
    program = runs.compile()

    def work() -> Done:
        *_, last = fit(runs, epochs=EPOCHS, validate=test, compile=program)
        return Done(last.step * runs.members, accuracy=_best(last.validate["accuracy"]))

    return lambda: work


def _best(accuracies: list[float]) -> float:
    """The mean over seeds for the best learning rate."""
    means = [sum(accuracies[i : i + SEEDS]) / SEEDS for i in range(0, len(accuracies), SEEDS)]
    return max(means)


CONTENDERS: dict[str, Contender] = {OURS: ours, POOL: pool}

RACES: list[Any] = [
    Race(
        title="16 learning rates by 4 seeds, all cores",
        contenders=[OURS, POOL],
        baseline=POOL,
        targets=[Target(OURS, POOL, 20)],
        threads=os.cpu_count() or 1,
        rounds=5,
        seconds=0.2,
    )
]


def draw(races: Sequence[charts.Measured]) -> charts.Picture:
    """Time of the whole grid."""
    results = charts.ran(races[0])
    spreads = {name: charts.times(results[name], results[name].steps) for name in (OURS, POOL)}
    labels = {OURS: OURS, POOL: "the tutorials' loop in a process pool"}
    points = {labels[name]: [charts.Point(s, f"{s[1]:.2g} s", charts.colour(name))] for name, s in spreads.items()}
    ratio = charts.ratios(results[OURS], results[POOL])[1]
    return charts.rows(
        f"{len(RATES) * SEEDS} runs as one sweep: {ratio:.0f} times as fast as a process pool",
        f"seconds for {len(RATES)} learning rates by {SEEDS} seeds", points, height=0.42,
    )  # fmt: skip
