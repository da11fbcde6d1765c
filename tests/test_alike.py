"""Calls that are alike are copied in a graph: the graph is the one that tracing each of them gives."""

from contextlib import ExitStack
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from pipeline import Pipeline, backward, forward, loss, update
from pipeline.alike import traced_once
from pipeline.compile import tracing
from pipeline.update.rule import rule, zeros

PLACES = ("pipeline.update.rule", "pipeline.update.clip", "pipeline.compile.flatten")


def described(graph):
    """A graph without names: each operation with the places of what it reads, the layout of its value, and the first
    operation whose memory it shares."""
    nodes = list(graph.graph.nodes)
    place = {n: i for i, n in enumerate(nodes)}
    memory = {}

    def value(n):
        val = n.meta.get("val")
        values = val if isinstance(val, (tuple, list)) else [val]
        return [
            (t.dtype, t.shape, t.stride(), t.storage_offset(), memory.setdefault(t.untyped_storage()._cdata, place[n]))
            for t in values
            if isinstance(t, torch.Tensor)
        ]

    def read(x):
        return torch.fx.node.map_arg(x, lambda n: place[n])

    stage = [tracing.stage_of(n) if n.op == "call_function" else "" for n in nodes]
    return [
        (n.op, str(n.target) if n.op == "call_function" else "", read(n.args), read(n.kwargs), value(n), s)
        for n, s in zip(nodes, stage, strict=True)
    ]


def traced(pipe, batch, once=True):
    """The graph of a train step; `once`: with copies of what is alike."""
    taken = []

    def stop(*args, **keywords):
        taken.append(tracing.trace(*args, **keywords).graph)
        raise KeyboardInterrupt

    with ExitStack() as patches:
        for place in () if once else PLACES:
            patches.enter_context(mock.patch(f"{place}.traced_once", lambda f: f))
        patches.enter_context(mock.patch("pipeline.compile.build.trace", stop))
        patches.enter_context(pytest.raises(KeyboardInterrupt))
        pipe.compile()(pipe.init(0), batch)
    return taken[0]


@rule(memory=zeros("noise"))
def noisy(p, g, memory, lr=0.1):
    """A rule that draws, and reads views of its arguments."""
    noise = torch.randn_like(p)
    return p - lr * (g.view(-1).view_as(p) + 0.01 * noise), {"noise": noise.view_as(p)}


RULES = {
    "sgd": lambda: update.sgd(0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adamw": lambda: update.adamw(0.01),
    "muon": lambda: update.muon(0.01),
    "lamb": lambda: update.lamb(0.01),
    "noisy": lambda: noisy(0.1),
    "groups": lambda: update.groups({"*.bias": update.sgd(0.1), "*": update.adam(0.01)}),
}


@settings(max_examples=settings.default.max_examples // 3)
@given(
    name=st.sampled_from(sorted(RULES)),
    widths=st.lists(st.sampled_from([3, 4]), min_size=3, max_size=6),
    tied=st.booleans(),
    clip=st.booleans(),
)
def test_copies_are_what_tracing_gives(name, widths, tied, clip):
    """Operations, layouts, shared memory and stages of a graph are those of tracing each call by itself."""
    layers = [nn.Linear(a, b) for a, b in zip([4, *widths], [*widths, 4], strict=True)]
    if tied and len(layers) > 3 and layers[1].weight.shape == layers[2].weight.shape:
        layers[2].weight = layers[1].weight
    model = nn.Sequential(*[m for layer in layers for m in (layer, nn.Tanh())])
    stages = [update.clip_norm(1.0)] if clip else []
    pipe = Pipeline(forward.model(model), loss.cross_entropy(), backward.gradients(), *stages, RULES[name]())
    batch = {"inputs": torch.randn(8, 4), "targets": torch.arange(8) % 4}
    assert described(traced(pipe, batch)) == described(traced(pipe, batch, once=False))


def counted(function, *tensors):
    """How often a function is called while it is traced for each of some tensors, and the sum of its results."""
    calls = []

    def noted(x):
        calls.append(x)
        return function(x)

    def program(*given):
        each = traced_once(noted)
        return [each(x) for x in given]

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        graph = make_fx(program)(*map(mode.from_tensor, tensors))
    for made, expected in zip(graph(*tensors), program(*tensors), strict=True):
        assert made.equal(expected)
    return len(calls) - len(tensors)


def test_only_what_is_alike_is_copied():
    """Two calls of a layout are traced, and others copied; calls that differ, or hold a tensor, are all traced."""
    tensors = [torch.randn(3) for _ in range(5)]
    assert counted(lambda x: x.mul(2).view(3, 1) + 1, *tensors) == 2
    assert counted(lambda x: x.mul(2), *tensors, *[torch.randn(4) for _ in range(3)]) == 4
    numbers = iter(range(100))
    assert counted(lambda x: x + next(numbers) * 0, *tensors) == 2
    held = torch.randn(3)
    assert counted(lambda x: x + held, *tensors) == 5
    steps = iter([0, 1, 2, 3, 4] * 2)
    assert counted(lambda x: x + next(steps), *tensors) == 5


def test_is_the_function_itself_if_nothing_is_traced():
    assert traced_once(torch.mul) is torch.mul
