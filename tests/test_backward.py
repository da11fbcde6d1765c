"""The two routes to gradients; their equality is among the laws."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pipeline import Pipeline, backward, forward, loss, testing, update
from pipeline.errors import ConfigError, StageError, WiringError
from tests import by_hand, pipes

BATCH = {"inputs": torch.randn(6, 4), "targets": torch.arange(6) % 3}


def test_unknown_routes_and_counts_are_refused():
    """The message says what there is."""
    with pytest.raises(WiringError, match="'functional' or 'tape'"):
        backward.gradients(route="tapes")
    with pytest.raises(ConfigError, match="accumulate=0"):
        backward.gradients(accumulate=0)


class Checkpointed(pipes.Linear):
    """A layer whose activations are computed again in the backward."""

    def forward(self, x):
        return checkpoint(self.layer, x, use_reentrant=False)


class Doubled(torch.autograd.Function):
    """As most such functions are written: with ctx in the forward."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


class WithFunction(pipes.Linear):
    def forward(self, x):
        return Doubled.apply(self.layer(x))


class WithHook(pipes.Linear):
    def __init__(self):
        super().__init__()
        self.layer.register_full_backward_hook(lambda module, before, after: None)


class WithGradient(pipes.Linear):
    """As a network of physics is: the gradient with respect to the inputs is part of the outputs."""

    def forward(self, x):
        x = x.detach().requires_grad_()
        y = self.layer(x)
        [slope] = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return y + slope.sum(1, keepdim=True)


@pytest.mark.parametrize("kind", [WithFunction, WithHook, WithGradient, pipes.Linear])
def test_the_route_is_chosen(kind):
    """What torch.func refuses goes by the tape, as the loop by hand does, eager and compiled; print(pipe) says so."""
    torch.manual_seed(0)
    module = kind()
    made = []
    for compiled in (False, True):
        pipe = Pipeline(forward.model(module), loss.cross_entropy(), backward.gradients(), update.sgd(0.1))
        step = pipe.compile(backend="aot_eager") if compiled else pipe.step
        made.append(step(pipe.init(0), BATCH)[0].params)
        assert ("backward.gradients (by tape)" in str(pipe)) == (kind is not pipes.Linear)
    by_hand.train(module, [BATCH], torch.optim.SGD(module.parameters(), lr=0.1))
    for params in made:
        testing.same(params, dict(module.state_dict()), 1e-6)


def test_what_no_route_takes_is_said_once():
    """Where the code itself is wrong, the error is that of the code, and no route is decided."""

    class Wrong(pipes.Linear):
        def forward(self, x):
            return self.layer(x[:, :2])

    pipe = Pipeline(forward.model(Wrong), loss.cross_entropy(), backward.gradients(), update.sgd(0.1))
    with pytest.raises(StageError, match=r"stage 'forward.model' failed on inputs"):
        pipe.step(pipe.init(0), BATCH)
    assert pipe["backward.gradients"].taken == "auto"


def test_the_tape_allows_activation_checkpointing():
    """A checkpointed model trains by the tape as the plain one does by functions."""
    stages = loss.cross_entropy(), update.sgd(0.1)
    by_tape = Pipeline(forward.model(Checkpointed), stages[0], backward.gradients(route="tape"), stages[1])
    plain = Pipeline(forward.model(pipes.Linear), stages[0], backward.gradients(), stages[1])
    testing.same(by_tape.step(by_tape.init(0), BATCH)[0].tree, plain.step(plain.init(0), BATCH)[0].tree, 1e-6)


@pytest.mark.parametrize("route", ["functional", "tape"])
def test_unused_parameters_have_gradients_of_zeros(route):
    """A parameter that the loss does not depend on stays where it is."""

    class Unused(pipes.Linear):
        def __init__(self):
            super().__init__()
            self.extra = nn.Parameter(torch.ones(2))

    pipe = Pipeline(forward.model(Unused), loss.cross_entropy(), backward.gradients(route=route), update.sgd(0.1))
    state, _ = pipe.step(pipe.init(0), BATCH)
    assert state.params["extra"].tolist() == [1.0, 1.0]
