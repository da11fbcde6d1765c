"""How far is a step of the tutorials' network from its bare matrix products?

784-128-10, SGD with lr 0.01, batch 64, 1,000 random samples, the loss measured. The floor is the five matrix products
of a step's forward and backward, into memory that is there already, without a bias, ReLU, loss, update or batch.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from benchmarks import charts, ours
from benchmarks.harness import Contender, Done, Race, Target, Work
from pipeline import Pipeline, backward, forward, load, loss, models, place, update

SAMPLES, SIZE, BATCHES, EPOCHS, LR = 1000, 64, 16, 20, 0.01
TUTORIAL, OURS, FUSED, FLOOR = (
    "torch, the tutorials' loop",
    "ours, one step a call",
    "ours, fused",
    "the matrix products",
)


@functools.cache
def data() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return torch.randn(SAMPLES, 784, generator=random), torch.randint(10, (SAMPLES,), generator=random)


def model() -> nn.Module:
    torch.manual_seed(0)
    return models.mlp(784, 128, 10)


def tutorial() -> Any:
    batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data()), batch_size=SIZE, shuffle=True)
    criterion = nn.CrossEntropyLoss()

    def start() -> Work:
        net = model()
        optimizer = torch.optim.SGD(net.parameters(), lr=LR)

        def work() -> Done:
            steps = 0
            for _ in range(EPOCHS):
                total = 0.0
                for x, y in batches:
                    optimizer.zero_grad()
                    value = criterion(net(x), y)
                    value.backward()
                    optimizer.step()
                    total += value.item() * len(x)
                    steps += 1
            return Done(steps, total / SAMPLES)

        return work

    return start


def pipeline() -> Pipeline:
    return Pipeline(
        load.batches(data(), size=SIZE),
        place.on("cpu"),
        forward.model(model),
        loss.cross_entropy(),
        backward.gradients(),
        update.sgd(lr=LR),
    )


def floor() -> Any:
    """The products x W1', h W2', g h, g W2 and g' x, for the batches of an epoch."""
    w1, w2 = torch.randn(128, 784), torch.randn(10, 128)
    calls = []
    for n in [*[SIZE] * (BATCHES - 1), SAMPLES - SIZE * (BATCHES - 1)]:
        x, h, g2, g1 = torch.randn(n, 784), torch.randn(n, 128), torch.randn(n, 10), torch.randn(n, 128)
        pairs = ((x, w1.T), (h, w2.T), (g2.T, h), (g2, w2), (g1.T, x))
        calls.append([(a, b, torch.empty(a.shape[0], b.shape[1])) for a, b in pairs])

    def work() -> Done:
        mm, steps = torch.mm, 0
        for _ in range(EPOCHS):
            for step in calls:
                for a, b, out in step:
                    mm(a, b, out=out)
                steps += 1
        return Done(steps)

    return lambda: work


CONTENDERS: dict[str, Contender] = {
    TUTORIAL: tutorial,
    OURS: lambda: ours.single(pipeline(), EPOCHS),
    FUSED: lambda: ours.fused(pipeline(), EPOCHS),
    FLOOR: floor,
}

RACES = [
    Race(
        title="The tutorials' network, 784-128-10, batch 64",
        contenders=list(CONTENDERS),
        baseline=TUTORIAL,
        targets=[
            Target(OURS, TUTORIAL, 2),
            Target(FUSED, TUTORIAL, 2),
            Target(OURS, FLOOR, 1 / 1.25),
            Target(FUSED, FLOOR, 1 / 1.25),
        ],
        tolerance=0.1,
    )
]


def draw(races: Sequence[charts.Measured]) -> charts.Picture:
    """Time a step in units of its matrix products."""
    results = charts.ran(races[0])
    floor = results[FLOOR]
    spreads = {name: charts.ratios(floor, results[name]) for name in (FUSED, OURS, TUTORIAL)}
    points = {
        name: [charts.Point(s, f"{s[1]:.2f} x  ({charts.times(results[name])[1]:,.0f} µs)", charts.colour(name))]
        for name, s in spreads.items()
    }
    figure = charts.rows(
        f"A whole step of a 784-128-10 net takes {spreads[FUSED][1]:.2f} times its bare matrix products",
        "time a step, as a multiple of its matrix products alone (dashed)", points, height=0.42,
    )  # fmt: skip
    return charts.line_at_one(figure)
