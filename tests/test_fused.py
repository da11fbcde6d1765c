"""Many steps in one call: the same as as many calls of one step, wherever a call begins and ends."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import Pipeline, fit, forward, load, loss, models, place, stage, testing, update
from pipeline.errors import ConfigError, WiringError
from tests import pipes
from tests.pipes import TRACED


# Of the others, test_backends compares the same with each backend.
@pytest.mark.parametrize(
    "name", ["mlp", *[pytest.param(n, marks=pytest.mark.thorough) for n in ("convnet", "transformer")]]
)
def test_k_fused_steps_equal_k_single_steps(name):
    """An epoch in one call gives the State and each step's metrics of single steps, bit for bit, and of eager ones
    nearly."""
    pipe, compiled = pipes.compiled(name)
    batches = pipe.load.batches
    fused, metrics = compiled.advance(pipe.init(0, steps=99), 0, 0, batches, results=True)
    fused = fused.clone()
    single, eager = pipe.init(0, steps=99), pipe.init(0, steps=99)
    for k, batch in enumerate(pipe.load.epoch(0, 0)):
        single, one = compiled(single)
        eager, expected = pipe.step(eager, batch)
        for key, values in metrics.items():
            assert values.shape == (batches, *one[key].shape)
            assert torch.equal(values[k], one[key])
            torch.testing.assert_close(values[k], expected[key], rtol=1e-4, atol=1e-4)
    testing.same(fused.tree, single.tree)


@settings(max_examples=10)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=5))
def test_calls_of_any_length_are_one_run(counts):
    """However a run is cut into calls, over the ends of epochs too, its State is the same."""
    pipe, compiled = pipes.compiled("mlp")
    whole, parts = pipe.init(0, steps=99), pipe.init(0, steps=99)
    for _ in range(sum(counts)):
        whole, _ = compiled(whole)
    whole = whole.clone()
    for count in counts:
        parts, metrics = compiled._own_steps(parts, count)
        assert metrics["loss"].shape == (count,)
    testing.same(whole.tree, parts.tree)


def test_compile_steps_and_epochs():
    """compile(steps=K) does K steps a call, steps="epoch" all of one; the batch is the pipeline's own."""
    pipe, _ = pipes.compiled("mlp")
    state, metrics = pipe.compile(steps=5)(pipe.init(0, steps=99))
    assert (int(state.step), metrics["loss"].shape) == (5, (5,))
    epoch = pipe.compile(steps="epoch")
    state, metrics = epoch(state)
    assert (int(state.step), metrics["loss"].shape) == (5 + 23, (23,))
    with pytest.raises(ConfigError, match="leave out the batch"):
        epoch(state, pipes.first(pipe))
    kept = pipe.compile(steps=5, donate=False)
    first = pipe.init(0, steps=99)
    testing.same(kept(first)[0].tree, kept(first)[0].tree)
    assert int(first.step) == 0


@pytest.mark.parametrize("per_call", [1, 7, "epoch", None])
def test_fit_gives_the_same_run_for_any_steps_per_call(per_call):
    """steps_per_call changes how fast a run is, and not one bit of it."""
    pipe, compiled = pipes.compiled("mlp")
    reports = list(fit(pipe, epochs=2, validate=pipes.TEST, compile=compiled, steps_per_call=per_call))
    again = list(fit(pipe, epochs=2, validate=pipes.TEST, compile=compiled, steps_per_call=3))
    assert [(r.train, r.validate, r.samples, r.step) for r in reports] == [
        (r.train, r.validate, r.samples, r.step) for r in again
    ]


def test_load_after_place():
    """A load stage after place is the same pipeline, whose data set is placed as a whole."""
    pipe, compiled = pipes.compiled("mlp")
    other = Pipeline(place.on("cpu"), *[s for s in pipe.stages if not isinstance(s, place.Place)])
    state, _ = other.compile(steps=23)(other.init(0, steps=99))
    testing.same(state.tree, compiled.advance(pipe.init(0, steps=99), 0, 0, 23)[0].tree)
    with pytest.raises(WiringError, match="must be tensors in memory"):
        Pipeline(place.on("cpu"), load.loader([]), forward.model(lambda: models.mlp(4, 2)))


def test_an_uncompiled_step_reads_its_own_batch_too():
    """pipe.step(state) is the step on the batch that comes at state.step."""
    pipe, _ = pipes.compiled("mlp")
    state = pipe.init(0, steps=99)
    batches = list(pipe.load.epoch(0, 0))
    for batch in batches[:2]:
        own, given = pipe.step(state)[0], pipe.step(state, batch)[0]
        testing.same(own.tree, given.tree)
        state = own


def test_what_has_no_data_in_memory_is_refused():
    """Many steps a call need tensors in memory, and a compiled step; the error says so."""
    data = {"inputs": torch.randn(8, 4), "targets": torch.arange(8) % 2}
    loader = Pipeline(load.loader([data]), forward.model(lambda: models.mlp(4, 2)), loss.cross_entropy())
    with pytest.raises(WiringError, match="tensors in memory"):
        loader.compile(steps=2)
    with pytest.raises(ConfigError, match="neither a positive whole number nor 'epoch'"):
        loader.compile(steps=0)

    @stage(writes="inputs")
    def double(inputs):
        return inputs * 2

    hosted = Pipeline(load.batches(data, size=4), double, place.on("cpu"), *loader.stages[1:])
    with pytest.raises(WiringError, match="no stages before place"):
        hosted.compile(steps=2)
    pipe, _ = pipes.compiled("mlp")
    with pytest.raises(ConfigError, match="needs a compiled step"):
        fit(pipe, epochs=1, compile=False, steps_per_call=4)


def test_data_sets_of_one_shape_are_not_mixed_up():
    """Evaluating one data set after another of the same shapes gives each one's own figures."""
    pipe, compiled = pipes.compiled("mlp")
    state, data = pipe.init(0, steps=99), pipes.TEST.tensors
    shifted = {"inputs": data["inputs"], "targets": (data["targets"] + 1) % 10}
    state, _ = compiled(state)
    figures = [compiled.evaluate(state, d) for d in (pipes.TEST, shifted, pipes.TEST)]
    assert figures[0] == figures[2] != figures[1]
    assert figures[1] == pytest.approx(pipe.evaluate(state, shifted), rel=1e-5)


class Elsewhere:
    """A data set that is no tensors in memory."""

    names = ("inputs", "targets")

    def __len__(self):
        return 300

    def __getitem__(self, indices):
        return {name: t[indices] for name, t in pipes.DIGITS.tensors.items()}


def test_batches_from_elsewhere_are_stacked():
    """So many batches of any Source in a call give the steps that they give one by one, also from the middle on."""
    first = pipes.digits(update.sgd(0.1))
    pipe = first.replace("load.batches", load.batches(Elsewhere(), size=64))  # 4 whole batches, and one of 44
    step = pipe.compile(backend=TRACED)
    runs = {
        per_call: [(r.step, r.train["loss"], r.state.clone()) for r in fit(pipe, epochs=2, compile=step, every=5,
                                                                          steps_per_call=per_call)]
        for per_call in (1, 3)
    }  # fmt: skip
    for one, three in zip(runs[1], runs[3], strict=True):
        assert one[:2] == three[:2]
        testing.same(three[2].tree, one[2].tree)
    *_, again = fit(pipe, epochs=2, compile=step, steps_per_call=3, state=runs[1][0][2], start=(1, 0))
    testing.same(again.state.tree, runs[1][-1][2].tree)
    with pytest.raises(WiringError, match="steps without batches need"):
        fit(pipe, epochs=1, steps_per_call="epoch")
