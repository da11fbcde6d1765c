import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from pipeline import Pipeline, backward, forward, loss, models, schedules, update
from pipeline.errors import StateError
from tests.strategies import all_schedules, learning_rates

lengths = st.integers(1, 40)


def torchs(base, scheduler, steps, **options):
    """The learning rates of torch's scheduler, before each of some steps."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=base)
    after = scheduler(optimizer, **options)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        after.step()
    return rates


def rates(schedule, count, **options):
    return [schedule.at(s, **options) for s in range(count)]


def close(values):
    return pytest.approx(values, rel=1e-9, abs=1e-12)


@given(learning_rates, lengths, st.floats(0.05, 1.0))
def test_step_is_torchs(base, every, gamma):
    """`step` is StepLR."""
    assert rates(schedules.step(base, every, gamma), 50) == close(
        torchs(base, lr_scheduler.StepLR, 50, step_size=every, gamma=gamma)
    )


@given(learning_rates, st.floats(0.5, 1.0))
def test_exponential_is_torchs(base, gamma):
    """`exponential` is ExponentialLR."""
    expected = torchs(base, lr_scheduler.ExponentialLR, 50, gamma=gamma)
    assert rates(schedules.exponential(base, gamma), 50) == close(expected)


@given(learning_rates, lengths, st.floats(0.0, 1.0))
def test_cosine_is_torchs(base, steps, floor):
    """`cosine` without a warm-up is CosineAnnealingLR as long as that falls, and stays at its floor afterwards."""
    expected = torchs(base, lr_scheduler.CosineAnnealingLR, steps + 1, T_max=steps, eta_min=floor * base)
    found = rates(schedules.cosine(base, steps, floor=floor), steps + 5)
    assert found[: steps + 1] == close(expected)
    assert found[steps:] == close([floor * base] * 5)


@given(learning_rates, lengths, st.floats(0.01, 1.0), st.floats(0.0, 1.0))
def test_linear_is_torchs(base, steps, start, end):
    """`linear` is LinearLR, which stays at its end."""
    expected = torchs(base, lr_scheduler.LinearLR, 50, start_factor=start, end_factor=end, total_iters=steps)
    assert rates(schedules.linear(base, steps, start, end), 50) == close(expected)


@given(learning_rates, st.integers(1, 20), st.integers(1, 20), st.floats(0.0, 0.9))
def test_a_warm_up_rises_to_the_base(base, warmup, rest, floor):
    """A cosine's warm-up rises by equal steps from 0 to the base, which is the highest value, and falls from there."""
    values = rates(schedules.cosine(base, warmup + rest, warmup, floor), warmup + rest + 1)
    assert values[: warmup + 1] == close([base * s / warmup for s in range(warmup + 1)])
    falling = values[warmup:]
    assert falling == sorted(falling, reverse=True)
    assert max(values) == close(base)
    assert values[-1] == close(floor * base)


@given(all_schedules, st.integers(0, 100))
def test_schedules_stay_within_their_base(schedule, step):
    """Every schedule here gives a number between 0 and its base."""
    assert 0.0 <= schedule.at(step) <= schedule.base * (1 + 1e-12)


@given(all_schedules)
def test_schedules_map_over_steps(schedule):
    """A factor is float64, 0-d for a step, and mapped over steps the factors of each."""
    numbers = {k: torch.tensor(v, dtype=torch.float64) for k, v in schedule.numbers.items()}
    mapped = torch.vmap(lambda s: schedule.factor(s, **numbers))(torch.arange(20))
    assert (mapped.dtype, mapped.shape) == (torch.float64, (20,))
    assert (schedule.base * mapped).tolist() == close(rates(schedule, 20))


def test_a_schedule_of_ones_own():
    """A schedule is any function of the step, whose defaults are numbers in State."""
    halve = schedules.schedule(0.8, lambda step, every=2.0: 0.5 ** (step // every))
    assert rates(halve, 5) == close([0.8, 0.8, 0.4, 0.4, 0.2])
    pipe = pipeline(halve)
    assert {k: v.item() for k, v in pipe.init().hyper.items() if "lr" in k} == {
        "update.sgd.lr": 0.8,
        "update.sgd.lr.every": 2.0,
    }


def pipeline(lr):
    model = forward.model(lambda: models.mlp(2, 2))
    return Pipeline(model, loss.cross_entropy(), backward.gradients(), update.sgd(lr))


@given(learning_rates, lengths)
def test_the_runs_length_is_filled_in(base, steps):
    """Where a schedule leaves its steps open, they are the length of the run."""
    for make in (schedules.cosine, schedules.linear):
        assert rates(make(base), steps + 1, steps=steps) == rates(make(base, steps), steps + 1)
        assert make(base, 2 * steps).at(steps, steps=steps) == make(base, 2 * steps).at(steps)
        assert pipeline(make(base)).init(steps=steps).hyper["update.sgd.lr.steps"].item() == steps


def test_a_length_that_nobody_gave_is_an_error():
    """A State can't be made while the run's length is open, and the error says where it may come from."""
    assert math.isnan(schedules.cosine(0.1).numbers["steps"])
    with pytest.raises(StateError, match=r"update\.sgd\.lr needs the run's length: pass steps= .*init\(steps="):
        pipeline(schedules.cosine(0.1)).init()


def test_a_schedule_drives_the_steps():
    """A pipeline's step multiplies the hyperparameter by the factor of the step it is at."""
    pipe = pipeline(schedules.step(1.0, every=2, gamma=0.0))
    state, batch = pipe.init(), {"inputs": torch.randn(4, 2), "targets": torch.tensor([0, 1, 0, 1])}
    moved = []
    for _ in range(4):
        before = state.params["1.weight"]
        state, _ = pipe.step(state, batch)
        moved.append(not torch.equal(before, state.params["1.weight"]))
    assert moved == [True, True, False, False]
