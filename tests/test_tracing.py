"""Traces: a graph is its function, of all that the function reads; sizes that vary stay symbols."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipeline import testing
from pipeline.compile.tracing import trace
from pipeline.errors import CaptureError
from tests.strategies import normals, seeds

X = torch.arange(12.0).reshape(3, 4)


def ran(traced, *args):
    """What a graph returns on arguments and on what it holds."""
    return traced.graph(*args, *traced.constants)


HELD = torch.arange(4.0) + 1
LAYERS = [nn.Linear(4, 4) for _ in range(2)]


def through_layers(x):
    for layer in LAYERS:
        x = layer(x)
    return (x,)


HOLDING = {
    "a closure": (lambda x: (x * HELD,), [(4,)]),
    "the same twice": (lambda x: (x * HELD + HELD,), [(4,)]),
    "a number": (lambda x: (x * torch.tensor(2.0),), [(1,)]),
    "a list of indices": (lambda x: (x[:, [2, 0, 0]],), [(3,)]),
    "modules in a list": (through_layers, [(4, 4), (4,), (4, 4), (4,)]),
    "nothing": (lambda x: (x + 1,), []),
}


@pytest.mark.parametrize(("function", "shapes"), HOLDING.values(), ids=HOLDING)
def test_what_a_function_holds_becomes_its_last_inputs(function, shapes):
    """Each tensor held is an input once, none of them 0-d, and the graph of all inputs is the function."""
    traced = trace(function, [X])
    assert [tuple(t.shape) for t in traced.constants] == shapes
    inputs = list(traced.graph.graph.find_nodes(op="placeholder"))
    assert len(inputs) == 1 + len(shapes)
    assert not traced.graph.graph.find_nodes(op="get_attr")
    for x in (X, X.neg() + 3):
        testing.same(ran(traced, x), function(x), 1e-6)


def test_held_tensors_are_read_from_the_inputs():
    """The graph has no copy of a held tensor: another one in its place makes another result."""
    traced = trace(lambda x: (x * HELD,), [X])
    [constant] = traced.constants
    assert constant.data_ptr() == HELD.data_ptr()
    testing.same(traced.graph(X, constant * 3), (X * HELD * 3,), 0)


@given(normals((3, 4)), seeds)
def test_gradients_are_part_of_the_graph(x, seed):
    """The graph of a gradient equals the gradient, for other values than those traced."""
    w = torch.randn(4, 2, generator=torch.Generator().manual_seed(seed))

    def function(w, x):
        return (torch.func.grad(lambda w: (x @ w * HELD[:2]).tanh().sum())(w),)

    traced = trace(function, [torch.zeros(4, 2), torch.zeros(3, 4)])
    testing.same(ran(traced, w, x), function(w, x), 1e-6)
    assert traced.operations > 3
    assert [(t.shape, t.dtype) for t in traced.outputs] == [((4, 2), torch.float32)]


def write(w, x):
    """A function that writes into its first argument."""
    w.add_(x.sum(0))
    return (w * 2,)


def test_writes_are_part_of_the_graph():
    """What a function writes into an argument the graph writes too; tracing writes nothing."""
    w = torch.ones(4)
    traced = trace(write, [w, X])
    assert torch.equal(w, torch.ones(4))
    testing.same(ran(traced, w, X), ((torch.ones(4) + X.sum(0)) * 2,), 0)
    assert torch.equal(w, torch.ones(4) + X.sum(0))


def test_a_sparse_held_tensor_is_refused():
    """A tensor without strides can't be an input of compiled code, and the error says its layout."""
    held = torch.eye(4).to_sparse()
    with pytest.raises(CaptureError, match=r"holds a tensor of layout torch.sparse_coo"):
        trace(lambda x: (torch.sparse.mm(held, x.T),), [X])


@pytest.mark.parametrize("draw", [torch.poisson, torch.bernoulli, lambda x: torch.normal(x, 1.0)])
def test_torchs_own_generator_is_refused(draw):
    """What is drawn from the global generator is no function of the arguments."""
    with pytest.raises(CaptureError, match="draws random numbers"):
        trace(lambda x: (draw(x),), [X])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_is_seen_in_the_middle_too(dtype):
    """A graph that computes in less than float32 anywhere says so."""
    traced = trace(lambda x: ((x.to(dtype) * 2).float(),), [X])
    assert traced.low_precision == (dtype is not torch.float32)


def test_models_are_told_that_they_are_compiled():
    """torch.compiler.is_compiling() holds while tracing, and no longer after an error."""
    told = []

    def function(x):
        told.append(torch.compiler.is_compiling())
        raise KeyError

    with pytest.raises(KeyError):
        trace(function, [X])
    assert told == [True]
    assert not torch.compiler.is_compiling()


WIDTHS = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
SIZED = {
    "a mean": lambda x: (x.mean(0), x.sum().view(1) / x.shape[0]),
    "a model": lambda x: (WIDTHS(x).sum(0),),
    "positions": lambda x: (x * torch.arange(x.shape[0])[:, None],),
    "a gradient": lambda x: (torch.func.grad(lambda x: (x @ x.T).tanh().sum())(x),),
}


@pytest.mark.parametrize("function", SIZED.values(), ids=SIZED)
def test_a_graph_of_symbolic_sizes_holds_for_others(function):
    """One trace is the function for every size from two on; one sample is another graph."""
    traced = trace(function, [torch.randn(5, 4)], varying=[{0}])
    assert traced.sizes.free
    for n in (2, 3, 5, 64):
        x = torch.randn(n, 4)
        assert traced.sizes.fit([x])
        testing.same(ran(traced, x), function(x), 1e-5)
    assert not traced.sizes.fit([torch.randn(1, 4)])


@pytest.mark.parametrize(
    "args",
    [
        [torch.zeros(7, 5)],
        [torch.zeros(7, 4, dtype=torch.float64)],
        [torch.zeros(7, 4, 1)],
        [torch.zeros(7, 4)] * 2,
        [],
    ],
)
def test_all_but_the_sizes_that_vary_has_to_be_the_same(args):
    """Another size that does not vary, dtype, or number of dimensions or arguments does not fit."""
    traced = trace(lambda x: (x * 2,), [torch.zeros(5, 4)], varying=[{0}])
    assert traced.sizes.fit([torch.zeros(7, 4)])
    assert not traced.sizes.fit(args)


@given(st.integers(2, 40), st.integers(2, 9))
def test_sizes_of_the_last_arguments_vary(n, width):
    """Dimensions are named for the last arguments; sizes that the function makes equal have to be so."""
    traced = trace(lambda w, x, y: (w + (x * y).sum(0),), [torch.zeros(4)] + [torch.zeros(5, 4)] * 2, [{0}, {0}])
    args = [torch.ones(4), torch.ones(n, 4), torch.ones(n, 4)]
    assert traced.sizes.free
    assert traced.sizes.fit(args)
    testing.same(ran(traced, *args), (torch.ones(4) + n,), 1e-6)
    assert traced.sizes.fit([args[0], torch.ones(width, 4), args[2]]) == (n == width)


def test_linear_layers_of_many_dimensions_keep_symbols():
    """A linear layer on (batch, time, features), with gradients, needs neither size as a number."""
    layer = nn.Linear(4, 3)

    def function(w, x):
        return (torch.func.grad(lambda w: torch.nn.functional.linear(x, w, layer.bias).tanh().sum())(w),)

    w = torch.randn(3, 4)
    traced = trace(function, [w, torch.randn(5, 6, 4)], varying=[{0, 1}])
    assert traced.sizes.free
    for shape in ((2, 3, 4), (7, 2, 4)):
        x = torch.randn(shape)
        assert traced.sizes.fit([w, x])
        testing.same(ran(traced, w, x), function(w, x), 1e-5)


@pytest.mark.parametrize("needs", [lambda x: [0.0] * x.shape[0], lambda x: x.new_zeros(int(x.shape[0])).tolist()])
def test_a_size_needed_as_a_number_is_not_free(needs):
    """A function that makes Python lists as long as the batch works for one size alone, and the trace says so."""

    def function(x):
        return (x * len(needs(x)),)

    traced = trace(function, [torch.zeros(5, 4)], varying=[{0}])
    assert not traced.sizes.free


@pytest.mark.parametrize("view", [False, True])
def test_equal_values_that_are_written_into_stay_apart(view):
    """Two clones are one value only as long as neither is written into, by a view either."""

    def function(x):
        goals, kept, more, same = x.clone(), x.clone(), x + 1, x + 1
        (goals[:2] if view else goals).masked_fill_((goals[:2] if view else goals) == 255, 0)
        return goals, kept, more * same

    x = torch.tensor([1.0, 255.0, 3.0])
    traced = trace(function, [x])
    testing.same(ran(traced, x), function(x), 0)
    assert sum(n.target is torch.ops.aten.add.Tensor for n in traced.graph.graph.nodes) == 1
