"""The two routes to gradients; their equality is among the laws."""

import copy
import zlib

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pipeline import Pipeline, backward, evaluate, forward, loss, schedules, stage, testing, update
from pipeline.draws import keyed
from pipeline.errors import ConfigError, StageError, WiringError
from tests import by_hand, pipes
from tests.pipes import TRACED

BATCH = {"inputs": torch.randn(6, 4), "targets": torch.arange(6) % 3}


def test_unknown_routes_and_counts_are_refused():
    """The message says what there is."""
    with pytest.raises(WiringError, match="'functional' or 'tape'"):
        backward.gradients(route="tapes")
    for accumulate in (0, 1.5):
        with pytest.raises(ConfigError, match=f"accumulate={accumulate} is not a positive"):
            backward.gradients(accumulate=accumulate)


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
    """What torch.func refuses goes by the tape in a graph too, as the loop by hand does; print(pipe) then says so."""
    torch.manual_seed(0)
    module = kind()
    made = []
    for compiled in (False, True):
        pipe = Pipeline(forward.model(module), loss.cross_entropy(), backward.gradients(), update.sgd(0.1))
        step = pipe.compile(backend=TRACED) if compiled else pipe.step
        made.append(step(pipe.init(0), BATCH)[0].params)
        if compiled:
            assert step.report.by_tape == (() if kind is pipes.Linear else ("backward.gradients",))
        known = compiled or kind is WithGradient  # whose own leaf could be one from outside
        assert ("backward.gradients (by tape)" in str(pipe)) == (known and kind is not pipes.Linear)
    by_hand.train(module, [BATCH], torch.optim.SGD(module.parameters(), lr=0.1))
    for params in made:
        testing.same(params, dict(module.state_dict()), 1e-6)


@pytest.mark.parametrize("leaf", [True, False])
def test_a_plain_step_has_gradients_of_what_a_stage_encloses(leaf):
    """The tape of a plain step is its own only if nothing else is on it: a number in a closure has the gradient of a
    whole run, as by differences."""

    def after(factor):
        weighed = stage(writes="loss")(lambda loss: loss * factor)
        pipe = Pipeline(
            forward.model(lambda: nn.Linear(4, 3)), loss.cross_entropy(), weighed.named("weighed"),
            backward.gradients(), update.sgd(0.5),
        )  # fmt: skip
        state, _ = pipe.unroll(pipe.init(0), [BATCH] * 3)
        return pipe.measured(state, BATCH)["loss"]

    factor = torch.tensor(0.7, requires_grad=True)
    [slope] = torch.autograd.grad(after(factor if leaf else factor * 1.0), factor)
    with torch.no_grad():
        differences = (after(torch.tensor(0.7 + 1e-2)) - after(torch.tensor(0.7 - 1e-2))) / 2e-2
    assert slope == pytest.approx(float(differences), rel=1e-2)


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
        step = pipe.compile(backend=TRACED) if compiled else pipe.step
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


class Normed(pipes.Linear):
    """With dropout, and statistics that a second pass would move once more."""

    def __init__(self):
        super().__init__()
        self.more = nn.Sequential(nn.BatchNorm1d(3), nn.Tanh(), nn.Dropout(0.3), nn.Linear(3, 3))

    def forward(self, x):
        return self.more(self.layer(x))


def sharpness_by_hand(module, batches, rho, adaptive):
    """SAM by torch's own autograd: Foret et al. (2021), algorithm 1; with `adaptive` the one of Kwon et al. (2021),
    algorithm 1, whose normalisation leaves out biases as their code does. Returns each batch's loss."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    salt, losses = zlib.crc32(b"forward.model"), []

    def gradients(net, step, batch):
        with keyed(torch.tensor(0), torch.tensor(step), salt):
            value = nn.functional.cross_entropy(net(batch["inputs"]), batch["targets"])
        return value.item(), torch.autograd.grad(value, list(net.parameters()))

    for step, batch in enumerate(batches):
        nearby = copy.deepcopy(module)
        value, first = gradients(module, step, batch)
        scaled = [adaptive and "weight" in name for name, _ in module.named_parameters()]
        t = [p.detach().abs() + 0.01 if s else 1.0 for p, s in zip(module.parameters(), scaled, strict=True)]
        norm = sum(((a * g) ** 2).sum() for a, g in zip(t, first, strict=True)).sqrt()
        with torch.no_grad():
            for p, a, g in zip(nearby.parameters(), t, first, strict=True):
                p += rho * a**2 * g / norm
        _, second = gradients(nearby, step, batch)
        for p, g in zip(module.parameters(), second, strict=True):
            p.grad = g
        optimizer.step()
        losses.append(value)
    return losses


def sharp(rho=0.5, module=Normed, **options):
    made = backward.sharpness_aware(rho, **options)
    stages = forward.model(module), loss.cross_entropy(), evaluate.accuracy(), made
    return Pipeline(*stages, update.sgd(0.1, momentum=0.9))


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("route", ["functional", "tape"])
def test_sharpness_is_the_papers(adaptive, route):
    """Steps are those of the papers' formulas, with one draw for both passes; losses and statistics are those of the
    first."""
    torch.manual_seed(0)
    module = Normed()
    batches = [{"inputs": torch.randn(6, 4), "targets": torch.randint(3, (6,))} for _ in range(4)]
    pipe = sharp(module=module, adaptive=adaptive, route=route)
    state, losses = pipe.init(0), []
    for batch in batches:
        state, metrics = pipe.step(state, batch)
        losses.append(metrics["loss"].item())
    assert losses == pytest.approx(sharpness_by_hand(module, batches, 0.5, adaptive), rel=1e-5)
    testing.same(pipe.models[0].state_dict(state.tree), dict(module.state_dict()), 1e-5)


def test_what_torch_func_refuses_has_its_sharpness_by_the_tape():
    """route="auto" takes the tape for both passes."""
    made = [sharp(module=kind, adaptive=True) for kind in (WithFunction, WithHook)]
    for pipe in made:
        tape = sharp(module=pipe.models[0].module.build, adaptive=True, route="tape")
        testing.same(pipe.step(pipe.init(0), BATCH)[0].tree, tape.step(tape.init(0), BATCH)[0].tree)
        testing.compiled_equals_eager(pipe.compile(backend=TRACED), pipe.init(0), [BATCH])
        assert "backward.sharpness_aware (by tape)" in str(pipe)


@pytest.mark.parametrize("adaptive", [False, True])
def test_sharpness_keeps_the_laws(adaptive):
    """A step is pure, keeps shapes and maps over States; the compiled one is one graph that does the same, its rho a
    schedule."""
    pipe = sharp(schedules.linear(0.5, 4), adaptive=adaptive)
    testing.lawful(pipe, pipe.init(0), BATCH)
    if adaptive:
        step = pipe.compile(backend=TRACED)
        testing.compiled_equals_eager(step, pipe.init(0), [BATCH, BATCH])
        assert len(step.report.graphs) == 1


def test_no_distance_is_an_ordinary_gradient():
    """A rho of 0, which State holds, moves nothing, and neither does a gradient of zeros."""
    pipe = sharp()
    plain = pipe.replace("backward.sharpness_aware", backward.gradients(name="backward.sharpness_aware"))
    state = pipe.init(0).with_hyper({"backward.sharpness_aware.rho": 0.0})
    testing.same(pipe.step(state, BATCH)[0].params, plain.step(state, BATCH)[0].params)
    nothing = {**BATCH, "targets": torch.full((6,), -100)}
    testing.same(pipe.step(pipe.init(0), nothing)[0].params, pipe.init(0).params)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf"), schedules.constant(-1.0)])
def test_a_distance_out_of_range_is_refused(bad):
    """A rho that is no finite number of at least 0 raises a ConfigError."""
    with pytest.raises(ConfigError, match=r"rho=(-1.0|nan|inf) is not"):
        backward.sharpness_aware(bad)
