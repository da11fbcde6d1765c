"""Graphs as chains of calls: they compute what the whole graph does, and what repeats is one part."""

from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from pipeline import Pipeline, backward, evaluate, forward, load, loss, testing, update
from pipeline.compile.backends import BACKENDS, native, repeats
from pipeline.compile.backends.backend import Backend
from pipeline.compile.backends.torch import Function
from tests import pipes


class Residual(nn.Module):
    """Blocks of the same shapes, which may share their weights, drop out, or write in place."""

    def __init__(self, depth=6, dropout=0.0, tied=False, in_place=False, width=6):
        super().__init__()
        self.first, self.last = nn.Linear(4, width), nn.Linear(width, 3)
        shared = nn.Linear(width, width)
        self.layers = nn.ModuleList(shared if tied else nn.Linear(width, width) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.dropout, self.in_place = nn.Dropout(dropout), in_place

    def forward(self, x):
        x = self.first(x)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            y = layer(norm(x))
            x = x + self.dropout(y.relu_() if self.in_place else y.relu())
        return self.last(x)


def run(chain, given):
    """The results of a chain, whose other values are freed by then."""
    values = dict(enumerate(given[i] for i in chain.inputs))
    for step in chain.calls:
        part = chain.parts[step.part]
        read = [values[i] for i in step.inputs]
        for t, like in zip(read, part.examples, strict=True):
            assert (t.shape, t.stride(), t.dtype) == (like.shape, like.stride(), like.dtype)
        values |= zip(step.outputs, part.graph(*read), strict=True)
        for i in step.freed:
            del values[i]
    assert sorted(values) == sorted({*range(len(chain.inputs)), *chain.outputs})
    return [values[i] for i in chain.outputs]


class Parts(Backend):
    """Runs the parts of a chain in plain Python."""

    name = "parts"
    symbolic = False

    def __init__(self):
        self.chains = []

    def begin(self, traced, args, outputs, context):
        chain = repeats.chain(traced.graph)
        self.chains.append(chain)

        def call(*given):
            values = dict(enumerate(given[i] for i in chain.inputs))
            for step in chain.calls:
                part = chain.parts[step.part]
                read = [values[i] for i in step.inputs]
                assert [(t.shape, t.stride(), t.dtype) for t in part.examples] == [
                    (t.shape, t.stride(), t.dtype) for t in read
                ]
                values |= zip(step.outputs, part.graph(*read), strict=True)
                for i in step.freed:
                    del values[i]
            assert sorted(values) == sorted({*range(len(chain.inputs)), *chain.outputs})  # the rest is freed
            return [values[i].view(o.shape) for i, o in zip(chain.outputs, outputs, strict=True)]

        return lambda: Function("parts", traced.graph if chain is None else call, outputs, 0, context)


@contextmanager
def fine():
    """The backend that runs parts, however short they are."""
    backend = Parts()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repeats, "SHORTEST", 4)
        patch.setattr(repeats, "FEWEST", 8)
        patch.setattr(repeats, "WORTH", 8)
        patch.setitem(BACKENDS, "parts", lambda: backend)
        yield backend


def pipeline(model, *updates, accumulate=1):
    samples = {"inputs": torch.randn(18, 4), "targets": torch.arange(18) % 3}
    stages = (
        forward.model(model),
        loss.cross_entropy(),
        backward.gradients(accumulate=accumulate),
        *updates,
        evaluate.accuracy(),
    )
    return Pipeline(load.batches(samples, size=5), *stages)


UPDATES = {
    "sgd": [update.sgd(0.1)],
    "momentum": [update.clip_norm(1.0), update.sgd(0.1, momentum=0.9)],
    "adamw": [update.clip_norm(1.0), update.adamw(0.01), update.ema(0.9)],
    "muon": [update.muon(0.01)],
}


def deep():
    """A pipeline in parts."""
    return pipeline(lambda: Residual(12, dropout=0.2), *UPDATES["momentum"])


@settings(deadline=None)
@given(
    st.integers(1, 7),
    st.sampled_from([0.0, 0.4]),
    st.booleans(),
    st.booleans(),
    st.sampled_from(sorted(UPDATES)),
    st.sampled_from([1, 1, 2]),
)
def test_parts_compute_what_the_graph_does(depth, dropout, tied, in_place, rule, accumulate):
    """Bit for bit, in the order of the calls, each value freed after the last call that reads it."""
    with fine() as backend:
        pipe = pipeline(lambda: Residual(depth, dropout, tied, in_place), *UPDATES[rule], accumulate=accumulate)
        step = pipe.compile(backend="parts")
        testing.compiled_equals_eager(step, pipe.init(0), [pipes.first(pipe, k) for k in range(3)], 0.0)
    [chain] = backend.chains
    if depth > 3 and (accumulate == 1 or not tied):  # the body of a loop is whole, and shared weights are one update
        assert len(chain.calls) > len(chain.parts)


def test_a_deep_model_is_compiled_once_a_block(monkeypatch):
    """Fewer operations are lowered than run; steps, in one call or in many, and an evaluation are the plain ones. The
    step on the last batch shares the parts that read no batch, such as updates."""
    parts = []
    kept = native._part
    monkeypatch.setattr(native, "_part", lambda part: parts.append(part) or kept(part))
    pipe = deep()
    step = pipe.compile(backend="native")
    step.prepare(pipe.init(0), pipe.load)
    words = [part.words for part in parts if part.words]
    assert len({*words}) == len(words)
    lowered = sum(n.op == "call_function" for part in parts for n in part.graph.graph.nodes)
    assert lowered < sum(graph.operations for graph in step.report.graphs) / 2
    fused, metrics = step.advance(pipe.init(0), 0, 0, pipe.load.batches, results=True)
    fused, single, plain = fused.clone(), pipe.init(0), pipe.init(0)
    for k, values in enumerate(pipe.load.epoch(0, 0)):
        plain, expected = pipe.step(plain, values)
        testing.same({name: m[k] for name, m in metrics.items()}, expected, 1e-5)
        single, one = step.advance(single, 0, k, 1, results=True)  # buffers kept between steps hold nothing of the last
        testing.same({name: m[k : k + 1] for name, m in metrics.items()}, one)
    testing.same(fused.tree, plain.tree, 1e-5)
    testing.same(fused.tree, single.tree)
    assert step.evaluate(fused) == pytest.approx(pipe.evaluate(fused), rel=1e-5)


def test_shallow_models_are_compiled_whole():
    """A model of few operations has no borders."""
    with pytest.MonkeyPatch.context() as patch:
        backend = Parts()
        patch.setitem(BACKENDS, "parts", lambda: backend)
        pipe = pipeline(lambda: Residual(2), *UPDATES["adamw"])
        pipe.compile(backend="parts")(pipe.init(0), pipes.first(pipe))
    assert backend.chains == [None]


@pytest.mark.parametrize("function", [
    lambda x, y: (torch.add(x, y, out=y.clone()),),
    lambda x, y: (torch.cond(x.sum() > 0, lambda a: a.sin(), lambda a: a.cos(), (y,)),),
])  # fmt: skip
def test_operations_of_unknown_effects_are_left_whole(function):
    """What writes into another argument than its first, or has graphs inside, is in no part."""
    graph = make_fx(function, tracing_mode="fake")(torch.ones(3), torch.ones(3))
    assert repeats.chain(graph) is None


def own_writes(x):
    """Overwrites a new tensor with a function of itself."""
    for _ in range(60):
        x = x.sin().cos().exp().tanh().relu()
    y = x.exp()
    y.mul_(y.sigmoid())
    return y, x + 1


def results_apart(x):
    """Layers of several results, the first of which differs from the others in a number."""
    norm = torch.ops.aten.native_layer_norm
    several = norm(x, [6], None, None, 1e-12)
    for _ in range(2):
        x, mean, scale = several
        for _ in range(100):
            x = (x + mean * scale).tanh()
        several = norm(x, [6], None, None, 1e-5)
    return (several[0] + several[1] + several[2],)


@pytest.mark.parametrize("function", [own_writes, results_apart])
def test_cuts_are_where_they_may_be(function):
    """What is written is made before, and the results of one operation are in one part."""
    x = torch.rand(5, 6)
    chain = repeats.chain(make_fx(function, tracing_mode="fake")(x))
    assert len(chain.calls) > len(chain.parts)
    testing.same(run(chain, [x.clone()]), list(function(x)))
