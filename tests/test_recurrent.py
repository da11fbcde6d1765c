"""Recurrent layers in a graph: one operation each, forward and backward, that does what torch does."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from pipeline import Pipeline, backward, forward, loss, testing, update
from pipeline.compile import key
from pipeline.compile.recurrent import kept_whole
from pipeline.compile.tracing import trace
from pipeline.errors import CaptureError

LAYERS = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "tanh": nn.RNN,
    "relu": lambda *args, **options: nn.RNN(*args, nonlinearity="relu", **options),
}
FORWARD, BACKWARD = torch.ops.pipeline.recurrent.default, torch.ops.pipeline.recurrent_backward.default


def gradients(layer):
    """A function of a layer's inputs and parameters: what it returns, and the gradients with respect to all of them."""
    names = [name for name, _ in layer.named_parameters()]

    def objective(weights, x):
        out, last = functional_call(layer, dict(zip(names, weights, strict=True)), (x,))
        made = (out, *(last if isinstance(last, tuple) else [last]))
        return sum((t * (k + 1)).sin().sum() for k, t in enumerate(made)), made

    def function(x, *weights):
        grads, made = torch.func.grad(objective, argnums=(0, 1), has_aux=True)(weights, x)
        return (*made, *grads[0], grads[1])

    return function


def arguments(layer, *shape):
    return [torch.randn(*shape), *[p.detach() for p in layer.parameters()]]


def counted(traced):
    """How often each of the two operations is in a graph."""
    targets = [node.target for node in traced.graph.graph.nodes]
    return targets.count(FORWARD), targets.count(BACKWARD)


def equal(traced, function, args):
    """The graph is the function, on other values than it was traced on."""
    other = [torch.randn(t.shape) for t in args]
    for values in (args, other):
        testing.same(traced.graph(*values, *traced.constants), function(*values), 1e-5)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_is_one_operation_however_long_its_input_is(kind):
    """Fifty steps of time with gradients are one operation forward, one backward, and few others."""
    layer = LAYERS[kind](3, 4)
    function, args = gradients(layer), arguments(layer, 50, 2, 3)
    traced = trace(function, args)
    assert counted(traced) == (1, 1)
    assert traced.operations < 100
    testing.same(traced.graph(*args, *traced.constants), function(*args), 1e-5)


@given(
    st.sampled_from(sorted(LAYERS)), st.integers(1, 2), st.booleans(), st.booleans(), st.booleans(), st.integers(1, 3)
)
def test_a_graph_of_a_layer_equals_it(kind, layers, bidirectional, batch_first, bias, time):
    """Outputs, last states, and the gradients of all parameters and inputs are torch's, whatever the options are."""
    options = {"num_layers": layers, "bidirectional": bidirectional, "batch_first": batch_first, "bias": bias}
    layer = LAYERS[kind](3, 4, **options)
    function, args = gradients(layer), arguments(layer, *((2, time, 3) if batch_first else (time, 2, 3)))
    traced = trace(function, args)
    assert counted(traced) == (1, 1)
    equal(traced, function, args)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_an_lstm_with_projections_equals_it(bidirectional):
    """The outputs and the first state have the projection's width, the second one the layer's."""
    layer = nn.LSTM(3, 5, proj_size=2, num_layers=2, bidirectional=bidirectional)
    function, args = gradients(layer), arguments(layer, 4, 2, 3)
    traced = trace(function, args)
    assert counted(traced) == (1, 1)
    equal(traced, function, args)


@pytest.mark.parametrize("kind", LAYERS)
def test_one_sequence_without_a_batch(kind):
    """An input of (time, features) gives what torch gives."""
    layer = LAYERS[kind](3, 4)
    function, args = gradients(layer), arguments(layer, 5, 3)
    traced = trace(function, args)
    assert counted(traced) == (1, 1)
    equal(traced, function, args)


@pytest.mark.parametrize("kind", LAYERS)
def test_packed_sequences_stay_torchs_own(kind):
    """Sequences of different lengths go through what torch makes of them, with gradients, not through the operation."""
    layer = LAYERS[kind](3, 4)
    x, sizes = torch.randn(7, 3, requires_grad=True), torch.tensor([3, 2, 1, 1])

    def made():
        out = layer(PackedSequence(x, sizes))[0].data
        return out, torch.autograd.grad(out.sin().sum(), [x, *layer.parameters()])

    with kept_whole():
        kept = made()
    testing.same(kept, made(), 1e-6)


class Packing(nn.Module):
    """A model that packs its inputs, (batch, time, 3)."""

    def __init__(self):
        super().__init__()
        self.layer = nn.GRU(3, 2, batch_first=True)

    def forward(self, x):
        packed = pack_padded_sequence(x, torch.arange(len(x), 0, -1), batch_first=True)
        return self.layer(packed)[1][0]


def test_a_model_that_packs_its_inputs_says_why_it_is_no_graph():
    """How long packed sequences are is a value, which no graph can read: the error names the stage and the reason."""
    pipe = Pipeline(forward.model(Packing), loss.cross_entropy(), backward.gradients(route="tape"), update.sgd(0.1))
    batch = {"inputs": torch.randn(4, 4, 3), "targets": torch.arange(4) % 2}
    assert int(pipe.step(pipe.init(0), batch)[0].step) == 1
    with pytest.raises(CaptureError, match=r"'forward.model' can't be captured as a graph: it reads lengths"):
        pipe.compile()(pipe.init(0), batch)


@pytest.mark.parametrize("kind", LAYERS)
def test_first_states_may_be_given(kind):
    """States to begin with are inputs as any, and have gradients."""
    layer = LAYERS[kind](3, 4, num_layers=2)
    first = [torch.randn(2, 2, 4) for _ in range(2 if kind == "lstm" else 1)]

    def function(x, *first):
        def objective(*first):
            out, last = layer(x, first if kind == "lstm" else first[0])
            return out.sin().sum() + sum(t.cos().sum() for t in last)

        return torch.func.grad(objective, argnums=tuple(range(len(first))))(*first)

    args = [torch.randn(5, 2, 3), *first]
    traced = trace(function, args)
    assert counted(traced) == (1, 1)
    equal(traced, function, args)


@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_of_gradients_are_refused(kind):
    """The backward operation can't be differentiated, and says so: its gradients would be taken for zero."""
    layer = LAYERS[kind](3, 4)
    slope = torch.func.grad(lambda x: layer(x)[0].sin().sum())
    with pytest.raises(CaptureError, match="gradient of a recurrent layer's gradient"):
        trace(lambda x: (torch.func.grad(lambda x: slope(x).pow(2).sum())(x),), [torch.randn(5, 2, 3)])


def test_gradients_by_the_tape_are_one_operation_too():
    """torch.autograd.grad inside a trace gives the same graph as torch.func."""
    layer = nn.LSTM(3, 4)

    def function(x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(layer(x)[0].sin().sum(), [x])

    args = [torch.randn(5, 2, 3)]
    traced = trace(function, args)
    assert counted(traced) == (1, 1)
    equal(traced, function, args)


@pytest.mark.parametrize("kind", LAYERS)
def test_an_evaluation_has_no_backward(kind):
    """Without gradients there is the forward operation alone; dropout between the layers is nothing then."""
    layer = LAYERS[kind](3, 4, num_layers=2, dropout=0.5).eval()

    def function(x):
        out, last = layer(x)
        return (out, *(last if kind == "lstm" else [last]))

    args = [torch.randn(5, 2, 3)]
    traced = trace(function, args)
    assert counted(traced) == (1, 0)
    equal(traced, function, args)


def test_dropout_between_layers_is_not_lost():
    """A layer that drops values while it trains is not the operation, which knows no randomness."""
    layer = nn.GRU(3, 4, num_layers=2, dropout=0.5)
    x = torch.randn(5, 2, 3)
    with kept_whole():
        first, second = layer(x)[0], layer(x)[0]
    assert not torch.equal(first, second)


@pytest.mark.parametrize("kind", LAYERS)
def test_symbolic_sizes_go_through(kind):
    """A layer in a graph of symbolic sizes holds for other batches and lengths."""
    layer = LAYERS[kind](3, 4)

    def function(x):
        return (layer(x)[0].sum((0, 1)),)

    traced = trace(function, [torch.randn(5, 3, 3)], varying=[{0, 1}])
    assert counted(traced) == (1, 0)
    x = torch.randn(7, 2, 3)
    assert traced.sizes.fit([x])
    testing.same(traced.graph(x, *traced.constants), function(x), 1e-5)


def test_a_program_with_a_recurrent_layer_has_no_identity():
    """The operation is made in Python, so the native backend has none of it, and nothing is kept."""
    layer = nn.GRU(3, 4)
    assert key.identity(trace(lambda x: (layer(x)[0],), [torch.randn(5, 2, 3)]), "") is None
