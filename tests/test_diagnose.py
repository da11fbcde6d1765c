"""Steps that are not finite: they are found in the graph, named, and stopped at or skipped."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipeline import Pipeline, backward, evaluate, fit, forward, load, loss, models, stage, testing, update
from pipeline.errors import ConfigError, NonFiniteError
from pipeline.mesh import Shard
from pipeline.programs.diagnose import first_nonfinite

INPUTS = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))


MARK = 1e6
"""What a data set, which refuses NaN, has in its place; `spoil` makes `value` of it."""


def data(bad=None, value=MARK):
    inputs = INPUTS.clone()
    if bad is not None:
        inputs[bad, 2] = value
    return {"inputs": inputs, "targets": torch.arange(40) % 3}


def spoiling(value):
    @stage(writes="inputs", name="spoil")
    def spoil(inputs):
        return torch.where(inputs == MARK, value, inputs)

    return spoil


def pipeline(otherwise, source=None, value=float("nan"), **options):
    return Pipeline(
        load.batches(source or data(), size=8, shuffle=False),
        spoiling(value), forward.model(lambda: models.mlp(4, 5, 3)), loss.cross_entropy(),
        evaluate.accuracy(), backward.gradients(**options),
        update.finite(otherwise), update.clip_norm(1.0), update.adamw(0.01),
    )  # fmt: skip


COMPILED = {}


def fitted(pipe, kind, **options):
    """Reports, by the eager step or by the compiled one: fused, or a step a call."""
    program = False
    if kind != "eager":
        program = COMPILED.setdefault(id(pipe), (pipe, pipe.compile()))[1]
    return fit(pipe, compile=program, steps_per_call=1 if kind == "single" else None, **options)


PIPES = {
    (otherwise, value): pipeline(otherwise, data(20), float(value))
    for otherwise in ("stop", "skip")
    for value in ("nan", "inf")
}
CLEAN = pipeline("stop")
kinds = pytest.mark.parametrize("kind", ["eager", "single", "fused"])


@kinds
def test_stop_names_the_step_and_leaves_the_state_before_it(kind):
    """Sample 20 is in batch 3: two steps are done, whatever is asked of the steps after it, and they are those without
    it."""
    pipe = PIPES["stop", "nan"]
    said = r"step 3 \(epoch 1, batch 3\) is not finite: stage 'spoil' made 'inputs' has NaN by \w+"
    with pytest.raises(NonFiniteError, match=said) as caught:
        list(fitted(pipe, kind, epochs=2))
    error = caught.value
    assert (int(error.state.step), error.epoch, error.batch, error.exit_code) == (2, 0, 2, 2)
    *_, report = [r for r in fit(CLEAN, epochs=1, every=2, compile=False) if r.step == 2]
    testing.same(error.state.tree, report.state.tree, 1e-5)


@pytest.mark.parametrize(("kind", "value"), [("eager", "nan"), ("eager", "inf"), ("single", "nan"), ("fused", "nan")])
def test_skip_leaves_the_step_out_and_counts_it(kind, value):
    """The step changes nothing but the count of steps; figures are those of the other batches."""
    pipe = PIPES["skip", value]
    first, second = fitted(pipe, kind, epochs=2)
    assert first.train["skipped"] == second.train["skipped"] == 1
    assert "skipped 1" in str(first)
    assert second.step == int(second.state.step) == 10
    assert first.train["loss"] == first.train["loss"]
    state = pipe.init(0)
    for _ in range(2):
        for k, batch in enumerate(pipe.load.epoch(0, 0)):
            after = pipe.step(state, batch)[0]
            state = state.replace(step=after.step) if k == 2 else after
    testing.same(second.state.params, state.params, 1e-5)
    testing.same(second.state.memory["update.adamw"], state.memory["update.adamw"], 1e-5)


def test_going_on_after_a_stop():
    """The State of the error can be trained on, from its place, as with other data; it is stopped no more."""
    with pytest.raises(NonFiniteError) as caught:
        list(fit(PIPES["stop", "nan"], epochs=1, compile=False))
    error = caught.value
    *_, last = fit(CLEAN, epochs=1, state=error.state, start=(error.epoch, error.batch), compile=False)
    *_, whole = fit(CLEAN, epochs=1, compile=False)
    assert testing.differences(last.state.tree, whole.state.tree) == []


@given(st.integers(0, 39), st.integers(0, 3), st.sampled_from([float("nan"), float("inf"), -float("inf")]))
def test_a_finite_step_is_the_step_without_the_stage(sample, column, value):
    """With the stage, finite steps are the same bits; others change nothing."""
    pipe = CLEAN
    state, plain = pipe.init(1), CLEAN.without("update.finite")
    batch = data()
    after, _ = pipe.step(state, batch)
    bare = plain.init(1)
    assert testing.differences(after.params, plain.step(bare, batch)[0].params) == []
    batch["inputs"][sample, column] = value
    kept, metrics = pipe.step(state, batch)
    assert not metrics["loss"].isfinite()
    memory = kept.memory["update.finite"]["stopped"]
    assert int(memory) == 1
    assert testing.differences(kept.replace(memory=state.memory).tree, state.tree) == []
    frozen, _ = pipe.step(kept, data())
    assert testing.differences(frozen.tree, kept.tree) == []


def test_it_maps_over_states():
    """Of two stacked States the one with bad weights stops, and the other goes on."""
    pipe = CLEAN
    good = pipe.init(0)
    bad = good.replace(params={k: p * float("nan") for k, p in good.params.items()})
    stacked = type(good)(torch.utils._pytree.tree_map(lambda *xs: torch.stack(xs), good.tree, bad.tree))
    after, _ = torch.func.vmap(lambda s: pipe.step(s, data()))(stacked)
    assert after.step.tolist() == [1, 0]
    assert after.memory["update.finite"]["stopped"].tolist() == [0, 1]


@stage(writes="outputs")
def root(outputs):
    return outputs.clamp(max=0).sqrt()


@stage(writes="loss")
def infinite_slope(loss, outputs):
    return loss + (outputs * 0).abs().sqrt().sum()


def test_what_is_at_fault():
    """The first of: the batch, State, what a stage made, a gradient."""
    pipe = pipeline("stop")
    state, batch = pipe.init(0), data()
    assert first_nonfinite(pipe.program, state, Shard(batch)) is None
    assert first_nonfinite(pipe.program, state, Shard(data(3, float("inf")))) == "the batch's 'inputs' has infinity"
    worse = state.replace(params={k: p * float("nan") if "3" in k else p for k, p in state.params.items()})
    assert first_nonfinite(pipe.program, worse, Shard(batch)) == "State's params '3.weight' has NaN"
    first = pipe.insert(root.named("root"), after="forward.model")
    found = first_nonfinite(first.program, first.init(0), Shard(batch))
    assert re.fullmatch(
        r"stage 'root' made 'outputs' has NaN by sqrt of values from -[\d.]+ to -?[\d.]+ \(test_diagnose\.py:\d+\)",
        found,
    )
    second = pipe.insert(infinite_slope.named("slope"), before="backward.gradients")
    assert first_nonfinite(second.program, second.init(0), Shard(batch)) == "the gradient of '1.weight' has NaN"
    big = state.replace(params={k: p * 1e38 for k, p in state.params.items()})
    assert first_nonfinite(pipe.program, big, Shard(batch)).startswith("stage 'forward.model' made 'outputs' has")


class Planted(nn.Module):
    """A net with a fault in one of its submodules."""

    def __init__(self, fault):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 5), nn.ReLU())
        self.fault, self.head = fault, nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.fault(self.body(x)))


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def vast():
    layer = nn.Linear(5, 5)
    nn.init.constant_(layer.weight, 3e38)
    return layer


NUMBERS = r"-?[\d.e+]+ to -?[\d.e+]+"
PLANTED = {
    "log": (lambda: Call(lambda x: torch.log(x - 1)), rf"NaN by log of values from {NUMBERS} in 'fault'{{line}}"),
    "method": (lambda: Call(lambda x: (-x - 1).sqrt()), rf"NaN by sqrt of values from {NUMBERS} in 'fault'{{line}}"),
    "zero by zero": (lambda: Call(lambda x: x * 0 / (x * 0)),
                     "NaN by (true)?div(ide)? of values from 0 to 0 and from 0 to 0 in 'fault'{line}"),
    "overflow": (lambda: nn.Sequential(nn.Identity(), vast()),
                 rf"(NaN|infinity) by linear of values from {NUMBERS} and from 3e\+38 to 3e\+38 in 'fault\.1'{{line}}"),
    "mask": (lambda: Call(lambda x: torch.softmax(torch.full_like(x, -torch.inf), -1)),
             "NaN by softmax of values from -inf to -inf in 'fault'{line}"),
    "beside a mask": (lambda: Call(lambda x: torch.where(x > 9, 1 / (x * 0), 0) + torch.acos(x + 2)),
                      rf"NaN by acos of values from {NUMBERS} in 'fault'{{line}}"),
}  # fmt: skip


@pytest.mark.parametrize("kind", PLANTED)
def test_the_operation_at_fault_is_named(kind):
    """With the ranges of its operands, its submodule, and its line in the user's code."""
    make, said = PLANTED[kind]
    pipe = Pipeline(forward.model(Planted(make())), loss.cross_entropy(), backward.gradients(), update.sgd(0.1))
    found = first_nonfinite(pipe.program, pipe.init(0), Shard({"inputs": INPUTS, "targets": torch.arange(40) % 3}))
    line = r" \(test_diagnose\.py:\d+\)"
    assert re.fullmatch(rf"stage 'forward\.model' made 'outputs' has {said.format(line=line)}", found), found


def test_a_mask_is_not_at_fault():
    """Minus infinity, as attention is masked with, is named only where there is nothing else."""
    pipe = pipeline("stop")
    state = pipe.init(0)
    masked = state.replace(
        params={k: p.fill_(-float("inf")) if k == "1.bias" else p for k, p in state.clone().params.items()}
    )
    assert first_nonfinite(pipe.program, masked, Shard(data(3, float("nan")))) == "the batch's 'inputs' has NaN"
    assert first_nonfinite(pipe.program, masked, Shard(data())) == "State's params '1.bias' has infinity"


def test_an_accumulated_step():
    """Parts of a batch are looked at as a whole."""
    pipe = pipeline("stop", data(20), accumulate=3)
    with pytest.raises(NonFiniteError, match="step 3 "):
        list(fit(pipe, epochs=1, compile=False))


def test_a_loader_of_its_own_order_is_not_read_again():
    """Its batches can't be found again, so the error names the step alone."""
    batches = [
        {"inputs": data(20)["inputs"][i : i + 8], "targets": data()["targets"][i : i + 8]} for i in range(0, 40, 8)
    ]
    pipe = Pipeline(load.loader(batches), *CLEAN.stages[1:])
    with pytest.raises(NonFiniteError, match="its loss or a gradient"):
        list(fit(pipe, epochs=1, compile=False))


def test_other_names():
    """Of two losses each may have a stage of its own."""
    finite = update.finite("skip", loss="critic_loss", grads="critic_grads")
    assert (finite.reads, finite.writes) == (("critic_loss", "critic_grads"), ("critic_grads.finite",))
    with pytest.raises(ConfigError, match="otherwise='skpi' is unknown"):
        update.finite("skpi")
