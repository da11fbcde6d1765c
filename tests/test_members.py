"""Members: each member of a sweep is the run alone."""

import math

import pytest
import torch
from torch.utils import _pytree as pytree

from pipeline import Pipeline, backward, evaluate, fit, forward, load, loss, models, schedules, sweep, testing, update
from pipeline.errors import ConfigError, PipeError, StateError
from pipeline.programs.evaluate import check_state
from tests import pipes
from tests.pipes import TRACED

RATES = {"lr": [1e-3, 3e-3, 1e-2]}


def alone(runs, i, epochs, **options):
    """The State of a member's run without the others."""
    pipe, own = runs.pipe, dict(runs.settings[i])
    state = pipe.init(own.pop("seed"), steps=epochs * pipe.load.batches).with_hyper(own)
    *_, last = fit(pipe, epochs=epochs, state=state, compile=False, **options)
    return last.state


def tokens():
    return (
        pipes.transformer()
        .replace("backward.gradients", backward.gradients())
        .replace("update.sgd", update.adamw(1e-3, eps=1e-5))
    )


def convolutions():
    """BatchNorm, dropout, and a sum over members' buffers. In float32, a maximum of two numbers that differ by a
    rounding is another one here and there, and the two runs part: in float64 none did."""
    data = {k: v.double() if v.is_floating_point() else v for k, v in pipes.DIGITS.tensors.items()}
    model = forward.model(lambda: models.convnet(1, 10, widths=(4, 8), dropout=0.3).double())
    pipe = pipes.digits(update.sgd(0.1, momentum=0.9)).replace("load.batches", load.batches(data, size=256))
    return pipe.replace("forward.model", model)


@pytest.mark.parametrize(
    ("make", "hyper", "epochs", "compiled"),
    [
        (
            lambda: pipes.digits(
                update.clip_norm(1.0),
                update.adamw(schedules.cosine(3e-3)),
                model=lambda: models.mlp(64, 16, 10, dropout=0.2),
                size=479,
            ),
            RATES,
            34,
            True,
        ),
        (convolutions, {"lr": [0.1, 0.01]}, 17, False),
        (tokens, {"update.adamw.lr": [1e-3, 1e-2]}, 50, False),
    ],
    ids=["mlp", "convnet", "transformer"],
)
def test_a_member_is_the_run_alone(make, hyper, epochs, compiled):
    """Weights and buffers to 1e-5 after 100 steps, each in its own order, with its own dropout."""
    runs = sweep(make(), seeds=2, hyper=hyper)
    *_, report = fit(runs, epochs=epochs, compile=compiled)
    for i in (1, runs.members - 1):
        mine, other = runs.member(report.state, i), alone(runs, i, epochs)
        check_state(runs.pipe.program, mine)
        assert pytree.tree_structure(mine.tree) == pytree.tree_structure(other.tree)
        testing.same(mine.params, other.params, 1e-5)
        testing.same(mine.buffers, other.buffers, 1e-5)


def small(*updates, **options):
    """A pipeline whose steps take no time."""
    data = {"inputs": torch.randn(20, 4, generator=torch.Generator().manual_seed(0)), "targets": torch.arange(20) % 3}
    return Pipeline(
        load.batches(data, size=8),
        forward.model(lambda: models.mlp(4, 3)),
        loss.cross_entropy(),
        evaluate.accuracy(),
        backward.gradients(**options),
        *(updates or (update.sgd(0.1),)),
    )


def test_members_are_the_settings_with_each_seed():
    runs = sweep(small(), seeds=[3, 5], hyper={"lr": [0.1, 0.2]})
    assert [(s["seed"], s["update.sgd.lr"]) for s in runs.settings] == [(3, 0.1), (5, 0.1), (3, 0.2), (5, 0.2)]
    assert sweep(small(), hyper=[{"lr": 0.1}, {"lr": 0.3}]).members == 2
    assert sweep(small(), seeds=4).members == 4


def test_reports_have_a_number_for_each_member():
    runs = sweep(small(), seeds=3)
    for report in fit(runs, epochs=2, validate=small().load.data, compile=False):
        assert len(report.train["loss"]) == len(report.validate["accuracy"]) == runs.members == report.members
        best = report.best("accuracy")
        assert report.validate["accuracy"][best] == max(report.validate["accuracy"])
        assert report.best("loss") == min(range(3), key=report.validate["loss"].__getitem__)
        assert report.member(1).train["loss"] == report.train["loss"][1]
        assert "best of 3: " in str(report)
        assert "samples/s" in str(report.member(1))
    with pytest.raises(ConfigError, match="did you mean 'accuracy'"):
        report.best("acuracy")
    with pytest.raises(ConfigError, match="no members"):
        report.member(0).member(0)


def test_shared_order_shows_all_members_the_same_batches():
    """Two members of one seed and one rate are the same, and another seed sees that order too."""
    runs = sweep(small(), seeds=[7, 8], order="shared")
    *_, report = fit(runs, epochs=1, compile=False)
    pipe, state = runs.pipe, runs.pipe.init(8, steps=3)
    for batch in pipe.load.epoch(7, 0):
        state, _ = pipe.step(state, batch)
    testing.same(runs.member(report.state, 1).params, state.params, 1e-6)


def test_narrowed_members_go_on_alike():
    """Some members, taken out between two epochs, end as they do among all."""
    runs = sweep(small(), seeds=4)
    last = None
    for last in fit(runs, epochs=2, compile=False):
        if last.epoch == 1:
            kept = runs.narrowed(last.state, [3, 1])
    few = runs.take([3, 1])
    *_, report = fit(few, epochs=2, compile=False, state=kept, start=(1, 0))
    testing.same(few.member(report.state, 0).tree, runs.member(last.state, 3).tree, 1e-6)
    whole = few.stacked([few.member(report.state, i) for i in range(2)])
    testing.same(whole.tree, report.state.tree)


def test_another_grid_of_the_same_width_makes_no_graph():
    """Numbers are data: one program serves any of them."""
    pipe = small(update.sgd(0.1, momentum=0.9))
    runs = sweep(pipe, seeds=2, hyper={"lr": [0.1, 0.2]})
    compiled = runs.compile(backend=TRACED)
    compiled.prepare(runs.init(steps=6), pipe.load.data)
    assert len(compiled.report.graphs) == 4  # a full batch and the last one, of training and of evaluation
    others = sweep(pipe, seeds=[8, 9], hyper={"momentum": [0.5, 0.8]})
    state = others.init(steps=6)
    for _ in range(2):
        state, metrics = compiled(state, None)
    assert metrics["loss"].shape == (4,)
    assert len(compiled.report.graphs) == 4


def test_a_member_that_is_not_finite_stops_alone():
    """Its State stays what it was, and the others go on."""
    runs = sweep(small(update.finite(), update.sgd(0.1)), hyper={"lr": [0.1, 3e38, 0.2]})
    *_, report = fit(runs, epochs=3, compile=False)
    values = report.train["loss"]
    assert [math.isfinite(v) for v in values] == [True, False, True]
    assert report.best("loss") != 1
    stopped, other = runs.member(report.state, 1), runs.member(report.state, 0)
    assert int(stopped.step) < int(other.step) == 9
    assert all(torch.isfinite(t).all() for t in stopped.params.values())
    only = sweep(small(update.finite(), update.sgd(0.1)), seeds=2, hyper={"lr": [3e38]})
    *_, report = fit(only, epochs=3, compile=False)
    assert all(math.isnan(v) for v in report.train["loss"])


def test_averages_and_plateaus_are_each_members_own():
    """What a pipeline does between epochs is done for each member."""
    rate = schedules.reduce_on_plateau(0.5, patience=0, metric="loss")
    runs = sweep(small(update.sgd(rate), update.ema(0.9)), seeds=2, hyper={"lr": [0.5, 1e-9]})
    *_, report = fit(runs, epochs=3, validate=runs.pipe.load.data, compile=False)
    assert len(report.validate["ema.loss"]) == 4
    last = alone(runs, 3, 3, validate=runs.pipe.load.data)
    testing.same(runs.member(report.state, 3).memory["update.sgd.lr"], last.memory["update.sgd.lr"], 1e-6)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"hyper": {"lrr": [0.1]}}, "no hyperparameter 'lrr'.*did you mean 'lr'"),
        ({"hyper": [{"lr": 0.1}, {"momentum": 0.1}]}, "no hyperparameter 'momentum'|the same hyperparameters"),
        ({"hyper": {"lr": []}}, "at least one value"),
        ({"seeds": 0}, "neither a number of seeds nor some"),
        ({"seeds": [0.5]}, "neither a number of seeds nor some"),
        ({"order": "mine"}, "'shared' or 'own'"),
    ],
)
def test_what_is_no_sweep_is_refused(given, said):
    with pytest.raises((ConfigError, StateError), match=said):
        sweep(small(), **given)


def test_members_that_begin_alike_are_warned_of():
    """Seeds do not change the weights of a module that is given."""
    pipe = small().replace("forward.model", forward.model(models.mlp(4, 3)))
    with pytest.warns(UserWarning, match=r"begin with equal weights.*forward.model\(lambda"):
        sweep(pipe, seeds=2).init()
    sweep(pipe, hyper={"lr": [0.1, 0.2]}).init()
    sweep(small(), seeds=2).init()


def test_what_can_not_be_a_sweep_is_refused():
    """A backward by the tape, and an own order of what is not in memory."""
    with pytest.raises(PipeError, match="train the members one by one"):
        list(fit(sweep(small(route="tape"), seeds=2), epochs=1, compile=False))
    loader = small().replace(
        "load.batches", load.loader([{"inputs": torch.randn(4, 4), "targets": torch.arange(4) % 3}])
    )
    with pytest.raises(ConfigError, match="order='shared'"):
        sweep(loader, seeds=2)
    *_, report = fit(sweep(loader, seeds=2, order="shared"), epochs=2, compile=False)
    assert len(report.train["loss"]) == 2
    runs = sweep(small(), seeds=2)
    with pytest.raises(StateError, match="were given for 2 members"):
        runs.stacked([small().init()])
