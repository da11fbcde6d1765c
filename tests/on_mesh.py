"""What the processes of a mesh run in tests: each function is called in all of them."""

from __future__ import annotations

import torch
from torch import nn

from pipeline import Pipeline, backward, evaluate, forward, load, loss, models, place, sources, update
from pipeline.mesh import processes


def digits():
    train, test = sources.digits()
    return {k: t[:200] for k, t in train.tensors.items()}, {k: t[:101] for k, t in test.tensors.items()}


def tokens():
    made = torch.randint(11, (41, 9), generator=torch.Generator().manual_seed(0))
    return {"inputs": made[:, :-1].contiguous(), "targets": made[:, 1:].contiguous()}


def mlp(where):
    """Dropout, an average of the weights, a rule that remembers, and a last batch of 8 in 200."""
    return Pipeline(
        load.batches(digits()[0], size=24),
        where,
        forward.model(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.ReLU(), nn.Dropout(0.2), nn.Linear(30, 10))),
        loss.cross_entropy(),
        evaluate.accuracy(),
        backward.gradients(),
        evaluate.gradient_norm(),
        update.finite(),
        update.clip_norm(0.5),
        update.adamw(3e-3),
        update.ema(0.9),
    )  # fmt: skip


def convnet(where):
    """BatchNorm, and a loss with weights of classes, so that parts of one size count differently."""
    return Pipeline(
        load.batches(digits()[0], size=24),
        where,
        forward.model(lambda: models.convnet(1, 10, widths=(6, 8), dropout=0.1)),
        loss.cross_entropy(weight=torch.linspace(0.5, 2.0, 10)),
        evaluate.confusion(10),
        backward.gradients(),
        update.sgd(0.1, momentum=0.9, weight_decay=1e-3),
    )


def gpt(where):
    """Attention with dropout, tokens that do not count, and a last batch of 1 in 41: fewer samples than processes."""
    return Pipeline(
        load.batches(tokens(), size=8),
        where,
        forward.model(lambda: models.transformer(11, context=8, width=16, heads=2, depth=2, dropout=0.1)),
        loss.cross_entropy(dim=-1, ignore_index=3),
        backward.gradients(),
        evaluate.accuracy(dim=-1),
        update.clip_norm(1.0),
        update.adamw(1e-2, eps=1e-5),
    )


PIPES = {"mlp": mlp, "convnet": convnet, "gpt": gpt}


def ran(pipe, compiled, steps=50):
    """The losses of some steps, the State that they end with, and what it is worth."""
    state, losses = pipe.init(0), []
    program = pipe.compile() if compiled else pipe
    for _ in range(steps):
        state, metrics = program.step(state)
        losses.append(float(metrics["loss"]))
    worth = program.evaluate(state, digits()[1] if "targets" in digits()[1] and pipe.load.data.names and
                             pipe.load.size == 24 else None)  # fmt: skip
    return {"losses": losses, "tree": pipe.whole(state).clone().tree, "worth": worth}


def all_cases(kinds="mlp,convnet,gpt", ways="eager,compiled"):
    """Each pipeline in each way, data parallel and in shards."""
    count = processes()
    made = {}
    for kind in kinds.split(","):
        for way in ways.split(","):
            for shard in sorted({1, count}):
                pipe = PIPES[kind](place.mesh("cpu", shard=shard))
                made[kind, way, shard > 1] = ran(pipe, way == "compiled")
    return made
