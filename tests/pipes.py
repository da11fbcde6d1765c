"""Pipelines that several tests share, each compiled once a session."""

import functools
import os

import torch
from torch import nn

from pipeline import Pipeline, backward, evaluate, forward, load, loss, models, place, schedules, sources, update
from pipeline.compile.backends import BACKENDS
from pipeline.compile.backends.torch import LAUNCHES, Function, Torch

DIGITS, TEST = sources.digits()


class AsTraced(Torch):
    """Runs a graph as it was traced, one operation after the other, none left out."""

    devices = ()  # "auto" does not take it

    def refusal(self, traced, device):
        return None

    def begin(self, traced, args, outputs, context):
        together = 0 if traced.sizes is not None else max(LAUNCHES // max(traced.operations, 1), 1)
        return lambda: Function(self.name, traced.graph.forward, outputs, together, context)


BACKENDS["as traced"] = lambda: AsTraced("as traced")
TRACED = "aot_eager" if os.environ.get("HYPOTHESIS_PROFILE") == "thorough" else "as traced"
"""The backend of tests of what is traced, and not of what compilers make of it: those take as long as the tracing."""


def digits(*updates, model=lambda: models.mlp(64, 16, 10), size=64, **options):
    """A classifier of the digits."""
    return Pipeline(
        load.batches(DIGITS, size=size),
        place.on("cpu"),
        forward.model(model),
        loss.cross_entropy(),
        evaluate.accuracy(),
        backward.gradients(**options),
        *(updates or (update.clip_norm(1.0), update.adamw(schedules.cosine(3e-3, steps=100, warmup=5)))),
    )


def mlp():
    return digits()


def convnet():
    """As many batches as the MLP has, but all of one size, which halves its programs."""
    even = {name: values[: 23 * 62] for name, values in DIGITS.tensors.items()}
    pipe = digits(update.sgd(0.1, momentum=0.9), model=lambda: models.convnet(1, 10, widths=(4, 8), dropout=0.3))
    return pipe.replace("load.batches", load.batches(even, size=62))


def transformer():
    """Next-token prediction on a repeating text."""
    tokens = torch.arange(66 * 8).reshape(66, 8) * 7 % 13
    data = {"inputs": tokens, "targets": (tokens + 7) % 13}
    model = functools.partial(models.transformer, 13, width=16, heads=2, depth=1, context=8)
    return Pipeline(
        load.batches(data, size=33),
        forward.model(model),
        loss.cross_entropy(dim=-1),
        evaluate.accuracy(dim=-1),
        evaluate.perplexity(dim=-1),
        backward.gradients(),
        update.sgd(0.1),
    )


ALL = {"mlp": mlp, "convnet": convnet, "transformer": transformer}


def small():
    """As few programs as can be, of one size and few operations: for what takes long to compile."""
    even = {name: values[: 23 * 62] for name, values in DIGITS.tensors.items()}
    return digits(update.sgd(0.1)).replace("load.batches", load.batches(even, size=62))


def prepared(pipe, backend="auto"):
    """A compiled step, whose programs are made together: torch's headers take the compiler longer than each."""
    step = pipe.compile(backend=backend)
    step.prepare(pipe.init(0, steps=99), pipe.load)
    return step


@functools.cache
def compiled(name):
    """One of the pipelines, and its compiled step."""
    pipe = ALL[name]()
    return pipe, prepared(pipe)


def first(pipe, epoch=0):
    return next(iter(pipe.load.epoch(0, epoch)))


class Linear(nn.Module):
    """The smallest model: one layer, in any dtype."""

    def __init__(self, inputs=4, outputs=3, dtype=torch.float32):
        super().__init__()
        self.layer = nn.Linear(inputs, outputs, dtype=dtype)

    def forward(self, x):
        return self.layer(x)
