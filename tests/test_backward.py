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


class Dropping(pipes.Linear):
    """Layers with dropout, each called by a function that may compute its activations again."""

    def __init__(self, call):
        super().__init__()
        self.call, self.more = call, nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.GELU(), nn.Linear(3, 3))

    def forward(self, x):
        return self.call(self.more, self.call(self.more, self.layer(x)))


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
        if compiled:
            assert step.report.by_tape == (() if kind is pipes.Linear else ("backward.gradients",))
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


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_activation_checkpointing_changes_nothing(reentrant, compiled):
    """A model whose activations are computed again has the bits of one that keeps them, its dropout among them."""

    def trained(again):
        pipe = Pipeline(
            forward.model(lambda: Dropping(again)), loss.cross_entropy(), backward.gradients(), update.sgd(0.1)
        )
        step = pipe.compile(backend="aot_eager") if compiled else pipe.step
        state = pipe.init(0)
        for _ in range(3):
            state, _ = step(state, BATCH)
        return state

    def again(layer, x):
        return checkpoint(layer, x, use_reentrant=reentrant)

    testing.same(trained(again).tree, trained(lambda layer, x: layer(x)).tree)


def test_what_is_computed_a_third_time_draws_the_same():
    """A gradient of a gradient through a checkpointed part with dropout is that of the part as it is."""

    class Twice(pipes.Linear):
        def __init__(self, call):
            super().__init__()
            self.call, self.more = call, nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Tanh())

        def forward(self, x):
            z = x.detach().requires_grad_()
            y = self.layer(self.call(self.more, z))
            [g] = torch.autograd.grad(y.pow(2).sum(), z, create_graph=True)
            return y + g.pow(2).sum()

    def trained(call):
        model = forward.model(lambda: Twice(call))
        pipe = Pipeline(model, loss.cross_entropy(), backward.gradients(), update.sgd(0.1))
        return pipe.step(pipe.init(0), BATCH)[0].params

    again = trained(lambda layer, x: checkpoint(layer, x, use_reentrant=False))
    testing.same(again, trained(lambda layer, x: layer(x)), 1e-6)


def test_what_the_backward_meets_is_said_with_its_stage():
    """An error of the backward alone is one line with its stage and the line of the code."""

    class Overwrites(pipes.Linear):
        def forward(self, x):
            y = self.layer(x)
            z = y.exp()
            z.mul_(2)
            return z

    pipe = Pipeline(forward.model(Overwrites), loss.cross_entropy(), backward.gradients(route="tape"), update.sgd(0.1))
    with pytest.raises(StageError, match=r"stage 'backward.gradients' failed: one of the variables"):
        pipe.step(pipe.init(0), BATCH)


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
