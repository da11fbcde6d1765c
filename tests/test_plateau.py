"""The schedule that reads metrics: against torch's, in a run, compiled, and resumed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import (
    Pipeline,
    backward,
    checkpoint,
    evaluate,
    fit,
    forward,
    load,
    loss,
    models,
    place,
    schedules,
    testing,
    update,
)  # fmt: skip
from pipeline.errors import ConfigError, StateError
from pipeline.programs.evaluate import check_state
from tests.pipes import TRACED

DATA = {"inputs": torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), "targets": torch.arange(12) % 3}
STUCK = {"inputs": torch.zeros(6, 4), "targets": torch.zeros(6, dtype=torch.int64)}


def pipeline(*updates):
    """A classifier, on 3 batches an epoch."""
    return Pipeline(
        load.batches(DATA, size=4), place.on("cpu"), forward.model(lambda: models.mlp(4, 3, dropout=0.2)),
        loss.cross_entropy(), evaluate.accuracy(), backward.gradients(), *updates,
    )  # fmt: skip


def scale(state, name="update.sgd.lr", key="scale"):
    return state.memory[name][key].item()


metrics = st.lists(st.floats(-2.0, 2.0) | st.sampled_from([float("nan"), float("inf"), 0.0, 1.0]), max_size=40)


@given(
    metrics, st.floats(0.1, 0.9), st.integers(0, 3), st.sampled_from(["min", "max"]), st.sampled_from(["rel", "abs"]),
    st.floats(0.0, 0.5), st.integers(0, 3), st.floats(0.0, 0.5), st.sampled_from([1e-8, 0.01]),
)  # fmt: skip
def test_it_is_torchs(seen, factor, patience, mode, threshold_mode, threshold, cooldown, floor, eps):
    """Whatever the metric does, the value after each epoch is that of ReduceLROnPlateau."""
    base = 0.5
    shared = {"factor": factor, "patience": patience, "mode": mode, "threshold_mode": threshold_mode,
              "threshold": threshold, "cooldown": cooldown}  # fmt: skip
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=base)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **shared, min_lr=floor * base, eps=eps * base)
    ours = schedules.reduce_on_plateau(base, **shared, floor=floor, eps=eps)
    numbers = {k: torch.tensor(v, dtype=torch.float64) for k, v in ours.numbers.items()}
    memory = ours.first()
    for value in seen:
        theirs.step(value)
        memory = testing.pure(ours.observe, memory, {"loss": value}, **numbers)
        assert base * float(ours.apply(torch.tensor(0), numbers, memory)) == pytest.approx(
            optimizer.param_groups[0]["lr"], rel=1e-9
        )
    assert {k: v.dtype for k, v in memory.items()} == {k: v.dtype for k, v in ours.first().items()}


def test_observing_is_pure():
    """`observed` gives another State with another memory, and the same one where nothing reads metrics."""
    pipe = pipeline(update.sgd(schedules.reduce_on_plateau(0.1, factor=0.5, patience=0)))
    state = pipe.init()
    once = testing.pure(pipe.observed, state, {"loss": 1.0})
    twice = pipe.observed(once, {"loss": 1.0})
    assert (scale(state), scale(once), scale(twice)) == (1.0, 1.0, 0.5)
    assert pipe.hyper(twice.tree)["update.sgd"]["lr"].item() == 0.05
    testing.lawful(pipe, twice, {k: v[:4] for k, v in DATA.items()})
    plain = pipeline(update.sgd(0.1))
    state = plain.init()
    assert plain.observed(state, {}) is state
    with pytest.raises(StateError, match=r"they differ in memory at update\.sgd\.lr"):
        check_state(pipe.program, state.replace(hyper=pipe.init().hyper))


def test_fit_observes_each_epoch_once():
    """Its Report has the State that has seen it: the validation's metrics where there are any, else the training's."""
    lr = schedules.reduce_on_plateau(0.0, factor=0.5, patience=1)
    pipe = pipeline(update.sgd(lr))
    reports = fit(pipe, epochs=5, validate=STUCK, compile=False, interval=0.0)
    found = [(scale(r.state), scale(r.state, key="best") == r.validate["loss"]) for r in reports if r.complete]
    assert found == [(1.0, True), (1.0, True), (0.5, True), (0.5, True), (0.25, True)]
    [report] = fit(pipe, epochs=1, compile=False)
    assert scale(report.state, key="best") == report.train["loss"]


def test_compiled_steps_go_on_with_it():
    """A reduction takes effect in the compiled step, which stays the one graph that it was; parts keep their names."""
    lr = schedules.warmup(schedules.reduce_on_plateau(1.0, factor=0.0, patience=0), steps=1, start=1.0)
    pipe = pipeline(update.sgd(lr))
    step = pipe.compile(backend=TRACED)
    seen = [
        (scale(r.state, key="after.scale"), r.state.params["1.weight"].clone(), len(step.report.graphs))
        for r in fit(pipe, epochs=8, validate=STUCK, compile=step)
    ]
    scales, weights, graphs = zip(*seen, strict=True)
    reduced = scales.index(0.0)
    assert 0 < reduced < 7
    for epoch in range(1, 8):
        assert torch.equal(weights[epoch], weights[epoch - 1]) == (epoch > reduced)
    assert len(set(graphs)) == 1


def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path):
    """From a checkpoint at the end of an epoch, or inside one, what was observed goes on."""
    lr = schedules.warmup(schedules.reduce_on_plateau(0.5, factor=0.5, patience=0), epochs=1)
    pipe = pipeline(update.sgd(lr, momentum=schedules.reduce_on_plateau(0.9, metric="accuracy", mode="max")))
    options = {"epochs": 6, "validate": DATA, "compile": False, "every": 1}
    with checkpoint.Saver(tmp_path, keep=99) as saver:
        for report in fit(pipe, **options):
            saver.offer(report, now=True)
    whole = report.state
    assert scale(whole, key="after.scale") < 1.0
    for step in (9, 11):
        saved = checkpoint.read(tmp_path / f"step-{step:09d}")
        state = saved.restore(pipe, pipe.init(steps=18).hyper)
        *_, last = fit(pipe, **options, state=state, start=saved.start)
        assert testing.differences(last.state.tree, whole.tree) == []


@pytest.mark.parametrize(
    ("metric", "message"),
    [("los", "reads the metric 'los', which is no number of this run; did you mean 'loss'"), ("r2", "known: accuracy")],
)
def test_a_metric_that_is_not_there_is_said_before_the_first_step(metric, message):
    """`fit` raises when it is called, and `observed` where it is given other metrics."""
    pipe = pipeline(update.sgd(schedules.product(0.1, schedules.reduce_on_plateau(1.0, metric=metric))))
    with pytest.raises(ConfigError, match=message):
        fit(pipe, epochs=1, validate=DATA, compile=False)
    with pytest.raises(ConfigError, match=message):
        pipe.observed(pipe.init(), {"loss": 1.0, "accuracy": 0.5})


def test_stacked_states_each_have_a_plateau_of_their_own():
    """A sweep's memories are observed at once, and each goes its way."""
    pipe = pipeline(update.sgd(schedules.reduce_on_plateau(0.1, factor=0.5, patience=0)))
    state = pipe.init()
    many = torch.utils._pytree.tree_map(lambda x: torch.stack([x] * 2), state)
    many = many.with_hyper({"update.sgd.lr.patience": torch.tensor([0.0, 5.0])})
    for _ in range(2):
        many = pipe.observed(many, {"loss": 1.0})
    assert many.memory["update.sgd.lr"]["scale"].tolist() == [0.5, 1.0]
