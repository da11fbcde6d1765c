import math
from functools import partial
from itertools import chain

import numpy as np
import pytest
import torch
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics
from torch.nn import functional as F

from pipeline import (
    Pipeline,
    backward,
    ensemble,
    evaluate,
    fit,
    forward,
    load,
    loss,
    models,
    schedules,
    sweep,
    testing,
    update,
)
from pipeline.errors import ConfigError, DataError, StageError, WiringError
from pipeline.programs.data import at
from pipeline.tree import tree_map
from tests import pipes
from tests.pipes import TRACED
from tests.strategies import classification, cuts, labels, normals, regression, samples


def measured(stage, *batches):
    """What a metric reports on batches: their sums, added up and finished."""
    sums = stage.init()
    for outputs, targets in batches:
        _, more = stage.run({"outputs": outputs, "targets": targets}, {}, None)
        assert tree_map(lambda x: (x.dtype, x.shape), more) == tree_map(lambda x: (x.dtype, x.shape), sums)
        sums = tree_map(torch.add, sums, more)
    return evaluate.read(stage.finish(sums))


@st.composite
def predictions(draw, classes=4):
    """Logits (N, C) and labels (N,)."""
    n = draw(samples)
    return draw(normals((n, classes))), draw(labels((n,), classes))


def assert_any_split(stage, sample, data):
    sizes = data.draw(cuts(len(sample[1])))
    batches = zip(sample[0].split(sizes), sample[1].split(sizes), strict=True)
    whole, parts = measured(stage, sample), measured(stage, *batches)
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-6, atol=1e-9)


@given(predictions(), st.data())
def test_metrics_of_classes_are_the_same_for_any_batches(sample, data):
    """A metric of classes over the batches of any split is the metric of the whole."""
    metrics = evaluate.accuracy(), evaluate.top_k(2), evaluate.confusion(4), evaluate.perplexity()
    for stage in (*metrics, evaluate.calibration_error()):
        assert_any_split(stage, sample, data)


@given(regression(), st.data())
def test_metrics_of_values_are_the_same_for_any_batches(sample, data):
    """A metric of values over the batches of any split is the metric of the whole."""
    for stage in (evaluate.mean_absolute_error(), evaluate.mean_squared_error()):
        assert_any_split(stage, sample, data)
    if sample[1].numel() > 1:
        assert_any_split(evaluate.r2(), sample, data)


@given(predictions(), st.integers(1, 3))
def test_metrics_of_classes_are_sklearns(sample, k):
    """Accuracy, top-k, the confusion matrix, precision, recall and F1 are scikit-learn's."""
    outputs, targets = sample
    guess, classes = outputs.argmax(1), range(4)
    assert measured(evaluate.accuracy(), sample)["accuracy"] == pytest.approx(
        sklearn_metrics.accuracy_score(targets, guess)
    )
    assert measured(evaluate.top_k(k), sample)[f"top{k}"] == pytest.approx(
        sklearn_metrics.top_k_accuracy_score(targets, outputs, k=k, labels=classes)
    )
    found = measured(evaluate.confusion(4), sample)
    assert found["confusion"] == sklearn_metrics.confusion_matrix(targets, guess, labels=classes).tolist()
    expected = sklearn_metrics.precision_recall_fscore_support(targets, guess, labels=classes, zero_division=0)
    for name, values in zip(("precision", "recall", "f1"), expected, strict=False):
        assert found[name] == pytest.approx(values)


@given(st.integers(2, 200), st.floats(-100, 100), st.data())
def test_metrics_of_values_are_sklearns(n, shift, data):
    """The mean absolute and squared errors and r2 are scikit-learn's, for targets of any mean."""
    targets = data.draw(normals((n,))) + shift
    outputs = targets + data.draw(normals((n,)))
    sample, both = (outputs.unsqueeze(1), targets), (targets.double(), outputs.double())
    absolute, squared = sklearn_metrics.mean_absolute_error(*both), sklearn_metrics.mean_squared_error(*both)
    assert measured(evaluate.mean_absolute_error(), sample)["mae"] == pytest.approx(absolute)
    assert measured(evaluate.mean_squared_error(), sample)["mse"] == pytest.approx(squared)
    assert measured(evaluate.r2(), sample)["r2"] == pytest.approx(sklearn_metrics.r2_score(*both), rel=1e-6, abs=1e-6)


@given(classification())
def test_perplexity_is_the_exponential_of_the_cross_entropy(sample):
    """Perplexity is exp(cross entropy), with ignored targets and with classes last too."""
    outputs, targets = sample
    last = outputs.movedim(1, -1)
    expected = math.exp(loss.cross_entropy()(*sample)[0])
    assert measured(evaluate.perplexity(), sample)["perplexity"] == pytest.approx(expected, rel=1e-5)
    assert measured(evaluate.perplexity(dim=-1), (last, targets))["perplexity"] == pytest.approx(expected, rel=1e-5)
    targets = targets.clone()
    targets.view(-1)[:-1] = -100
    expected = math.exp(loss.cross_entropy()(outputs, targets)[0])
    assert measured(evaluate.perplexity(), (outputs, targets))["perplexity"] == pytest.approx(expected, rel=1e-5)


@given(classification())
def test_classes_may_come_last(sample):
    """With dim=-1, and where shapes tell, metrics of (B, ..., C) are those of (B, C, ...)."""
    outputs, targets = sample
    top, table = partial(evaluate.top_k, 1), partial(evaluate.confusion, outputs.shape[1])
    for make in (evaluate.accuracy, top, table, evaluate.perplexity, evaluate.calibration_error):
        expected = measured(make(), sample)
        for dim in (-1, None):
            last = measured(make(dim=dim), (outputs.movedim(1, -1), targets))
            assert all(np.allclose(last[k], v, atol=1e-6) for k, v in expected.items())


@given(classification(extra=1), st.data())
def test_probabilities_are_of_the_likeliest_class(sample, data):
    """Of soft targets, metrics of classes are those of their argmax, over any batches, wherever the classes are."""
    outputs, targets = sample
    spread = data.draw(normals(outputs.shape)).softmax(1) * 0.1
    soft = 0.9 * F.one_hot(targets, outputs.shape[1]).movedim(-1, 1) + spread
    soft = soft / soft.sum(1, keepdim=True)
    top, table = partial(evaluate.top_k, 1), partial(evaluate.confusion, outputs.shape[1])
    for make in (evaluate.accuracy, top, table, evaluate.calibration_error, partial(evaluate.accuracy, several=False)):
        expected = measured(make(dim=1), sample)
        assert measured(make(dim=1), (outputs, soft)) == expected
        last = measured(make(dim=-1), (outputs.movedim(1, -1), soft.movedim(1, -1)))
        assert all(np.allclose(last[k], v, atol=1e-6) for k, v in expected.items())
        assert_any_split(make(dim=1), (outputs, soft), data)
    found = measured(evaluate.perplexity(dim=1), (outputs, soft))["perplexity"]
    assert found == pytest.approx(math.exp(F.cross_entropy(outputs, soft)), rel=1e-5)


@given(st.integers(1, 40), st.integers(2, 5), st.data())
def test_several_labels_are_told_from_classes_by_all_that_was_seen(n, count, data):
    """One row that does not sum to 1, in whatever batch, makes all of them labels of their own; `several` says it."""
    outputs = data.draw(normals((n, count)))
    true = F.one_hot(data.draw(labels((n,), count)), count).float()
    each = ((outputs > 0) == (true > 0.5)).double().mean().item()
    rows = (outputs.argmax(1) == true.argmax(1)).double().mean().item()
    assert measured(evaluate.accuracy(), (outputs, true))["accuracy"] == pytest.approx(rows)
    assert measured(evaluate.accuracy(several=True), (outputs, true))["accuracy"] == pytest.approx(each)
    assert measured(evaluate.accuracy(), (outputs, true.bool()))["accuracy"] == pytest.approx(each)
    true[data.draw(st.integers(0, n - 1))] = data.draw(st.sampled_from([0.0, 1.0]))
    each = ((outputs > 0) == (true > 0.5)).double().mean().item()
    for make in (evaluate.accuracy, evaluate.calibration_error):
        assert_any_split(make(), (outputs, true), data)
        expected = measured(make(several=True), (outputs, true))
        assert measured(make(), (outputs, true)) == expected
    assert measured(evaluate.accuracy(), (outputs, true))["accuracy"] == pytest.approx(each)


def test_shapes_that_leave_the_classes_open_say_what_to_pass():
    """dim, or that each is a label of its own; masks of one channel are no classes."""
    outputs, floats = torch.randn(2, 4, 3, 3), torch.rand(2, 4, 3, 3).round()
    with pytest.raises(StageError, match=r"where the classes are in .*dim=1, or dim=-1 if last, or several=True"):
        measured(evaluate.accuracy(), (outputs, floats))
    expected = ((outputs > 0) == floats).double().mean().item()
    assert measured(evaluate.accuracy(several=True), (outputs, floats))["accuracy"] == pytest.approx(expected)
    one = outputs[:, :1], floats[:, :1]
    assert measured(evaluate.accuracy(), one) == measured(evaluate.accuracy(several=True), one)
    for make in (evaluate.accuracy, partial(evaluate.top_k, 1), evaluate.perplexity, partial(evaluate.confusion, 3)):
        with pytest.raises(StageError, match=r"dim=1, or dim=-1"):
            measured(make(), (outputs[:, 0], torch.zeros(2, 3).long()))


@given(classification())
def test_ignored_targets_do_not_count(sample):
    """Accuracy is that of the targets that are not ignored."""
    outputs, targets = sample
    kept = targets != 0
    if kept.any():
        right = (outputs.argmax(1) == targets)[kept].double().mean().item()
        assert measured(evaluate.accuracy(ignore_index=0), sample)["accuracy"] == pytest.approx(right)


@given(predictions(), st.integers(1, 20))
def test_the_calibration_error_is_that_of_each_bin(sample, bins):
    """It is the sum over bins of how far the share of right answers is from their mean probability."""
    outputs, targets = sample
    sure, guess = outputs.softmax(1).max(1)
    bin = np.digitize(sure.numpy(), np.arange(1, bins, dtype=np.float32) / np.float32(bins), right=True)
    right, expected = (guess == targets).numpy(), 0.0
    for b in range(bins):
        if (bin == b).any():
            expected += (bin == b).mean() * abs(right[bin == b].mean() - sure.double().numpy()[bin == b].mean())
    assert measured(evaluate.calibration_error(bins), sample)["calibration error"] == pytest.approx(expected, abs=1e-6)


@given(st.integers(1, 50), st.data())
def test_the_calibration_error_of_one_logit_is_that_of_two_classes(n, data):
    """Of logits (B,) or (B, 1), as of two classes."""
    outputs, targets = data.draw(normals((n,))), data.draw(labels((n,), 2))
    two = measured(evaluate.calibration_error(), (torch.stack([-outputs, outputs], 1) / 2, targets))
    for logits in (outputs, outputs.unsqueeze(1)):
        found = measured(evaluate.calibration_error(), (logits, targets))
        assert found["calibration error"] == pytest.approx(two["calibration error"], abs=1e-5)


def test_a_calibration_error_needs_bins():
    """A number of bins below 1, or a broken one, is refused."""
    for bins in (0, 1.5):
        with pytest.raises(ConfigError, match=f"bins={bins} is not a positive"):
            evaluate.calibration_error(bins)


@given(st.integers(1, 100), st.data())
def test_accuracy_of_one_logit(n, data):
    """Accuracy of one logit a target, (B,) or (B, 1), asks for its side of 0."""
    outputs, targets = data.draw(normals((n,))), data.draw(labels((n,), 2))
    expected = ((outputs > 0) == targets).double().mean().item()
    for logits, goals in ((outputs, targets), (outputs.unsqueeze(1), targets), (outputs, targets.float())):
        assert measured(evaluate.accuracy(), (logits, goals))["accuracy"] == pytest.approx(expected)


def test_a_class_without_samples_has_zeros():
    """Precision, recall and F1 are 0 for a class that never occurs and is never predicted."""
    found = measured(evaluate.confusion(3), (torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([0])))
    assert found == {
        "confusion": [[1, 0, 0], [0, 0, 0], [0, 0, 0]],
        "precision": [1.0, 0.0, 0.0],
        "recall": [1.0, 0.0, 0.0],
        "f1": [1.0, 0.0, 0.0],
    }


def test_a_confusion_matrix_may_stand_before_the_backward():
    """It looks at no value, so the step compiles with it anywhere, and counts what the plain step counts."""
    metric = evaluate.confusion(3)
    pipe = Pipeline(forward.model(pipes.Linear), loss.cross_entropy(), metric, backward.gradients(), update.sgd(0.1))
    batch = {"inputs": torch.randn(6, 4), "targets": torch.arange(6) % 3}
    testing.compiled_equals_eager(pipe.compile(), pipe.init(0), [batch])


@pytest.mark.parametrize("label", [-100, 3])
def test_labels_outside_the_classes_do_not_count_and_are_refused_by_fit(label):
    """Such a label is in no row of the confusion matrix, and check(), which `fit` calls first, names it."""
    outputs, targets = torch.eye(3), torch.tensor([0, label, 2])
    assert measured(evaluate.confusion(3), (outputs, targets))["confusion"] == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]
    with pytest.raises(DataError, match=f"label {label} is outside the 3 classes"):
        evaluate.confusion(3).check(outputs, targets)
    evaluate.confusion(3).check(outputs, torch.arange(3))


@pytest.mark.parametrize("make", [
    evaluate.confusion, evaluate.balanced_accuracy, evaluate.f1, evaluate.counts, evaluate.roc_auc, evaluate.threshold,
    lambda _: evaluate.log_loss(), lambda _: evaluate.perplexity(), lambda _: evaluate.top_k(1),
    lambda _: evaluate.temperature(), lambda _: loss.cross_entropy(),
])  # fmt: skip
def test_outputs_of_another_number_of_classes_are_refused(make):
    """Such a metric would be of other classes; of one logit, it would be constant."""
    targets = torch.tensor([0, 1])
    for logits in (torch.zeros(2, 1), torch.zeros(2, 4)):
        stage = make(3) if make is not evaluate.threshold else make()
        free = stage.name in ("evaluate.log_loss", "evaluate.perplexity", "evaluate.top_1", "evaluate.temperature",
                              "loss.cross_entropy")  # fmt: skip
        for goals in (targets, logits.abs()) if logits.shape[1] == 1 else (targets,):
            if free and logits.shape[1] > 1:
                stage(logits, goals)
                continue
            with pytest.raises((StageError, ConfigError), match=r"outputs .*not \(2, "):
                stage(logits, goals)


@pytest.mark.parametrize("make", [
    evaluate.labels, partial(evaluate.f1, several=True), partial(evaluate.roc_auc, several=True),
    partial(evaluate.average_precision, several=True), lambda _: evaluate.log_loss(several=True),
    lambda _: evaluate.temperature(several=True), lambda _: evaluate.accuracy(several=True),
])  # fmt: skip
def test_ignored_labels_do_not_count(make):
    """A target of -100 is as good as none, in each metric of several labels; (B, 1) and (B,) are one label."""
    made = torch.Generator().manual_seed(0)
    outputs = torch.randn(12, 1, generator=made)
    targets = (torch.rand(12, 1, generator=made) < 0.5).float()
    targets[::3] = -100
    seen = targets[:, 0] >= 0
    expected = measured(make(1), (outputs[seen], targets[seen]))
    for goals in (targets, targets[:, 0]):
        found = measured(make(1), (outputs, goals))
        assert all(np.allclose(found[k], v) for k, v in expected.items())


@pytest.mark.parametrize("make", [evaluate.mean_absolute_error, evaluate.mean_squared_error, evaluate.r2])
@pytest.mark.parametrize(("outputs", "targets"), [((2, 3), (3, 2)), ((4, 1), (1, 4)), ((4, 2), (4,))])
def test_values_of_two_shapes_are_refused(make, outputs, targets):
    """Outputs and targets of two shapes raise a StageError that shows both, even where their numbers are as many."""
    with pytest.raises(StageError, match=r"takes one shape, not outputs .* targets") as error:
        measured(make(), (torch.zeros(outputs), torch.zeros(targets)))
    assert error.value.stage == make().name


def test_top_k_needs_a_k():
    """A k below 1, or a broken one, raises a ConfigError."""
    for k in (0, 1.5):
        with pytest.raises(ConfigError, match=f"k={k} is not a positive"):
            evaluate.top_k(k)


@given(predictions(classes=3))
def test_metrics_map_over_models(sample):
    """A metric mapped over stacked outputs is the stack of the metrics."""
    outputs, targets = sample
    stacked = torch.stack([outputs, -outputs])
    metrics = evaluate.accuracy(), evaluate.top_k(2), evaluate.confusion(3), evaluate.perplexity()
    for stage in (*metrics, evaluate.calibration_error(5)):
        mapped = torch.vmap(stage, in_dims=(0, None))(stacked, targets)
        for i in range(2):
            alone = stage(stacked[i], targets)
            torch.testing.assert_close(tree_map(lambda x, i=i: x[i], mapped), alone, rtol=1e-6, atol=1e-6)


def test_a_metric_of_ones_own():
    """`metric` makes a metric of a function to sums and one from sums."""
    worst = evaluate.metric(
        "evaluate.bias",
        lambda outputs, targets: {"sum": (outputs - targets).sum().double(), "n": torch.tensor(len(targets))},
        lambda s: {"bias": s["sum"] / s["n"]},
        {"sum": evaluate.FLOAT, "n": evaluate.INT},
    )
    batches = [(torch.tensor([1.0, 2.0]), torch.zeros(2)), (torch.tensor([6.0]), torch.zeros(1))]
    assert measured(worst, *batches) == {"bias": 3.0}


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize(
    ("measure", "finish", "said"),
    [
        (lambda y: {"n": y == 1}, dict, r"measures 'n' \(3,\), but declares \(\); sum it over the batch"),
        (lambda y: {"n": (y == 1).float().mean()}, dict, "'n' in float32, but declares int64; declare evaluate.FLOAT"),
        (lambda y: {"m": y.sum()}, dict, "returned a dict of 'm', but declares sums of 'n'"),
        (lambda y: y.sum(), dict, "returned a tensor, but declares sums of 'n'"),
        (lambda y: {"n": y.sum()}, lambda s: s["n"], "finishes with a tensor; return a dict, {'own': ...}"),
        (lambda y: {"n": y.sum()}, lambda s: {"n": s["m"]}, r"no key 'm' \(test_evaluate.py:\d+\)"),
    ],
)
def test_sums_that_are_not_as_declared_are_refused(measure, finish, said, compile):
    """By the metric's name, before they are added: a float would be cut to a whole number in a graph."""
    own = evaluate.metric("own", lambda targets: measure(targets), finish, {"n": evaluate.INT})
    rows = load.batches({"inputs": torch.randn(6, 4), "targets": torch.arange(3).repeat(2)}, size=3)
    model = forward.model(pipes.Linear)
    pipe = Pipeline(rows, model, loss.cross_entropy(), own, backward.gradients(), update.sgd(0.1))
    with pytest.raises(StageError, match=f"'own' .*{said}"):
        list(fit(pipe, epochs=1, compile=compile))


def test_sums_may_be_numbers():
    """Of Python, as a count of rows is."""
    seen = evaluate.metric("seen", lambda targets: {"n": len(targets)}, lambda s: {"seen": s["n"]}, {"n": evaluate.INT})
    assert measured(seen, (torch.zeros(2, 3), torch.arange(2)), (torch.zeros(1, 3), torch.arange(1))) == {"seen": 3}


def share(name, better=None, of=lambda wrong: {"wrong": wrong}):
    """A metric that says, or does not say, which of its values are better."""

    def measure(outputs, targets):
        return {"sum": (outputs.argmax(1) != targets).sum(), "n": torch.tensor(len(targets))}

    sums = {"sum": evaluate.INT, "n": evaluate.INT}
    return evaluate.metric(name, measure, lambda s: of(s["sum"] / s["n"]), sums, better=better)


def test_ours_say_which_values_are_better():
    """Of every result of a metric of the library; telemetry has none."""
    high = [evaluate.accuracy(), evaluate.top_k(2), evaluate.confusion(3), evaluate.labels(3), evaluate.r2()]
    low = [evaluate.mean_absolute_error(), evaluate.mean_squared_error(), evaluate.perplexity(),
           evaluate.calibration_error(), backward.gradients(), backward.sharpness_aware(0.1)]  # fmt: skip
    none = [evaluate.gradient_norm(), evaluate.learning_rate(), evaluate.update_ratio(), evaluate.noise_scale()]
    for way, stages in (("high", high), ("low", low), (None, none)):
        for s in stages:
            said = s.better.values() if s.name in ("evaluate.confusion", "evaluate.labels") else [s.better]
            assert {*said} == {way}, s.name


@pytest.mark.parametrize("compile", [False, True])
def test_reports_say_which_values_are_better(compile):
    """By the names that results have: of averages, of a second metric of one name, and of metrics on the host."""
    rows = load.batches(pipes.TEST, size=128)
    both = share("both", {"up": "high"}, lambda x: {"up": 1 - x, "side": x})
    host = [
        evaluate.on_host(f"host.{name}", lambda targets: len(targets), lambda seen, k=name: {k: sum(seen)}, better=way)
        for name, way in (("far", "low"), ("near", {"near": "high"}))
    ]
    pipe = Pipeline(
        rows, forward.model(lambda: models.mlp(64, 10)), loss.cross_entropy(), share("first"), share("second", "low"),
        both, *host, evaluate.accuracy(), backward.gradients(), evaluate.gradient_norm(), update.sgd(0.1),
        update.ema(0.9),
    )  # fmt: skip
    program = pipe.compile(backend=TRACED) if compile else False
    [report] = fit(pipe, epochs=1, validate=pipes.TEST, compile=program)
    graph = {"second.wrong": "low", "up": "high", "accuracy": "high", "loss": "low"}
    whole = {**graph, "far": "low", "near": "high"}
    assert report.better == {**whole, **{f"ema.{name}": way for name, way in whole.items()}}
    assert {"wrong", "side", "gradient norm", "ema.wrong"} <= {*report.train, *report.validate}
    inside = next(fit(pipe, epochs=1, every=2, compile=False))
    assert (inside.complete, inside.better) == (False, graph)


def test_members_of_a_sweep_are_compared_as_their_metrics_say():
    """Ties by the loss; a metric that does not say it is refused, and better= overrules."""
    plain = pipes.digits(size=479)
    pipe = plain.insert(share("wrong", "low"), before="backward.gradients").insert(
        share("odd", of=lambda x: {"odd": x}), before="backward.gradients"
    )
    [report] = fit(sweep(pipe, seeds=3), epochs=1, validate=pipes.TEST, compile=False)
    wrong = report.validate["wrong"]
    assert report.better == {"accuracy": "high", "loss": "low", "wrong": "low"}
    assert report.best("wrong") == report.best("odd", better="low") == report.best("accuracy")
    assert wrong[report.best("wrong", better="high")] == max(wrong)
    assert "odd" not in str(report)
    with pytest.raises(ConfigError, match=r"'odd' is better high or low: .*known of accuracy, wrong, loss"):
        report.best("odd")
    tied = evolve(report, validate={"accuracy": [0.9, 1.0, 1.0], "loss": [0.1, 0.3, 0.2]})
    assert tied.best("accuracy") == 2
    [report] = fit(ensemble(plain, seeds=2), epochs=1, validate=pipes.TEST, compile=False)
    assert report.better["votes.accuracy"] == report.better["members.accuracy"] == "high"
    assert report.better["members.loss"] == "low"


def test_a_direction_is_one_of_two_words():
    """Where it is said."""
    for wrong in ("lower", "max", {"a": "up"}):
        with pytest.raises(ConfigError, match="neither 'high' nor 'low'"):
            share("wrong", wrong)


@pytest.mark.parametrize("compile", [False, True])
def test_a_metric_on_the_host_reads_what_no_graph_can(compile):
    """It is given what the model made and what stayed on the host, batch by batch; training does not know it."""
    rows = [{"inputs": torch.randn(3, 4), "targets": torch.arange(3), "ids": [f"{k}{i}" for i in "abc"]} for k in "xyz"]

    def wrong(outputs, targets, ids):
        return [name for name, right in zip(ids, outputs.argmax(1) == targets, strict=True) if not right]

    def named(lists):
        return {"wrong": list(chain(*lists)), "batches": len(lists)}

    pipe = Pipeline(
        load.loader(rows),
        forward.model(pipes.Linear),
        loss.cross_entropy(),
        evaluate.on_host("evaluate.wrong", wrong, named),
        backward.gradients(),
        update.sgd(0.1),
    )
    [report] = fit(pipe, epochs=1, validate=rows, compile=pipe.compile(backend=TRACED) if compile else False)
    module = pipes.Linear()
    module.load_state_dict(pipe.models[0].state_dict(report.state))
    expected = [wrong(module(row["inputs"]), row["targets"], row["ids"]) for row in rows]
    assert report.validate["wrong"] == list(chain(*expected))
    assert report.validate["batches"] == 3
    assert set(report.train) == {"loss"}


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("compile", [False, True])
def test_telemetry_is_as_defined(accumulate, compile):
    """Norms, ratios and rates of a run are those that its steps by hand have; validation does without."""
    rule = update.groups(
        {"*.bias": update.sgd(0.3)}, otherwise=update.sgd(schedules.linear(0.1, steps=6, start=1.0, end=0.0))
    )
    plain = pipes.digits(update.clip_norm(0.5), rule, size=479, accumulate=accumulate)
    pipe = plain.insert(evaluate.gradient_norm(), after="backward.gradients")
    pipe = pipe.insert(evaluate.update_ratio(), after="update.groups").insert(
        evaluate.learning_rate(), before="forward.model"
    )
    compiled = pipe.compile(backend=TRACED) if compile else False
    [report] = fit(pipe, epochs=1, validate=pipes.TEST, compile=compiled)
    assert {*report.validate} == {"loss", "accuracy"}
    state = plain.init(0, steps=3)
    norms, ratios, rates = [], {"1": [], "3": [], "": []}, []
    for k in range(3):
        raw = plain.without("update.clip_norm").replace("update.groups", update.sgd(1.0))
        moved, _ = raw.step(raw.init(0).replace(params=state.params, step=state.step), at(plain.program, state).values)
        squares = [(moved.params[n] - p).square().sum() for n, p in state.params.items()]
        norms.append(torch.stack(squares).sum().sqrt())
        rates.append(0.1 * (1 - k / 6))
        after, _ = plain.step(state, at(plain.program, state).values)
        for layer, found in ratios.items():
            names = [n for n in state.params if n.startswith(layer)]
            update_, weights = (
                torch.stack([t.square().sum() for t in ts]).sum().sqrt()
                for ts in ([after.params[n] - state.params[n] for n in names], [state.params[n] for n in names])
            )
            found.append(update_ / weights)
        state = after
    assert report.train["gradient norm"] == pytest.approx(torch.stack(norms).mean().item(), rel=1e-4)
    for layer, found in ratios.items():
        name = f"update ratio/{layer}" if layer else "update ratio"
        assert report.train[name] == pytest.approx(torch.stack(found).mean().item(), rel=1e-4)
    assert report.train["learning rate/update.groups.*.bias"] == pytest.approx(0.3)
    [other] = [v for k, v in report.train.items() if k.startswith("learning rate/") and "bias" not in k]
    assert other == pytest.approx(sum(rates) / 3)
    assert report.state.params["1.weight"].allclose(state.params["1.weight"], atol=1e-6)


def test_a_name_that_a_pipeline_gives_is_none_of_the_datas():
    """A value called `before` or `step` would be another than a stage means."""
    data = {"inputs": torch.zeros(4, 2), "before": torch.zeros(4), "targets": torch.zeros(4)}
    with pytest.raises(WiringError, match="'before', a name that a pipeline gives itself"):
        Pipeline(load.batches(data, size=2), forward.model(lambda: models.mlp(2, 1)))


@given(st.integers(1, 20), st.integers(1, 4), st.data())
def test_figures_of_labels_are_sklearns(n, count, data):
    """Precision, recall and F1 of each label."""
    bits = st.lists(st.lists(st.booleans(), min_size=count, max_size=count), min_size=n, max_size=n)
    guess, true = torch.tensor(data.draw(bits)), torch.tensor(data.draw(bits))
    stage = evaluate.labels(count)
    found = stage.finish(stage(outputs=guess.float() * 2 - 1, targets=true.float()))
    p, r, f, _ = sklearn_metrics.precision_recall_fscore_support(
        true.numpy(), guess.numpy(), average=None, zero_division=0
    )
    if count == 1:
        p, r, f = p[-1:], r[-1:], f[-1:]  # of one column, it has two classes
        if not true.any() and not guess.any():
            p, r, f = [0.0], [0.0], [0.0]
    for name, wanted in (("precision", p), ("recall", r), ("f1", f)):
        assert found[name].tolist() == pytest.approx([float(x) for x in wanted])
