"""How long does one training step of a small classifier take, loading its batch included?

Digits (64-32-10, batch 64), AdamW, gradients clipped to norm 1, a cosine schedule, training loss and accuracy. One
work is a run of 20 epochs from the same first weights.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR

from benchmarks import charts, jax_digits, job, ours, peers
from benchmarks.harness import Contender, Done, Race, Target, Work
from pipeline import Pipeline, backward, evaluate, forward, load, loss, place, schedules, update

TUTORIAL, HAND = "torch, the tutorials' loop", "torch by hand"
IDIOM, HALF = "torch.compile, model and optimizer", "torch.compile, model; fused AdamW"
OURS, FUSED = "ours, one step a call", "ours, fused"
JIT, SCAN = "JAX + Optax, jit a step", "JAX + Optax, scan an epoch"


# -- torch


def tutorial() -> Any:
    """As torch's tutorials write it: a DataLoader, and item() for the loss and the accuracy."""
    inputs, targets = job.data()
    batches = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(inputs, targets), batch_size=job.SIZE, shuffle=True
    )
    criterion = nn.CrossEntropyLoss()

    def start() -> Work:
        model = job.model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=job.LR)
        scheduler = CosineAnnealingLR(optimizer, T_max=job.STEPS)

        def work() -> Done:
            steps = 0
            for _ in range(job.EPOCHS):
                total, correct = 0.0, 0.0
                for x, y in batches:
                    optimizer.zero_grad()
                    outputs = model(x)
                    value = criterion(outputs, y)
                    value.backward()
                    nn.utils.clip_grad_norm_(model.parameters(), job.CLIP)
                    optimizer.step()
                    scheduler.step()
                    total += value.item() * len(x)
                    correct += (outputs.argmax(1) == y).sum().item()
                    steps += 1
            return Done(steps, total / len(inputs), correct / len(inputs))

        return work

    return start


def by_hand() -> Any:
    """Without a DataLoader, without item(), and with the optimizer's fused kernel."""
    inputs, targets = job.data()

    def start() -> Work:
        model = job.model()
        params = list(model.parameters())
        optimizer = torch.optim.AdamW(params, lr=job.LR, fused=True)
        scheduler = CosineAnnealingLR(optimizer, T_max=job.STEPS)

        def work() -> Done:
            steps = 0
            for _ in range(job.EPOCHS):
                total, correct = torch.zeros(()), torch.zeros((), dtype=torch.int64)
                for rows in torch.randperm(len(inputs)).split(job.SIZE):
                    x, y = inputs[rows], targets[rows]
                    optimizer.zero_grad()
                    outputs = model(x)
                    value = F.cross_entropy(outputs, y)
                    value.backward()
                    nn.utils.clip_grad_norm_(params, job.CLIP)
                    optimizer.step()
                    scheduler.step()
                    total += value.detach() * len(x)
                    correct += (outputs.argmax(1) == y).sum()
                    steps += 1
            return Done(steps, total.item() / len(inputs), correct.item() / len(inputs))

        return work

    return start


def idiom(*, fused: bool) -> Any:
    """The model with its loss compiled; and the optimizer with its scheduler, as torch's recipe has it, or torch's own
    fused kernel.

    Source: docs.pytorch.org/tutorials/recipes/compiling_optimizer_lr_scheduler.html
    """
    inputs, targets = job.data()
    model = job.model()
    first = {k: v.clone() for k, v in model.state_dict().items()}
    params = list(model.parameters())
    optimizer = torch.optim.AdamW(params, lr=torch.tensor(job.LR), fused=fused)
    scheduler: Any = None

    @torch.compile(fullgraph=True, dynamic=False)
    def objective(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        outputs = model(x)
        return F.cross_entropy(outputs, y), (outputs.argmax(1) == y).sum()

    def update() -> None:
        nn.utils.clip_grad_norm_(params, job.CLIP)
        optimizer.step()
        scheduler.step()

    step = update if fused else torch.compile(update, fullgraph=False)

    def start() -> Work:
        nonlocal scheduler
        # The same objects again, or everything would be compiled anew.
        model.load_state_dict(first)
        for memory in optimizer.state.values():
            for tensor in memory.values():
                tensor.zero_()
        for group in optimizer.param_groups:
            group["lr"].fill_(job.LR)
            group.pop("initial_lr", None)
        scheduler = CosineAnnealingLR(optimizer, T_max=job.STEPS)

        def work() -> Done:
            steps = 0
            for _ in range(job.EPOCHS):
                total, correct = torch.zeros(()), torch.zeros((), dtype=torch.int64)
                for rows in torch.randperm(len(inputs)).split(job.SIZE):
                    x, y = inputs[rows], targets[rows]
                    optimizer.zero_grad()
                    value, right = objective(x, y)
                    value.backward()
                    step()
                    total += value.detach() * len(x)
                    correct += right
                    steps += 1
            return Done(steps, total.item() / len(inputs), correct.item() / len(inputs))

        return work

    return start


# -- ours


def pipeline() -> Pipeline:
    """The same job as stages."""
    return Pipeline(
        load.batches(job.data(), size=job.SIZE),
        place.on("cpu"),
        forward.model(job.model),
        loss.cross_entropy(),
        evaluate.accuracy(),
        backward.gradients(),
        update.clip_norm(job.CLIP),
        update.adamw(lr=schedules.cosine(job.LR), weight_decay=job.DECAY),
    )


CONTENDERS: dict[str, Contender] = {
    TUTORIAL: tutorial,
    HAND: by_hand,
    IDIOM: functools.partial(idiom, fused=False),
    HALF: functools.partial(idiom, fused=True),
    OURS: lambda: ours.single(pipeline(), job.EPOCHS),
    FUSED: lambda: ours.fused(pipeline(), job.EPOCHS),
    JIT: jax_digits.jitted,
    SCAN: jax_digits.scanned,
    **peers.CONTENDERS,
}

RACES = [
    Race(
        title="Digits: an MLP of 2,410 parameters, batch 64",
        contenders=list(CONTENDERS),
        baseline=TUTORIAL,
        targets=[
            Target(OURS, TUTORIAL, 12),
            Target(OURS, IDIOM, 7),
            Target(OURS, JIT, 1),
            Target(FUSED, TUTORIAL, 20),
            Target(FUSED, SCAN, 1),
            *(Target(FUSED, peer, 25) for peer in peers.CONTENDERS if "JAX" not in peer),
        ],
        tolerance=0.1,
    )
]


def draw(races: Sequence[charts.Measured]) -> charts.Picture:
    """Time a step of each contender, the fastest on top."""
    results = charts.ran(races[0])
    spreads = {name: charts.times(r) for name, r in results.items()}
    ratio = {name: charts.ratios(r, results[TUTORIAL])[1] for name, r in results.items()}
    points = {
        name: [charts.Point(s, f"{s[1]:,.0f} µs  ({ratio[name]:.2g} x)", charts.colour(name))]
        for name, s in sorted(spreads.items(), key=lambda item: item[1][1])
    }
    return charts.rows(
        f"A training step of a small net: {ratio[FUSED]:.0f} times as fast as the tutorials' loop",
        "µs a step, log scale (in brackets: times as fast as the tutorials' loop)", points, start=20,
        log=True,
    )  # fmt: skip
