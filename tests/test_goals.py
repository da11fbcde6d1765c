"""Metrics beyond accuracy and squared error, against scikit-learn's, and what is chosen by them."""

import math
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize
from sklearn import metrics as sklearn_metrics
from torch.nn import functional as F

from pipeline import Pipeline, backward, ensemble, evaluate, forward, load, loss, testing, update
from pipeline.errors import ConfigError, DataError, StageError
from pipeline.evaluate import ranked
from pipeline.tree import tree_map
from tests import pipes
from tests.strategies import cuts, labels, normals
from tests.test_evaluate import assert_any_split, measured


@st.composite
def scored(draw, classes=None, each=True):
    """Logits (N, C), of any scale, some of them equal, and labels (N,) of which each class has one."""
    count = draw(st.integers(2, 5) if classes is None else st.just(classes))
    n = draw(st.integers(2 * count, 60))
    outputs = draw(normals((n, count))) * draw(st.sampled_from([1e-3, 0.3, 3.0, 300.0]))
    outputs = draw(st.sampled_from([outputs, outputs.round(decimals=1)]))
    goals = draw(labels((n,), count))
    if each:
        goals[:count] = torch.arange(count)
    return outputs, goals


def one_vs_rest(outputs, targets):
    """For each class that counts: its scores (N,) in float64, and whether a sample is of it."""
    z = outputs.double()
    for c in [1] if z.shape[1] == 2 else range(z.shape[1]):
        rest = torch.cat([z[:, :c], z[:, c + 1 :]], 1).logsumexp(1)
        yield (z[:, c] - rest).numpy(), (targets == c).numpy()


def binned(scores, bins):
    """The bins of scores, by another formula than ours: the borders."""
    borders = np.sinh((np.arange(1, bins) / bins * 2 - 1) * ranked.FAR)
    return np.digitize(scores, borders)


def bins_for(outputs):
    """As many for each class as the module says."""
    return max(4096, 16384 // (1 if outputs.shape[1] == 2 else outputs.shape[1]))


def in_bins(scores, true, bins):
    """Positives and negatives of each bin, as floats."""
    at = binned(scores, bins)
    return (np.bincount(at[which], minlength=bins).astype(float) for which in (true, ~true))


@given(scored())
def test_the_area_under_the_curve_is_sklearns_up_to_its_bound(sample):
    """It is sklearn's of the rounded scores, and off by half of the pairs that share a bin at most."""
    found = measured(evaluate.roc_auc(sample[0].shape[1]), sample)["roc auc"]
    exact, rounded, bounds = [], [], []
    bins = bins_for(sample[0])
    for scores, true in one_vs_rest(*sample):
        positives, negatives = in_bins(scores, true, bins)
        bounds.append((positives * negatives).sum() / positives.sum() / negatives.sum() / 2)
        exact.append(sklearn_metrics.roc_auc_score(true, scores))
        rounded.append(sklearn_metrics.roc_auc_score(true, binned(scores, bins)))
    # float32 of a label's border may round to either side, which moves single pairs
    assert found == pytest.approx(np.mean(rounded), abs=np.mean(bounds) + 1e-9)
    assert abs(found - np.mean(exact)) <= np.mean(bounds) + 1e-9


@given(scored())
def test_average_precision_is_sklearns_up_to_its_bound(sample):
    """It is off by what the order inside of bins can change at most."""
    found = measured(evaluate.average_precision(sample[0].shape[1]), sample)["average precision"]
    exact, bounds = [], []
    for scores, true in one_vs_rest(*sample):
        p, n = in_bins(scores, true, bins_for(sample[0]))
        above, over = p[::-1].cumsum()[::-1] - p, n[::-1].cumsum()[::-1] - n
        best = (above + p) / np.maximum(above + p + over, 1)
        worst = (above + 1) / (above + 1 + over + n)
        bounds.append((p * (best - worst)).sum() / p.sum())
        exact.append(sklearn_metrics.average_precision_score(true, scores))
    assert abs(found - np.mean(exact)) <= np.mean(bounds) + 1e-9


@given(st.integers(200, 400), st.floats(0.5, 3), st.data())
def test_distinct_scores_of_a_few_hundred_samples_are_ranked_to_a_thousandth(n, scale, data):
    """The bins are narrow enough for what is printed."""
    scores, targets = data.draw(normals((n,))) * scale, data.draw(labels((n,), 2))
    targets[:2] = torch.arange(2)
    outputs = torch.stack([torch.zeros(n), scores], 1)
    found = measured(evaluate.roc_auc(2), (outputs, targets))["roc auc"]
    assert found == pytest.approx(sklearn_metrics.roc_auc_score(targets, scores), abs=1e-3)


@pytest.mark.parametrize("make", [evaluate.roc_auc, evaluate.average_precision, evaluate.balanced_accuracy])
def test_a_constant_has_the_value_of_no_skill(make):
    """0.5, the share of the positives, and 1 / C, whatever the classes' shares."""
    targets = torch.tensor([0] * 9 + [1])
    wanted = {"roc auc": 0.5, "average precision": 0.1, "balanced accuracy": 0.5}
    [(name, value)] = measured(make(2), (torch.tensor([[2.0, -3.0]]).expand(10, 2), targets)).items()
    assert value == pytest.approx(wanted[name])


def test_scores_far_beyond_what_a_probability_can_tell_are_ranked():
    """Logits of 100 and 200 are both probability 1, and differ; so do those of several classes."""
    outputs = torch.tensor([[0.0, 100.0], [0.0, 200.0], [0.0, 150.0]])
    assert measured(evaluate.roc_auc(2), (outputs, torch.tensor([0, 1, 1])))["roc auc"] == 1.0
    outputs, targets = torch.tensor([[0.0, 0.0, 90.0], [0.0, 0.0, 80.0], [0.0, 70.0, 0.0]]), torch.tensor([2, 0, 1])
    assert measured(evaluate.roc_auc(3), (outputs, targets))["roc auc"] == pytest.approx((0.5 + 1 + 1) / 3)


def test_of_one_class_alone_a_ranking_is_undefined():
    """It is NaN, not a number that looks like a result."""
    assert math.isnan(measured(evaluate.roc_auc(2), (torch.randn(4, 2), torch.zeros(4).long()))["roc auc"])


@given(scored(each=False))
def test_figures_of_each_class_are_sklearns(sample):
    """Balanced accuracy, F1, and log loss."""
    outputs, targets = sample
    guess, count = outputs.argmax(1), outputs.shape[1]
    with warnings.catch_warnings(action="ignore"):  # of a class that is predicted and never occurs
        expected = sklearn_metrics.balanced_accuracy_score(targets, guess)
    assert measured(evaluate.balanced_accuracy(count), sample)["balanced accuracy"] == pytest.approx(expected)
    average = "binary" if count == 2 else "macro"
    expected = sklearn_metrics.f1_score(targets, guess, average=average, zero_division=0)
    assert measured(evaluate.f1(count), sample)["f1 score"] == pytest.approx(expected)
    expected = F.cross_entropy(outputs.double(), targets).item()
    assert measured(evaluate.log_loss(), sample)["log loss"] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    found = measured(evaluate.counts(count), sample)
    matrix = sklearn_metrics.confusion_matrix(targets, guess, labels=range(count))
    assert found == {"right": [*matrix.diagonal()], "predicted": [*matrix.sum(0)], "true": [*matrix.sum(1)]}


@given(st.integers(4, 40), st.integers(1, 4), st.data())
def test_figures_of_labels_are_means_over_them(n, count, data):
    """Of several labels, each is a task of its own."""
    outputs, true = data.draw(normals((n, count))), data.draw(labels((n, count), 2)).float()
    true[0], true[1] = 0.0, 1.0
    sample = outputs, true
    expected = np.mean([sklearn_metrics.roc_auc_score(true[:, i], binned(outputs[:, i], 4096)) for i in range(count)])
    assert measured(evaluate.roc_auc(count, several=True), sample)["roc auc"] == pytest.approx(expected, abs=0.05)
    expected = np.mean([sklearn_metrics.f1_score(true[:, i], outputs[:, i] > 0, zero_division=0) for i in range(count)])
    assert measured(evaluate.f1(count, several=True), sample)["f1 score"] == pytest.approx(expected)
    expected = F.binary_cross_entropy_with_logits(outputs.double(), true.double()).item()
    assert measured(evaluate.log_loss(several=True), sample)["log loss"] == pytest.approx(expected)


@given(st.integers(2, 100), st.floats(0.05, 0.95), st.data())
def test_figures_of_values_are_sklearns(n, quantile, data):
    """The root of the mean squared error, the pinball loss, and the Poisson deviance of means and of logarithms."""
    outputs, targets = data.draw(normals((n,))), data.draw(normals((n,)))
    sample, both = (outputs.unsqueeze(1), targets), (targets.double(), outputs.double())
    root = sklearn_metrics.root_mean_squared_error(*both)
    assert measured(evaluate.root_mean_squared_error(), sample)["rmse"] == pytest.approx(root)
    expected = sklearn_metrics.mean_pinball_loss(*both, alpha=quantile)
    assert measured(evaluate.pinball(quantile), sample)["pinball"] == pytest.approx(expected)
    counted, rates = data.draw(labels((n,), 6)).float(), outputs.exp()
    expected = sklearn_metrics.mean_poisson_deviance(counted.double(), rates.double())
    for metric, given_ in ((evaluate.poisson_deviance(), rates), (evaluate.poisson_deviance(log=True), outputs)):
        assert measured(metric, (given_, counted))["poisson deviance"] == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_mean_of_no_counts_has_an_infinite_deviance():
    """It is infinite, not NaN, so that no such epoch is the best."""
    assert measured(evaluate.poisson_deviance(), (torch.tensor([-1.0]), torch.ones(1)))["poisson deviance"] == math.inf


METRICS = {
    "balanced accuracy": evaluate.balanced_accuracy, "f1": evaluate.f1, "counts": evaluate.counts,
    "roc auc": evaluate.roc_auc, "average precision": evaluate.average_precision,
    "log loss": lambda classes: evaluate.log_loss(), "temperature": lambda classes: evaluate.temperature(),
}  # fmt: skip


@pytest.mark.parametrize("make", METRICS.values(), ids=METRICS)
@given(sample=scored(classes=3), data=st.data())
def test_batches_add_up_and_models_map(make, sample, data):
    """The metric of any split is that of the whole, and of stacked outputs the stack of the metrics."""
    outputs, targets = sample
    stage, stacked = make(3), torch.stack([outputs, -outputs])
    assert_any_split(stage, sample, data)
    mapped = torch.vmap(stage, in_dims=(0, None))(stacked, targets)
    for i in range(2):
        alone = stage(stacked[i], targets)
        torch.testing.assert_close(tree_map(lambda x, i=i: x[i], mapped), alone, rtol=1e-6, atol=1e-6)
    each = [stage.finish(stage(x, targets)) for x in stacked]
    for name, value in stage.finish(mapped).items():  # a sweep's sums have one more dimension, at the front
        torch.testing.assert_close(
            value, torch.stack([one[name] for one in each]), rtol=1e-5, atol=1e-6, equal_nan=True
        )


def views(sums):
    """Parts of computed values, in each dtype."""
    found = {}
    for dtype in (torch.float32, torch.float64):
        each = 2 * sums["n"].to(dtype) * torch.tensor([0.3, 0.5, 0.9], dtype=dtype)
        square = torch.outer(each, each + 1).softmax(-1)
        parts = (each[..., 1], each[2], each[1:], each[::2], each[1].exp(), each[1] * square,
                 square.t(), square.diagonal(), square[1, 2], square[:, 1], each[1].expand(4))  # fmt: skip
        found |= {f"{dtype} {i}": part for i, part in enumerate(parts)}
    return found


@pytest.mark.parametrize("most", [2, pytest.param(None, marks=pytest.mark.thorough)])
def test_they_compile_with_the_step(most):
    """One graph counts what the plain step counts, and finishes as it does."""
    counts = evaluate.metric(
        "views", lambda targets: {"n": F.one_hot(targets, 3).sum(0)}, views, {"n": (torch.int64, (3,))}
    )
    metrics = [*[make(3) for make in METRICS.values()][:most], counts]
    stages = forward.model(pipes.Linear), loss.cross_entropy(weight=torch.tensor([1.0, 2.0, 20.0])), *metrics
    pipe = Pipeline(*stages, backward.gradients(accumulate=2), update.sgd(0.1))
    batch = {"inputs": torch.randn(6, 4), "targets": torch.arange(6) % 3}
    step = pipe.compile(backend="native")
    testing.compiled_equals_eager(step, pipe.init(0), [batch])


# -- what is chosen by them


@given(scored(classes=2), st.sampled_from(ranked.GOALS))
def test_no_threshold_is_better(sample, by):
    """The value at the threshold is what sklearn gives there, and of no border of bins is it larger."""
    outputs, targets = sample
    scores = (outputs[:, 1] - outputs[:, 0]).double().numpy()
    found = measured(evaluate.threshold(by), sample)
    score = sklearn_metrics.f1_score if by == "f1" else sklearn_metrics.balanced_accuracy_score
    assert found["at threshold"] == pytest.approx(score(targets, scores >= found["threshold"]))
    tried = np.sinh((np.linspace(0, 16383, 64).round() / 16384 * 2 - 1) * ranked.FAR)
    assert found["at threshold"] >= max(score(targets, scores >= t) for t in tried) - 1e-9
    assert found["at 0"] == pytest.approx(score(targets, scores >= 0))


def test_a_threshold_lies_in_the_middle_of_a_gap():
    """Samples near the chosen ones get the same class."""
    outputs = torch.stack([torch.zeros(4), torch.tensor([-5.0, -4.0, 4.0, 5.0])], 1)
    found = measured(evaluate.threshold(), (outputs, torch.tensor([0, 0, 1, 1])))
    assert abs(found["threshold"]) < 0.1
    with pytest.raises(ConfigError, match="by='f2' is none of f1, balanced-accuracy"):
        evaluate.threshold("f2")


@given(st.integers(50, 300), st.floats(0.2, 6), st.booleans(), st.data())
def test_the_temperature_minimizes_the_log_loss(n, scale, several, data):
    """As found by scipy."""
    outputs = data.draw(normals((n, 3))).double()
    if several:
        targets = (outputs + data.draw(normals((n, 3))) * 1.5 > 0).double()
        of = F.binary_cross_entropy_with_logits
    else:
        targets, of = (outputs + data.draw(normals((n, 3))) * 1.5).argmax(1), F.cross_entropy
    outputs = outputs * scale
    found = measured(evaluate.temperature(several=several), (outputs, targets))["temperature"]

    def value(log):
        return of(outputs / math.exp(log), targets).item()

    best = optimize.minimize_scalar(value, bounds=(-2.7, 2.7), method="bounded")
    assert value(math.log(found)) <= best.fun + 1e-5


# -- losses


@given(st.integers(1, 60), st.floats(0.05, 0.95), st.data())
def test_a_quantile_is_least_at_the_quantile(n, quantile, data):
    """The pinball loss is sklearn's, and of constants no smaller one has a smaller loss than the sample's quantile."""
    targets = data.draw(normals((n,)))
    stage = loss.quantile(quantile)
    level = torch.quantile(targets, quantile, interpolation="higher")
    candidates = torch.cat([targets, level.reshape(1)])
    losses = [stage(c.expand(n), targets, quantile=quantile)[0].item() for c in candidates]
    expected = sklearn_metrics.mean_pinball_loss(targets.double(), level.expand(n).double(), alpha=quantile)
    assert losses[-1] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ConfigError, match="not between 0 and 1"):
        loss.quantile(1.0)


@given(st.integers(1, 40), st.data())
def test_poisson_is_torchs(n, data):
    """Value and gradient are torch.nn.PoissonNLLLoss's; targets below 0 are refused."""
    outputs, targets = data.draw(normals((n,))).requires_grad_(), data.draw(labels((n,), 9)).float()
    ours, torchs = loss.poisson()(outputs, targets)[0], F.poisson_nll_loss(outputs, targets)
    torch.testing.assert_close(ours, torchs)
    slopes = (torch.autograd.grad(value, outputs)[0] for value in (ours, torchs))
    torch.testing.assert_close(*slopes)
    with pytest.raises(DataError, match="takes counts, and a target is -1"):
        loss.poisson().check(outputs, torch.tensor([0.0, -1.0]))


@given(st.integers(1, 20), st.integers(1, 4), st.data())
def test_weights_of_labels_are_torchs_pos_weight(n, count, data):
    """Binary cross entropy with weights, in any two parts."""
    outputs, targets = data.draw(normals((n, count))), data.draw(labels((n, count), 2)).float()
    weight = data.draw(normals((count,))).abs() + 0.1
    stage = loss.binary_cross_entropy(weight=weight)
    value, total = stage(outputs, targets)
    expected = torch.nn.BCEWithLogitsLoss(pos_weight=weight)(outputs, targets)
    torch.testing.assert_close(value, expected)
    sizes = data.draw(cuts(n))
    parts = [stage(x, y) for x, y in zip(outputs.split(sizes), targets.split(sizes), strict=True)]
    assert sum(v.double() * w for v, w in parts) / total == pytest.approx(value.item(), rel=1e-5)


def test_the_mean_of_an_ensemble_of_rates_is_the_mean_of_its_rates():
    """Logarithms are joined as rates."""
    pipe = Pipeline(
        load.batches({"inputs": torch.randn(8, 4), "targets": torch.arange(8.0)}, size=4),
        forward.model(partial(torch.nn.Linear, 4, 1)), loss.poisson(), evaluate.poisson_deviance(log=True),
        backward.gradients(), update.sgd(0.1),
    )  # fmt: skip
    together = ensemble(pipe, seeds=3)
    state, inputs = together.init(), torch.randn(5, 4)
    each = [together.pipe.module(together.member(state, i))(inputs).exp() for i in range(3)]
    torch.testing.assert_close(together.module(state)(inputs).exp(), sum(each) / 3)


def test_a_ranking_takes_the_outputs_of_its_classes_alone():
    """Other shapes say so."""
    with pytest.raises((StageError, ConfigError), match=r"takes outputs \(B, 3\), not \(2, 4\)"):
        measured(evaluate.roc_auc(3), (torch.zeros(2, 4), torch.zeros(2).long()))
