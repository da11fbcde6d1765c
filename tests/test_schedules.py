"""Schedules: each against torch's, alone and combined, and where their numbers live."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler as torchs

from pipeline import Pipeline, backward, fit, forward, load, loss, models, schedules, update
from pipeline.errors import ConfigError, StateError
from pipeline.schedules import EPOCH, RUN
from tests.pipes import TRACED
from tests.strategies import all_schedules, learning_rates

lengths = st.integers(1, 40)
gammas = st.floats(0.05, 1.0)
shares = st.floats(0.0, 1.0)


def driven(base, make, count, momentum=0.9):
    """What torch's scheduler sets at each of some steps: learning rates, and momenta."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=base, momentum=momentum)
    optimizer.step()  # or it warns
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SequentialLR makes torch deprecate its own call
        after, seen = make(optimizer), []
        for _ in range(count):
            seen.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
            after.step()
    rates, momenta = torch.tensor(seen, dtype=torch.float64).T
    return rates, momenta


def equal(schedule, expected, **options):
    """A schedule's values at the first steps are these, to 1e-9 of themselves or 1e-12."""
    found = schedule.values(torch.arange(len(expected)), **options)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def is_torchs(schedule, make, count=60, **options):
    equal(schedule, driven(schedule.base, make, count)[0], **options)


@given(learning_rates, lengths, gammas)
def test_step_is_torchs(base, every, gamma):
    """`step` is StepLR."""
    is_torchs(schedules.step(base, every, gamma), lambda o: torchs.StepLR(o, every, gamma))


@given(learning_rates, st.lists(lengths, unique=True, max_size=4).map(sorted), gammas)
def test_multi_step_is_torchs(base, milestones, gamma):
    """`multi_step` is MultiStepLR."""
    is_torchs(schedules.multi_step(base, milestones, gamma), lambda o: torchs.MultiStepLR(o, milestones, gamma))


@given(learning_rates, st.floats(0.5, 1.0))
def test_exponential_is_torchs(base, gamma):
    """`exponential` is ExponentialLR."""
    is_torchs(schedules.exponential(base, gamma), lambda o: torchs.ExponentialLR(o, gamma))


@given(learning_rates, lengths, shares)
def test_cosine_is_torchs(base, steps, floor):
    """`cosine` without a warm-up is CosineAnnealingLR as long as that falls, and stays at its floor afterwards."""
    schedule = schedules.cosine(base, steps, floor=floor)
    is_torchs(schedule, lambda o: torchs.CosineAnnealingLR(o, steps, eta_min=floor * base), steps + 1)
    assert schedule.at(steps + 5) == pytest.approx(floor * base)


@given(learning_rates, lengths, st.floats(0.01, 1.0), shares)
def test_linear_is_torchs(base, steps, start, end):
    """`linear` is LinearLR, which stays at its end."""
    is_torchs(schedules.linear(base, steps, start, end), lambda o: torchs.LinearLR(o, start, end, steps))


@given(learning_rates, lengths, st.floats(0.3, 4.0))
def test_polynomial_is_torchs(base, steps, power):
    """`polynomial` is PolynomialLR."""
    is_torchs(schedules.polynomial(base, steps, power), lambda o: torchs.PolynomialLR(o, steps, power))


@given(learning_rates, st.integers(1, 9), st.integers(1, 4), shares)
def test_cosine_restarts_are_torchs(base, period, mult, floor):
    """`cosine_restarts` is CosineAnnealingWarmRestarts, at the restarts too."""
    is_torchs(
        schedules.cosine_restarts(base, period, mult, floor),
        lambda o: torchs.CosineAnnealingWarmRestarts(o, period, mult, eta_min=floor * base),
    )


@given(learning_rates, st.integers(5, 60), st.floats(0.25, 0.99), st.floats(2, 50), st.floats(2, 1e5),
       st.sampled_from(["cos", "linear"]))  # fmt: skip
def test_one_cycle_is_torchs(base, steps, pct, div, final, strategy):
    """`one_cycle` is OneCycleLR, and `one_cycle_momentum` what that does to the momentum."""
    rates, momenta = driven(
        1.0, lambda o: torchs.OneCycleLR(o, base, steps, pct_start=pct, anneal_strategy=strategy, div_factor=div,
                                         final_div_factor=final), steps
    )  # fmt: skip
    shape = {"pct_start": pct, "anneal_strategy": strategy}
    equal(schedules.one_cycle(base, steps, **shape, div_factor=div, final_div_factor=final), rates)
    equal(schedules.one_cycle_momentum(steps=steps, **shape), momenta)


LONG = {
    "step": (schedules.step(0.1, 700, 0.7), lambda o: torchs.StepLR(o, 700, 0.7)),
    "multi_step": (schedules.multi_step(0.1, [50, 9000], 0.3), lambda o: torchs.MultiStepLR(o, [50, 9000], 0.3)),
    "exponential": (schedules.exponential(0.1, 0.999), lambda o: torchs.ExponentialLR(o, 0.999)),
    "cosine": (schedules.cosine(0.1, 10_000, floor=0.1), lambda o: torchs.CosineAnnealingLR(o, 10_000, 0.01)),
    "linear": (schedules.linear(0.1, 9000), lambda o: torchs.LinearLR(o, 1 / 3, 1.0, 9000)),
    "polynomial": (schedules.polynomial(0.1, 9000, 2.5), lambda o: torchs.PolynomialLR(o, 9000, 2.5)),
    "restarts": (schedules.cosine_restarts(0.1, 7), lambda o: torchs.CosineAnnealingWarmRestarts(o, 7)),
    "doubling": (schedules.cosine_restarts(0.1, 1, 2), lambda o: torchs.CosineAnnealingWarmRestarts(o, 1, 2)),
    "tripling": (schedules.cosine_restarts(0.1, 5, 3), lambda o: torchs.CosineAnnealingWarmRestarts(o, 5, 3)),
    "one_cycle": (schedules.one_cycle(0.1, 10_000), lambda o: torchs.OneCycleLR(o, 0.1, 10_000)),
    "sequence": (
        schedules.warmup(schedules.sequence([schedules.step(0.1, 90), schedules.cosine(0.1)], [1000]), steps=500),
        lambda o: torchs.SequentialLR(
            o,
            [torchs.LinearLR(o, 1e-9, 1.0, 500), torchs.StepLR(o, 90), torchs.CosineAnnealingLR(o, 8501)],
            [500, 1500],
        ),
    ),
}


@pytest.mark.parametrize("name", LONG)
def test_a_long_run_is_torchs(name):
    """Over 10,000 steps nothing drifts apart: each is torch's to 1e-6."""
    schedule, make = LONG[name]
    found = schedule.values(torch.arange(10_000), 10_001)
    torch.testing.assert_close(found, driven(0.1, make, 10_000)[0], rtol=1e-6, atol=1e-9)


@given(learning_rates, st.integers(1, 20), st.integers(1, 20), st.floats(0.0, 0.9))
def test_a_warm_up_rises_to_the_base(base, warmup, rest, floor):
    """A cosine's warm-up rises by equal steps from 0 to the base, which is the highest value, and falls from there."""
    values = schedules.cosine(base, warmup + rest, warmup, floor).values(torch.arange(warmup + rest + 1)).tolist()
    assert values[: warmup + 1] == close([base * s / warmup for s in range(warmup + 1)])
    falling = values[warmup:]
    assert falling == sorted(falling, reverse=True)
    assert max(values) == close(base)
    assert values[-1] == close(floor * base)


BEHIND = {
    "step": (lambda b: schedules.step(b, 7, 0.5), lambda o, n: torchs.StepLR(o, 7, 0.5)),
    "cosine": (schedules.cosine, lambda o, n: torchs.CosineAnnealingLR(o, n)),
    "polynomial": (schedules.polynomial, lambda o, n: torchs.PolynomialLR(o, n)),
    "number": (lambda b: b, lambda o, n: torchs.ConstantLR(o, 1.0)),
}


@given(learning_rates, st.sampled_from(sorted(BEHIND)), st.integers(2, 12), st.floats(0.01, 1.0))
def test_a_warm_up_stands_in_front_of_any_schedule(base, name, epochs, start):
    """By steps, epochs or a share it is torch's SequentialLR, and RUN behind it is the rest of the run."""
    ours, torch_has = BEHIND[name]
    batches, run = 5, 100
    steps = batches * epochs

    def make(o):
        parts = [torchs.LinearLR(o, start, 1.0, steps), torch_has(o, run - steps)]
        return torchs.SequentialLR(o, parts, [steps])

    expected, _ = driven(base, make, run)
    for length in ({"steps": steps}, {"epochs": epochs}, {"share": steps / run}):
        equal(schedules.warmup(ours(base), **length, start=start), expected, steps=run, batches=batches)


@given(learning_rates, st.lists(st.integers(1, 20), min_size=1, max_size=3))
def test_the_parts_of_a_sequence_begin_at_their_milestones(base, gaps):
    """Each is at its own 0 there, and RUN is how long it lasts; the bases may differ."""
    milestones = [sum(gaps[: i + 1]) for i in range(len(gaps))]
    bases = [base * (i + 1) for i in range(len(gaps) + 1)]
    whole = schedules.sequence([schedules.cosine(b) for b in bases], milestones)
    ends = [*milestones, milestones[-1] + 9]
    for own, begin, end in zip(bases, [0, *milestones], ends, strict=True):
        part = schedules.cosine(own, end - begin)
        found = whole.values(torch.arange(begin, end), ends[-1])
        torch.testing.assert_close(found, part.values(torch.arange(end - begin)))
    assert whole.base == max(bases)


@given(st.lists(all_schedules | learning_rates, min_size=1, max_size=3), st.integers(0, 60))
def test_a_product_is_the_product_of_the_values(parts, step):
    """`product` multiplies what its parts are at a step, numbers too."""
    values = [p if isinstance(p, float) else p.at(step, steps=50, batches=5) for p in parts]
    assert schedules.product(*parts).at(step, steps=50, batches=5) == close(math.prod(values))


@given(st.dictionaries(st.integers(0, 50), st.floats(-1, 1), min_size=1, max_size=5), st.integers(0, 60))
def test_piecewise_is_numpys(values, step):
    """Interpolated it is np.interp; else it keeps a value up to the next step that has one."""
    values = dict(sorted(values.items()))
    smooth = schedules.piecewise(values, interpolate=True).at(step)
    assert smooth == pytest.approx(np.interp(step, list(values), list(values.values())), abs=1e-9)
    kept = [v for s, v in values.items() if s <= step] or [next(iter(values.values()))]
    assert schedules.piecewise(values).at(step) == close(kept[-1])


@given(st.integers(20, 60), st.integers(1, 9), st.integers(1, 9), shares, st.sampled_from(["linear", "cosine", "sqrt"]))
def test_warmup_stable_decay_has_three_phases(steps, rise, fall, floor, shape):
    """It rises for `warmup` steps, stays at the base, and falls to the floor in the last `decay` steps."""
    made = schedules.warmup_stable_decay(0.1, steps, rise, fall, floor, shape)
    values = made.values(torch.arange(steps + 5))
    equal(made, [0.1 * s / rise for s in range(rise)])
    torch.testing.assert_close(values[rise : steps - fall + 1], torch.full((steps - fall + 1 - rise,), 0.1).double())
    assert (values[steps - fall :].diff() <= 1e-15).all()
    torch.testing.assert_close(values[steps:], torch.full((5,), 0.1 * floor).double())
    by_share = schedules.warmup_stable_decay(0.1, warmup=rise / steps, decay=fall / steps, floor=floor, shape=shape)
    torch.testing.assert_close(by_share.values(torch.arange(steps), steps), values[:steps])


def test_a_base_of_zero():
    """Parts of size 0 divide nothing by 0."""
    for zero in (schedules.sequence([0.0, 0.0], [2]), schedules.piecewise({0: 0.0}), schedules.product(0.0, 1.0)):
        equal(zero, [0.0] * 4)


@given(st.integers(1, 500), st.floats(0.0, 1.0), st.integers(1, 50), st.integers(0, 9))
def test_lengths_are_whole_and_add_up(run, share, batches, epochs):
    """A share of the run and what is left of it are the run; epochs are their batches."""
    part = share * RUN
    numbers = {"part": part, "rest": RUN - part, "epochs": EPOCH * epochs + 1, "third": RUN / 3, "half": RUN // 2}
    found = schedules.Schedule(1.0, lambda step: 1.0, numbers).filled(run, batches)
    assert found["part"] == round(run * share)
    assert found["part"] + found["rest"] == run
    assert (found["epochs"], found["third"], found["half"]) == (batches * epochs + 1, round(run / 3), run // 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.warmup(0.1), "one of steps=, epochs= and share= of the run, and was given nothing"),
        (lambda: schedules.warmup(0.1, steps=3, share=0.1), "was given steps=3 and share=0.1"),
        (lambda: schedules.warmup(0.1, share=1.5), "share=1.5 of the run is more than 1"),
        (lambda: schedules.warmup(0.1, share=RUN), "share= is a number; write steps=0.1 * RUN"),
        (lambda: min(RUN, 1000), "can't be compared"),
        (lambda: max(1000, 5 * EPOCH), "can't be compared"),
        (lambda: 1000 / RUN, "write multiples of them"),
        (lambda: RUN**0.5, "a power; write"),
        (lambda: schedules.flat_cosine(0.1, flat=1.0), "flat=1.0 is not below 1; schedules.constant(0.1)"),
        (lambda: schedules.warmup("cosine", steps=3), "'cosine' is neither a number nor a Schedule"),
        (lambda: schedules.sequence([0.1, 0.2], []), "2 parts needs 1 milestones"),
        (lambda: schedules.sequence([0.1, 0.2, 0.3], [9, 3]), "9, 3 are not in ascending order"),
        (lambda: schedules.piecewise({}), "at least one step"),
        (lambda: schedules.product(), "at least one schedule"),
        (lambda: schedules.one_cycle(0.1, anneal_strategy="cosine"), "anneal_strategy='cosine' is unknown; known: cos"),
        (lambda: schedules.one_cycle(0.1, pct_start=1.5), "pct_start=1.5 is not from 0 to 1"),
        (lambda: schedules.cosine_restarts(0.1, 10, mult=0.5), "mult=0.5 is not at least 1"),
        (lambda: schedules.step(0.1, every=0), "every=0 is not above 0"),
        (lambda: schedules.reduce_on_plateau(0.1, factor=1.0), "factor=1.0 is not below 1"),
        (lambda: schedules.reduce_on_plateau(0.1, mode="least"), "mode='least' is unknown; known: min, max"),
    ],
)
def test_what_no_schedule_can_be(make, message):
    """Each is one line that says the argument at fault."""
    with pytest.raises(ConfigError) as caught:
        make()
    assert message in str(caught.value)


def close(values):
    return pytest.approx(values, rel=1e-9, abs=1e-12)


@given(all_schedules, st.integers(0, 100))
def test_schedules_stay_within_their_base(schedule, step):
    """Every schedule here gives a number between 0 and its base."""
    assert 0.0 <= schedule.at(step, steps=50, batches=5) <= schedule.base * (1 + 1e-12)


@given(all_schedules)
def test_schedules_map_over_steps(schedule):
    """A factor is float64, 0-d for a step, and mapped over steps the factors of each."""
    numbers = {k: torch.tensor(v, dtype=torch.float64) for k, v in schedule.filled(50, 5).items()}
    alone = [schedule.apply(torch.tensor(s), numbers, schedule.first()) for s in range(20)]
    assert {(f.dtype, f.shape) for f in alone} == {(torch.float64, ())}
    mapped = schedule.values(torch.arange(20), 50, 5)
    torch.testing.assert_close(mapped, schedule.base * torch.stack(alone), rtol=1e-12, atol=0)


def test_a_schedule_of_ones_own():
    """A schedule is any function of the step, whose defaults are numbers in State."""
    halve = schedules.schedule(0.8, lambda step, every=2.0: 0.5 ** (step // every))
    equal(halve, [0.8, 0.8, 0.4, 0.4, 0.2])
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
        equal(make(base), make(base, steps).values(torch.arange(steps + 1)), steps=steps)
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


DATA = {"inputs": torch.randn(12, 2), "targets": torch.arange(12) % 2}
FALLING = schedules.linear(0.9, steps=4, start=1.0, end=0.5)


@pytest.mark.parametrize(
    ("scheduled", "plain", "name"),
    [
        ([update.sgd(0.1, momentum=FALLING)], lambda v: [update.sgd(0.1, momentum=v)], "momentum"),
        ([update.sgd(0.1, weight_decay=FALLING)], lambda v: [update.sgd(0.1, weight_decay=v)], "weight_decay"),
        ([update.clip_norm(FALLING), update.sgd(0.1)], lambda v: [update.clip_norm(v), update.sgd(0.1)], "limit"),
        ([update.adam(0.1, betas=(FALLING, 0.9))], lambda v: [update.adam(0.1, betas=(v, 0.9))], "beta1"),
    ],
)
def test_any_hyperparameter_may_have_a_schedule(scheduled, plain, name):
    """Training with a schedule is training with its value set by hand at each step."""

    def pipe(stages):
        model = forward.model(lambda: models.mlp(2, 2))
        return Pipeline(model, loss.cross_entropy(), backward.gradients(), *stages)

    ours, by_hand = pipe(scheduled), pipe(plain(0.9))
    state, other = ours.init(), by_hand.init()
    for s in range(5):
        state, _ = ours.step(state, DATA)
        other, _ = by_hand.step(other.with_hyper({name: FALLING.at(s)}), DATA)
        torch.testing.assert_close(state.params, other.params, rtol=1e-6, atol=1e-7)


def test_an_epochs_length_is_that_of_the_data():
    """EPOCH is the loader's number of batches; where that is unknown, the error says what to pass."""
    lr = schedules.warmup(schedules.step(0.1, every=2 * EPOCH), epochs=1)
    stages = forward.model(lambda: models.mlp(2, 2)), loss.cross_entropy(), backward.gradients(), update.sgd(lr)
    hyper = Pipeline(load.batches(DATA, size=5), *stages).init().hyper
    assert {k.removeprefix("update.sgd.lr"): v.item() for k, v in hyper.items() if ".lr." in k} == {
        ".warmup": 3.0, ".start": 0.0, ".after.every": 6.0, ".after.gamma": 0.1
    }  # fmt: skip
    with pytest.raises(StateError, match=r"update\.sgd\.lr needs an epoch's number of batches.*pass it steps in place"):
        Pipeline(*stages).init()
    with pytest.raises(StateError, match=r"update\.sgd\.lr has every=nan; .* write schedules\.RUN"):
        pipeline(schedules.Schedule(0.1, lambda step: step, {"every": math.nan})).init()


def test_the_numbers_of_parts_are_data():
    """Changing a number of a part in State changes the steps, and compiles nothing again."""
    lr = schedules.warmup(schedules.sequence([schedules.step(1.0, every=2, gamma=0.0), 0.5], [4]), steps=1, start=1.0)
    pipe = pipeline(lr)
    step = pipe.compile(backend=TRACED)
    state, moved = pipe.init(), []
    for s in range(8):
        if s == 6:
            state = state.with_hyper({"update.sgd.lr.after.scale.1": 0.0})
        before = state.params["1.weight"].clone()
        state, _ = step(state, DATA)
        moved.append(not torch.equal(before, state.params["1.weight"]))
    assert moved == [True, True, True, False, False, True, False, False]
    assert len(step.report.graphs) == 1


def test_a_run_with_every_kind_of_length():
    """`fit` fills in the lengths of the run, of epochs and of parts."""
    lr = schedules.warmup(schedules.cosine(0.1), epochs=1)
    stages = forward.model(lambda: models.mlp(2, 2)), loss.cross_entropy(), backward.gradients(), update.sgd(lr)
    *_, last = fit(Pipeline(load.batches(DATA, size=4), *stages), epochs=3, compile=False)
    assert last.state.hyper["update.sgd.lr.after.steps"].item() == 6


def test_a_picture(tmp_path):
    """`plot` returns a Figure with a line for each schedule, and writes it."""
    lines = {"lr": schedules.warmup(schedules.cosine(0.1), share=0.1), "momentum": 0.9}
    figure = schedules.plot(lines, 100, tmp_path / "lr.png")
    assert (tmp_path / "lr.png").read_bytes().startswith(b"\x89PNG")
    [axes] = figure.axes
    assert [line.get_label() for line in axes.lines] == ["lr", "momentum"]
    assert [axes.lines[0].get_ydata()[s] for s in (0, 10)] == close([0.0, 0.1])
    assert "step" in axes.get_xlabel()
    with pytest.raises(ConfigError, match="can't write the picture"):
        schedules.plot(lines["lr"], 100, tmp_path / "none" / "lr.png")
