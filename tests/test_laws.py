"""What purity promises, as properties."""

import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import optim

from pipeline import Pipeline, backward, evaluate, fit, forward, loss, models, testing, update
from pipeline.compile import build
from pipeline.stage import Stage
from tests import by_hand, pipes, strategies
from tests.pipes import TRACED

eager = pytest.mark.parametrize("name", pipes.ALL)


@st.composite
def classifiers(draw, **options):
    """A small pipeline, its State and a batch."""
    layers = draw(strategies.widths())
    dropout = draw(st.sampled_from([0.0, 0.5]))
    pipe = Pipeline(
        forward.model(lambda: models.mlp(*layers, dropout=dropout)),
        loss.cross_entropy(),
        evaluate.accuracy(),
        backward.gradients(**options),
        update.clip_norm(draw(st.floats(0.1, 2.0))),
        draw(strategies.updates),
    )
    return pipe, pipe.init(draw(strategies.seeds)), draw(strategies.batches())


@given(classifiers())
def test_a_step_is_pure_keeps_shapes_and_vmaps(case):
    """A step changes no argument, gives the same bits twice, keeps every shape, and maps over stacked States."""
    testing.lawful(*case)


@eager
def test_models_are_lawful(name):
    """The same holds with BatchNorm, dropout and attention."""
    pipe = pipes.ALL[name]()
    testing.lawful(pipe, pipe.init(0), pipes.first(pipe))


@given(classifiers(route="tape"))
def test_the_tape_gives_the_functional_gradients(case):
    """Both routes of backward make the same step."""
    pipe, state, batch = case
    other = pipe.replace("backward.gradients", backward.gradients())
    testing.same(pipe.step(state, batch)[0].tree, other.step(state, batch)[0].tree, 1e-6)


@given(strategies.batches(dtype=torch.float64), strategies.seeds)
@settings(max_examples=10)
def test_gradients_through_training_equal_finite_differences(batch, seed):
    """The loss after three steps has a gradient with respect to the learning rate, which is its slope."""
    model = forward.model(lambda: models.mlp(4, 5, 3).double())
    pipe = Pipeline(model, loss.cross_entropy(), backward.gradients(), update.sgd(0.1, momentum=0.9))
    first = pipe.init(seed)

    def loss_after(lr):
        state = first.replace(hyper={**first.hyper, "update.sgd.lr": lr})
        for _ in range(3):
            state, metrics = pipe.step(state, batch)
        return metrics["loss"]

    lr, near = torch.tensor(0.1, dtype=torch.float64), 1e-5
    slope = (loss_after(lr + near) - loss_after(lr - near)) / (2 * near)
    assert slope != 0
    testing.same(torch.func.grad(loss_after)(lr), slope, 1e-4)


@given(strategies.batches(dtype=torch.float64), strategies.seeds)
def test_gradients_equal_finite_differences(batch, seed):
    """In float64, each gradient is the slope of the loss."""
    captured = {}

    def capture(params, grads):
        captured.update(grads=grads)
        return params

    stages = forward.model(lambda: pipes.Linear(dtype=torch.float64)), loss.cross_entropy(), backward.gradients()
    pipe = Pipeline(*stages, Stage("capture", capture, writes=("params",)))
    state = pipe.init(seed)
    pipe.step(state, batch)

    def at(weight):
        params = {**state.params, "layer.weight": weight}
        return pipe.step(state.replace(params=params), batch)[1]["loss"]

    grads, weight, eps = captured["grads"]["layer.weight"], state.params["layer.weight"], 1e-5
    for i in range(0, weight.numel(), 5):
        nudge = torch.zeros_like(weight)
        nudge.view(-1)[i] = eps
        slope = (at(weight + nudge) - at(weight - nudge)) / (2 * eps)
        assert grads.view(-1)[i].item() == pytest.approx(slope.item(), abs=1e-7)


@given(strategies.batches(), st.integers(0, 100), strategies.seeds)
def test_dropout_is_a_function_of_seed_and_step(batch, step, seed):
    """The same (seed, step) drops the same units; another step drops others."""
    model = forward.model(lambda: models.mlp(4, 64, 64, 3, dropout=0.5))
    params, buffers = model.module.create(0)

    def outputs(at):
        values = {"params": params, "buffers": buffers, "training": True, **batch}
        return model.run({**values, "seed": torch.tensor(seed), "step": torch.tensor(at)}, {}, None)[0]["outputs"]

    assert torch.equal(outputs(step), outputs(step))
    assert not torch.equal(outputs(step), outputs(step + 1))


def test_a_convnet_equals_the_loop_with_its_running_statistics():
    """BatchNorm's running statistics and dropout are those of the loop by hand."""
    pipe = pipes.convnet()
    torch.manual_seed(0)
    module = models.convnet(1, 10, widths=(4, 8), dropout=0.3)
    batches = list(pipe.load.epoch(0, 0))
    salt = zlib.crc32(b"forward.model")
    by_hand.train(module, batches, optim.SGD(module.parameters(), lr=0.1, momentum=0.9), salt=salt)
    state = pipe.init(0)
    for batch in batches:
        state, _ = pipe.step(state, batch)
    testing.same(pipe.models[0].state_dict(state.tree), dict(module.state_dict()), 1e-5)
    assert state.buffers["features.1.num_batches_tracked"] == len(batches)


@eager
def test_compiled_equals_eager(name):
    """Steps of one graph give what the plain functions give, metrics and running sums included."""
    pipe, compiled = pipes.compiled(name)
    testing.compiled_equals_eager(compiled, pipe.init(0), [pipes.first(pipe, k) for k in range(3)])


@eager
def test_compiled_evaluation_equals_eager(name):
    """Evaluation as a graph gives the figures of the plain functions, and leaves the State alone."""
    pipe, compiled = pipes.compiled(name)
    state = pipe.init(0)
    before = state.clone()
    assert compiled.evaluate(state) == pytest.approx(pipe.evaluate(state), rel=1e-5)
    testing.same(state.tree, before.tree)


def test_one_trace_for_any_lr_step_and_epoch(monkeypatch, tmp_path):
    """Three epochs with a changing lr and a short last batch are traced and compiled twice: once for each shape."""
    traced = []
    monkeypatch.setattr(
        build, "trace", lambda *args, kept=build.trace, **options: traced.append(args) or kept(*args, **options)
    )
    monkeypatch.setenv("PIPE_CACHE", str(tmp_path))
    pipe = pipes.mlp()
    compiled = pipe.compile(backend=TRACED)
    state = pipe.init(0)
    for epoch in range(3):
        for k, batch in enumerate(pipe.load.epoch(0, epoch)):
            state, _ = compiled(state.with_hyper(lr=10.0 ** -(1 + k % 4)), batch)
    assert int(state.step) == 3 * 23
    assert len(traced) == len(compiled.report.graphs) == 2


def test_reports_of_a_compiled_run_equal_those_of_an_eager_one():
    """Fit gives the same figures compiled and not."""
    pipe, compiled = pipes.compiled("mlp")
    runs = [list(fit(pipe, epochs=2, validate=pipes.TEST, compile=c)) for c in (compiled, False)]
    for a, b in zip(*runs, strict=True):
        assert a.train == pytest.approx(b.train, rel=1e-5)
        assert a.validate == pytest.approx(b.validate, rel=1e-5)
        assert (a.epoch, a.step, a.samples, a.complete) == (b.epoch, b.step, b.samples, True)


@settings(max_examples=5)
@given(strategies.seeds)
def test_a_run_is_a_function_of_its_seed(seed):
    """The same seed gives the same bits, whatever torch's global generator does."""
    pipe = pipes.convnet()

    def run():
        return next(fit(pipe, epochs=1, seed=seed, compile=False)).state.tree

    first = run()
    torch.manual_seed(seed ^ 1)
    testing.same(first, run())
