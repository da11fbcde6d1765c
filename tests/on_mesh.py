"""What the processes of a mesh run in tests: each function is called in all of them."""

from __future__ import annotations

import torch
from torch import nn

from pipeline import (
    Pipeline,
    backward,
    checkpoint,
    evaluate,
    fit,
    forward,
    load,
    loss,
    mesh,
    models,
    place,
    sources,
    update,
)
from pipeline.errors import PipeError
from pipeline.mesh import processes
from pipeline.stage import stage
from pipeline.tree import named


def digits():
    train, test = sources.digits()
    return {k: t[:200] for k, t in train.tensors.items()}, {k: t[:101] for k, t in test.tensors.items()}


def tokens():
    made = torch.randint(11, (41, 9), generator=torch.Generator().manual_seed(0))
    return {"inputs": made[:, :-1].contiguous(), "targets": made[:, 1:].contiguous()}


def mlp(where):
    """Dropout, an average of the weights, a rule that remembers, and batches of 26 and 18, which four can't share."""
    return Pipeline(
        load.batches(digits()[0], size=26),
        where,
        forward.model(
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.ReLU(), nn.Dropout(0.2), nn.Linear(30, 10))
        ),
        loss.cross_entropy(),
        evaluate.accuracy(),
        backward.gradients(),
        evaluate.gradient_norm(),
        update.finite(),
        update.clip_norm(0.5),
        update.adamw(3e-3),
        update.ema(0.9),
    )


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
        forward.model(lambda: models.transformer(11, context=8, width=16, heads=2, depth=1, dropout=0.1)),
        loss.cross_entropy(dim=-1, ignore_index=3),
        backward.gradients(),
        evaluate.accuracy(dim=-1),
        update.clip_norm(1.0),
        update.adamw(1e-2, eps=1e-5),
    )


def small(where):
    """One size of batches, which two can't share evenly, and few operations: for what takes long to compile."""
    return Pipeline(
        load.batches({k: t[:198] for k, t in digits()[0].items()}, size=9),
        where,
        forward.model(
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.ReLU(), nn.Dropout(0.2), nn.Linear(30, 10))
        ),
        loss.cross_entropy(),
        backward.gradients(),
        update.clip_norm(0.5),
        update.sgd(0.1, momentum=0.9),
    )


class Scaled(nn.Linear):
    """A layer with a 0-d parameter, which is in no shard."""

    def __init__(self):
        super().__init__(64, 10)
        self.scale = nn.Parameter(torch.tensor(5.0))

    def forward(self, x):
        return super().forward(x.flatten(1)) * self.scale


@stage(writes=("loss", "loss.weight"))
def mean_of_counted(outputs, targets):
    """0 / 0 on a process whose targets do not count."""
    counted = targets >= 0
    each = nn.functional.cross_entropy(outputs, targets.clamp(min=0), reduction="none")
    return (each * counted).sum() / counted.sum(), counted.sum().double()


def masked(where):
    """Batches of 4, of which the last two samples do not count, and clipped gradients."""
    data = digits()[0]
    data["targets"] = torch.where(torch.arange(200) % 4 < 2, data["targets"], -100)
    return Pipeline(
        load.batches(data, size=4, shuffle=False), where, forward.model(Scaled), mean_of_counted, backward.gradients(),
        update.clip_norm(0.1), update.sgd(0.1),
    )  # fmt: skip


PIPES = {"mlp": mlp, "convnet": convnet, "gpt": gpt, "small": small, "masked": masked}


def ran(pipe, backend=None, steps=50):
    """The losses of some steps, the State that they end with, and what it is worth."""
    state, losses = pipe.init(0), []
    program = pipe.compile(backend=backend) if backend else pipe
    for _ in range(steps):
        state, metrics = program.step(state)
        losses.append(float(metrics["loss"]))
    worth = program.evaluate(state, None if pipe.load.size < 10 else digits()[1])
    held = sum(t.nbytes for k, t in named(state.tree).items() if k.startswith(("params/", "memory/update.")))
    return {"losses": losses, "tree": pipe.whole(state).clone().tree, "worth": worth, "held": held}


def all_cases(kinds, backend, shards):
    """Each pipeline, uncompiled or by a backend, in each number of shards."""
    made = {}
    for kind in kinds.split(","):
        for shard in map(int, shards.split(",")):
            pipe = PIPES[kind](place.mesh("cpu", shard=shard))
            made[kind, shard] = ran(pipe, None if backend == "uncompiled" else backend)
    return made


def of_two(folder):
    """What two processes do in one start of them."""
    return {
        "uncompiled": all_cases("mlp,convnet,gpt,masked", "uncompiled", "1,2"),
        "aot_eager": all_cases("gpt", "aot_eager", "2"),
        "saved": saved(folder, 1),
        "trouble": trouble(),
    }


def of_four(folder):
    """What four processes do in one start of them."""
    return {"uncompiled": all_cases("mlp", "uncompiled", "2,4"), "went_on": went_on(folder, 2)}


def linear(where, *between, data=None, rule=None):
    return Pipeline(
        load.batches(data or digits()[0], size=20),
        where,
        forward.model(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10))),
        *between,
        backward.gradients(),
        rule or update.sgd(0.1),
    )


@stage(writes="loss")
def contrast(outputs, targets):
    """Each sample against all others of the batch."""
    return torch.logsumexp(outputs @ outputs.T, 1).mean()


@stage(writes="loss")
def contrast_of_all(outputs, targets):
    """The same, of the whole batch on each process."""
    return torch.logsumexp(outputs @ mesh.gathered(outputs).T, 1).mean()


@stage(writes="mixed")
def mixed(outputs):
    return outputs - outputs.mean(0)


@stage(writes="mixed")
def mixed_of_all(outputs):
    return outputs - mesh.summed(outputs.sum(0)) / mesh.summed(torch.full((), float(len(outputs))))


@update.rule(memory=lambda p: {"norm": torch.zeros(())})
def by_norm(p, g, memory, lr=0.1):
    """A rule that is of the whole tensor, as LAMB and Muon are: in shards it is given that."""
    norm = 0.9 * memory["norm"] + g.norm()
    return p - lr * g / (norm + 1e-3), {"norm": norm}


def trouble():
    """What is said where a step can't be one of a mesh, and what the steps come to that can."""
    count, said, worth = processes(), {}, {}
    where = place.mesh("cpu", shard=count)
    rank = 0 if where.mesh is None else where.mesh.rank

    def tried(name, make, steps=None):
        try:
            pipe = make()
            for report in fit(pipe, epochs=1, compile=False):
                worth[name] = {k: v.clone() for k, v in pipe.whole(report.state).params.items()}
        except PipeError as e:
            said[name] = str(e)

    tried("contrast", lambda: linear(where, contrast))
    tried("gathered", lambda: linear(where, contrast_of_all))
    tried("mixed", lambda: linear(where, mixed, loss.cross_entropy().rename(outputs="mixed")))
    tried("summed", lambda: linear(where, mixed_of_all, loss.cross_entropy().rename(outputs="mixed")))
    tried("whole rule", lambda: linear(where, loss.cross_entropy(), rule=by_norm()))
    tried("muon", lambda: linear(where, loss.cross_entropy(), rule=update.muon(0.01)))
    tried("accumulate", lambda: linear(where, loss.cross_entropy()).replace(
        "backward.gradients", backward.gradients(accumulate=3)))  # fmt: skip
    tried("tape", lambda: linear(where, loss.cross_entropy()).replace(
        "backward.gradients", backward.gradients(route="tape")))  # fmt: skip
    other = {"inputs": torch.zeros(60, 8, 8), "targets": torch.full((60,), rank)}
    tried("data", lambda: linear(where, loss.cross_entropy(), data=other))
    tried("each", lambda: linear(where, loss.cross_entropy()).replace(
        "backward.gradients", backward.gradients(per_example=True)))  # fmt: skip
    tried("loader", lambda: linear(where, loss.cross_entropy()).replace(
        "load.batches", load.loader([digits()[0]])))  # fmt: skip
    bad = {k: t.clone() for k, t in digits()[0].items()}
    bad["inputs"][150] = 3e38  # on one process
    nan = linear(where, loss.cross_entropy(), data=bad).insert(update.finite(), after="backward.gradients")
    tried("nan", lambda: nan)
    try:
        place.mesh("cpu", data=3, shard=count)
    except PipeError as e:
        said["count"] = str(e)
    return said, worth


def saved(folder, epochs):
    """A run in shards, which keeps its checkpoints."""
    pipe = mlp(place.mesh("cpu", shard=processes()))
    with checkpoint.Saver(folder, best="accuracy", pipe=pipe) as saver:
        for report in fit(pipe, epochs=int(epochs), validate=digits()[1], compile=False, every=4):
            saver.offer(report, now=report.batch == 4)
    return pipe.whole(report.state).clone().tree


def went_on(folder, epochs):
    """A run from the newest checkpoint."""
    pipe = mlp(place.mesh("cpu", shard=processes()))
    old = checkpoint.newest(folder).saved
    *_, last = fit(pipe, epochs=int(epochs), compile=False, state=old.restore(pipe), start=old.start)
    return pipe.whole(last.state).clone().tree
