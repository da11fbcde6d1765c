"""RealMLP and TabM, and the recipes by which tables are learned."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cli import config
from cli.build import job
from cli.prepared import fixed, prepared
from cli.settled import settled
from pipeline import Pipeline, backward, fit, forward, load, loss, models, schedules, testing, update
from pipeline.errors import ConfigError
from pipeline.models.columns import OneHot, Robust, quantiles
from pipeline.models.realmlp import FACTORS, Linear
from pipeline.models.tabm import Piecewise
from tests.strategies import normals, seeds

SIZES = (3, 5, 12)
"""Of categories: two values, few, and many."""


def rows(count=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    codes = [torch.randint(n, (count,), generator=generator) for n in SIZES]
    numbers = torch.randn(count, 4, generator=generator) * torch.tensor([1.0, 100.0, 0.01, 0.0])
    targets = torch.randint(3, (count,), generator=generator)
    return {"inputs": numbers, "categories": torch.stack(codes, 1), "targets": targets}


def realmlp(sample, **options):
    return models.realmlp(4, 3, categories=SIZES, hidden=(8, 8), sample=sample, **options)


def tabm(sample):
    join = loss.mean_probabilities
    return models.tabm(4, 3, join=join, categories=SIZES, hidden=(8,), members=5, sample=sample)


@given(normals((9, 3)), st.sampled_from([0.25, 2.0, 1024.0]))
def test_robust_numbers_have_no_unit_and_end_at_3(x, scale):
    """Another unit of a column changes nothing, and no number is beyond 3."""
    robust = Robust(3, x)
    torch.testing.assert_close(Robust(3, scale * x)(scale * x), robust(x), atol=1e-4, rtol=1e-4)
    assert robust(1e6 * x).abs().max() <= 3.001


@given(normals((7, 2)), st.floats(0, 1))
def test_quantiles_are_torchs(x, at):
    """They interpolate as torch.quantile."""
    torch.testing.assert_close(quantiles(x, torch.tensor([at]))[0], torch.quantile(x, torch.tensor(at), 0))


def test_one_hot_columns_tell_each_code():
    """Each code of a category has columns of its own, those of a missing value are 0."""
    for size in (2, 3, 4, 9):
        columns = OneHot((size,))(torch.arange(size)[:, None])
        assert len(columns.unique(dim=0)) == size
        assert not columns[0].any()


@given(seeds)
def test_a_fitted_layer_has_values_of_deviation_1(seed):
    """Of the training rows; and each threshold is one of the values that the neuron has for them, or between."""
    torch.manual_seed(seed)
    x = 5.0 + 3.0 * torch.randn(30, 6)
    layer = Linear(6, 4)
    layer.fit(x)
    values = layer(x)
    torch.testing.assert_close(values.std(0, correction=0), torch.ones(4))
    assert bool(((values.amin(0) <= 0) & (values.amax(0) >= 0)).all())


@pytest.mark.parametrize("make", [realmlp, tabm])
def test_a_table_model_is_a_function_of_seed_and_sample_and_restored_without_it(make):
    """Equal seeds give equal weights; a module that is built without a sample takes over all values."""
    one, other = (forward.model(lambda: make(rows())) for _ in range(2))
    first, again = (m.module.create(3) for m in (one, other))
    assert not testing.differences(first, again)
    module = make(None)
    module.load_state_dict({**first[0], **first[1]})
    batch = {k: v for k, v in rows(7, seed=1).items() if k != "targets"}
    torch.testing.assert_close(module.eval()(**batch), one.module.whole({**first[0], **first[1]})(**batch))
    torch.testing.assert_close(module(**batch)[:3], module(**{k: v[:3] for k, v in batch.items()}))


def pipe(make, *measured, **options):
    rule = update.scaled(update.adamw(schedules.coslog(0.04)), **FACTORS)
    model = forward.model(lambda: make(rows()), inputs=("inputs", "categories"), **options)
    return Pipeline(load.batches(rows(), size=20), model, *measured, backward.gradients(), rule)


@pytest.mark.parametrize("make", [realmlp, tabm])
def test_a_table_model_compiles_to_the_same_numbers(make):
    """One graph gives what the plain step gives, with dropout by a schedule."""
    measured = loss.of_members(loss.cross_entropy()) if make is tabm else [loss.cross_entropy(smoothing=0.1)]
    options = {} if make is tabm else {"hyper": {"dropout": schedules.flat_cosine(0.3)}}
    made = pipe(make, *measured, **options)
    (*_, plain), (*_, compiled) = (
        fit(made, epochs=2, validate=rows(9, seed=1), compile=way) for way in (False, made.compile(backend="aot_eager"))
    )
    testing.same(plain.state.params, compiled.state.params, 1e-5)
    assert compiled.validate["loss"] == pytest.approx(plain.validate["loss"], rel=1e-4)


def test_a_model_takes_numbers_in_training_alone():
    """hyper= are arguments of the module, which State keeps; evaluation leaves them out."""

    class Halved(torch.nn.Linear):
        def forward(self, x, share=None):
            return super().forward(x) * (7.0 if share is None else share)

    made = forward.model(lambda: Halved(2, 1), hyper={"share": schedules.linear(0.5, steps=4, start=1.0, end=0.0)})
    data = {"inputs": torch.ones(4, 2), "targets": torch.zeros(4, 1)}
    runs = Pipeline(load.batches(data, size=4), made, loss.mse(), backward.gradients(), update.sgd(0.0))
    state = runs.init(0)
    assert state.hyper["forward.model.share"] == 0.5
    losses = []
    for _ in range(3):
        state, metrics = runs.step(state, data)
        losses.append(metrics["loss"])
    base = runs.evaluate(state, data)["loss"] / 49
    torch.testing.assert_close(torch.stack(losses).double(), base * torch.tensor([0.5, 0.375, 0.25]).double() ** 2)


@given(normals((2, 5, 3)), st.integers(0, 2**31))
def test_the_loss_of_members_is_their_mean(logits, seed):
    """Not the loss of their mean."""
    targets = torch.randint(3, (2,), generator=torch.Generator().manual_seed(seed))
    _, each, joined = loss.of_members(loss.cross_entropy())
    alone = torch.stack([loss.cross_entropy()(logits[:, m], targets)[0] for m in range(5)])
    torch.testing.assert_close(each(logits, targets)[0], alone.mean())
    assert joined(loss.mean_probabilities(logits.movedim(1, 0)), targets)[0] <= alone.mean() + 1e-6


def test_scaled_numbers_are_those_of_groups():
    """A rule with factors equals a rule for each group, with the products."""
    params = {"a.weight": torch.randn(3), "a.bias": torch.randn(2)}
    grads = {k: torch.randn_like(p) for k, p in params.items()}
    groups = update.groups({"*.bias": update.adamw(0.01, weight_decay=0.0)}, otherwise=update.adamw(0.1))
    one = update.scaled(update.adamw(0.1), lr={"*.bias": 0.1}, weight_decay={"*bias": 0.0})
    results = []
    for rule in (one, groups):
        hyper = {k: torch.tensor(v, dtype=torch.float64) for k, v in rule.hyper.items()}
        values = {"params": params, "grads": grads, "step": torch.tensor(0)}
        results.append(rule.run(values, hyper, rule.init(params))[0]["params"])
    testing.same(*results, 1e-7)
    with pytest.raises(ConfigError, match="has no 'momentum', only lr"):
        update.scaled(update.adamw(), momentum={"*": 2.0})


@given(normals((30, 1)))
def test_piecewise_knots_are_quantiles(x):
    """At first an embedding is a line in the clipped number; its bends add up to at most the number of bins."""
    embed = Piecewise(1, x)
    with torch.no_grad():
        straight = embed(x)
        embed.bends.fill_(1.0)
        bent = embed(x) - straight
    order = x[:, 0].argsort()
    assert bool((bent[order].diff(dim=0) >= -1e-4).all())
    assert bent.max() <= 48.001


def test_coslog_is_0_at_the_ends_of_its_cycles():
    """Which are at (2**k - 1) / 15 of the run; flat_cosine stays and then falls."""
    rate = schedules.coslog(0.3, steps=15)
    assert [rate.at(2**k - 1) for k in range(5)] == pytest.approx([0.0] * 5, abs=1e-9)
    assert max(rate.at(s) for s in range(15)) <= 0.3
    values = [schedules.flat_cosine(2.0, steps=10).at(s) for s in range(11)]
    assert values[:6] == pytest.approx([2.0] * 6)
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(0.0)


def test_the_recipe_fills_in_what_is_not_chosen():
    """A table gets the settings of its model; chosen settings stay; other data keep their defaults."""
    small, _ = settled(config.make({"data": "sklearn:diabetes", "epochs": 3, "hidden": [8]}))
    assert (small.model.name, small.model.hidden, small.optimizer.lr) == ("tabm", (8,), 2e-3)
    assert (small.run.epochs, small.loss.smoothing) == (3, 0.0)
    assert settled(config.make(small.tables))[0] == small
    realmlp = {"data": "sklearn:wine", "model": "realmlp"}
    chosen, data = settled(config.make({**realmlp, "epochs": 3, "hidden": [8]}))
    assert (chosen.model.name, chosen.model.hidden, chosen.optimizer.lr) == ("realmlp", (8,), 0.04)
    assert (chosen.run.epochs, chosen.loss.smoothing) == (3, 0.1)
    assert settled(config.make(chosen.tables), data)[0] == chosen
    assert not chosen.run.compile
    assert settled(config.make({**realmlp, "epochs": 3, "eager_steps": 0}))[0].run.compile
    alone, _ = settled(config.make({"data": "sklearn:diabetes", "model": "realmlp", "optimizer": "sgd"}))
    assert (alone.optimizer.lr, alone.schedule.name) == (0.1, "coslog4")
    assert settled(config.make({**realmlp, "optimizer": "adamw"}))[0].optimizer == chosen.optimizer
    again = {**small.tables, config.RECORDED: {}}
    del again["run"]["patience"]  # as TOML has no None
    assert settled(config.make(again))[0].run.patience is None  # a run has all of its settings
    assert settled(config.make(again, {"model": "tabm"}))[0].run.patience == 16
    assert settled(config.make({**realmlp, "best": "loss"}))[0].loss.smoothing == 0
    assert settled(config.make({"data": "sklearn:wine", "model": "mlp"}))[0].optimizer.weight_decay is None
    assert settled(config.make({}))[0].model.name == "mlp"


def test_the_recipe_of_a_large_table_is_short():
    """Samples times epochs stay about the same, and a short training is not compiled. TabM is for small ones."""
    start = config.make({"data": "sklearn:wine"})
    names = [
        start.model.recipe(fixed("wine", prepared(start)), count, start)["model.name"]
        for count in (199, 200, 2_000, 2_001)
    ]
    assert names == ["realmlp", "tabm", "tabm", "realmlp"]
    start = config.make({"data": "sklearn:wine", "model": "realmlp"})
    what = fixed("wine", prepared(start))
    seen = {}
    for count in (100, 4_000, 20_000, 10**6, 10**8):
        recipe = start.model.recipe(what, count, start)
        seen[count] = count * recipe["run.epochs"]
        assert ("run.compile" in recipe) == (count < 2_000)
    assert max(v for k, v in seen.items() if k < 10**7) <= 5_200_000
    assert seen[10**8] == 10**8


@pytest.mark.parametrize("model", ["realmlp", "tabm"])
@pytest.mark.parametrize("name", ["wine", "diabetes"])
def test_a_table_is_learned(model, name):
    """A few epochs beat the mean or the majority, and values stay within those of the training targets."""
    settings = {"data": f"sklearn:{name}", "model": model, "hidden": [16, 16], "epochs": 12, "ensemble": 2}
    made = job(config.make({**settings, "optimizer.lr": 0.02, **({"k": 4} if model == "tabm" else {})}))
    *_, last = fit(made.pipe, epochs=12, validate=made.validation, compile=False)
    assert last.validate[made.best] > (0.8 if name == "wine" else 0.2)
    assert math.isfinite(last.validate["loss"])
