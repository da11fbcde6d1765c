"""fit: what it yields, and what it refuses before the first step."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

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
    stage,
    testing,
    update,
)
from pipeline.errors import ConfigError, DataError, StageError, StateError, WiringError
from tests import pipes
from tests.pipes import TRACED

DATA = {"inputs": torch.randn(10, 4), "targets": torch.arange(10) % 3}


def pipeline(source=None, *updates):
    return Pipeline(
        source or load.batches(DATA, size=4), place.on("cpu"), forward.model(pipes.Linear), loss.cross_entropy(),
        evaluate.accuracy(), backward.gradients(), *(updates or [update.sgd(0.1)]),
    )  # fmt: skip


def run(pipe=None, **options):
    return list(fit(pipe or pipeline(), **{"epochs": 2, "compile": False, **options}))


def test_reports():
    """A Report an epoch, with counts, figures and the State."""
    first, second = run(validate=DATA)
    assert (first.epoch, first.step, first.batch, first.batches, first.samples, first.complete) == (
        1,
        3,
        3,
        3,
        10,
        True,
    )
    assert second.step == 6 == int(second.state.step)
    assert set(first.train) == set(first.validate) == {"loss", "accuracy"}
    assert first.seconds > 0
    assert first.samples_per_second == first.samples / first.seconds


def test_an_interval_gives_reports_inside_an_epoch():
    """With interval=0 each step is reported, and the epoch's last report is the same as without."""
    steps = run(interval=0.0)
    assert [r.batch for r in steps] == [1, 2, 3] * 2
    assert [r.complete for r in steps] == [False, False, True] * 2
    assert [r.train for r in steps if r.complete] == [r.train for r in run()]


def test_a_dataloader_trains_and_a_used_up_iterator_says_so():
    """Any iterable of batches serves; one that can't be iterated twice is found out."""
    batches = DataLoader(TensorDataset(DATA["inputs"], DATA["targets"]), batch_size=4)
    reports = run(pipeline(load.loader(batches)), validate=batches)
    assert [r.samples for r in reports] == [10, 10]
    with pytest.raises(DataError, match="not an iterator"):
        load.loader(iter(batches))


def test_fit_goes_on_from_a_state_without_touching_it():
    """A State passed in is copied; training from it is training that never stopped."""
    state = run(epochs=1)[-1].state
    before = state.clone()
    after = run(epochs=1, state=state)[-1].state
    testing.same(state.tree, before.tree)
    assert int(after.step) == 6
    testing.same(after.tree, run(epochs=2)[-1].state.tree)
    whole = run(epochs=3, state=state)
    again = run(epochs=3, state=whole[0].state, start=(1, 0))  # the same run, resumed
    testing.same(again[-1].state.tree, whole[-1].state.tree)


def test_the_schedules_length_is_that_of_the_run():
    """A cosine without steps ends with the run."""
    pipe = pipeline(None, update.sgd(schedules.cosine(0.1)))
    state = run(pipe, epochs=3)[-1].state
    assert pipe.hyper(state.tree)["update.sgd"]["lr"].item() == pytest.approx(0.0, abs=1e-12)


def test_a_schedule_that_ends_before_the_run_is_warned_of():
    """With the lengths to set, which end the warning; a run that only goes on, or a length given by hand, has none."""
    pipe = pipeline(None, update.sgd(schedules.cosine(0.1)))
    first, *_ = run(pipe, epochs=2)
    state = first.state.clone()
    with pytest.warns(UserWarning, match=r"goes on to step 12: state.with_hyper\({'update.sgd.lr.steps': 12.0}\)"):
        run(pipe, epochs=4, state=state, start=(1, 0))
    with pytest.warns(UserWarning, match=r"goes on to step 9"):
        run(pipe, epochs=2, state=state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(pipe, epochs=2, state=state, start=(1, 0))
        run(pipe, epochs=4, state=state.with_hyper({"update.sgd.lr.steps": 12.0}), start=(1, 0))
        fixed = pipeline(None, update.sgd(schedules.cosine(0.1, steps=6)))
        run(fixed, epochs=4, state=run(fixed, epochs=1)[-1].state)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"epochs": 0}, ConfigError, "epochs=0"),
        ({"pipe": Pipeline(forward.model(pipes.Linear))}, WiringError, "put load.batches"),
        ({"pipe": pipeline(load.batches({**DATA, "targets": DATA["targets"] + 1}, size=4))}, DataError,
         r"label 3 in sample 2 is outside the 3 classes"),
        ({"validate": {**DATA, "targets": DATA["targets"] - 1}}, DataError, "label -1 in sample 0"),
        ({"pipe": pipeline(load.batches({**DATA, "inputs": torch.randn(10, 5)}, size=4))}, StageError,
         r"inputs \(4, 5\) float32.*4x5 and 4x3"),
        ({"validate": {**DATA, "inputs": torch.full((10, 4), torch.nan)}}, DataError, "NaN"),
        ({"state": Pipeline(forward.model(pipes.Linear)).init(0)}, StateError, "does not fit"),
        ({"compile": pipeline().compile()}, ConfigError, "another pipeline"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_found_before_the_first_step(options, error, message):
    """Fit raises when it is called, not when it is iterated."""
    with pytest.raises(error, match=message):
        fit(**{"pipe": pipeline(), "epochs": 1, "compile": False, **options})


def test_training_learns():
    """Eight epochs of digits pass 90 % on held-out images."""
    reports = run(pipes.digits(update.sgd(0.2, momentum=0.9), model=lambda: models.mlp(64, 32, 10)), epochs=8,
                  validate=pipes.TEST)  # fmt: skip
    assert reports[-1].validate["accuracy"] > 0.9
    assert reports[-1].train["loss"] < reports[0].train["loss"]


@pytest.mark.parametrize("compile", [False, True])
def test_a_state_may_be_sent(compile):
    """A State that is sent for a Report's is gone on with, inside an epoch too, and no Report is lost."""
    pipe = pipes.digits(update.sgd(0.1), size=479)
    compile = pipe.compile(backend=TRACED) if compile else False

    def trained(send):
        reports = fit(pipe, epochs=2, every=2, compile=compile)
        steps = []
        for report in reports:
            steps.append(report.step)
            if send and report.step in (2, 3):
                again = reports.send(report.state.with_hyper(lr=0.0))
                assert again.step == report.step
                assert float(again.state.hyper["update.sgd.lr"]) == 0.0
                kept = again.state.clone()
        assert steps == [2, 3, 4, 6]
        return report.state, kept if send else None

    state, kept = trained(True)
    testing.same(state.params, kept.params)
    assert any(not torch.equal(trained(False)[0].params[k], p) for k, p in state.params.items())


def test_a_loss_that_is_not_finite_is_warned_of_once():
    """Without update.finite(), fit says what to put where; the run goes on."""
    pipe = pipes.digits(update.sgd(1e30), size=479)
    with pytest.warns(UserWarning, match=r"the mean of 'loss' is \w+.*update.finite\(\) after") as said:
        reports = list(fit(pipe, epochs=3, compile=False))
    assert len(reports) == 3
    assert len([w for w in said if "update.finite" in str(w.message)]) == 1


@pytest.mark.parametrize(
    "options",
    [{"compile": False}, {"backend": TRACED}, {"backend": TRACED, "steps_per_call": 2}],
    ids=["single", "fused", "by two"],
)
def test_validation_inside_an_epoch_and_an_end_by_steps(options):
    """Reports come where `validate_every` says, training is undisturbed, and the last one is complete or not as is
    true; gone on with from any of them, a run is the same."""
    pipe, options = pipeline(None, update.sgd(schedules.cosine(0.1))), {"epochs": None, "max_steps": 8, **options}
    if "backend" in options:
        options["compile"] = pipe.compile(backend=options.pop("backend"))
    seen, kept = [], None
    for r in fit(pipe, validate=DATA, validate_every=2, **options):
        assert r.validate == pytest.approx(pipe.evaluate(r.state, DATA), rel=1e-5)
        seen.append((r.epoch, r.epochs, r.step, r.batch, r.complete))
        kept = (r.state.clone(), r.epoch - 1, r.batch) if r.step == 4 else kept
    ends = [(2, 1), (3, 1), (4, 2), (6, 2), (8, 3)]
    assert seen == [(e, 3, step, step - 3 * (e - 1), step in (3, 6)) for step, e in ends]
    assert pipe.hyper(r.state.tree)["update.sgd"]["lr"].item() == pytest.approx(0.0, abs=1e-12)
    *_, bare = fit(pipe, **options)
    testing.same(bare.state.params, r.state.params)
    state, *start = kept
    again = list(fit(pipe, validate=DATA, **options, state=state, start=tuple(start)))
    assert [x.step for x in again] == [6, 8]
    testing.same(again[-1].state.tree, r.state.tree)
    assert not list(fit(pipe, **options, state=r.state, start=(2, 2)))


def test_an_end_by_steps_of_a_stream_that_does_not_tell_its_length():
    """Then nobody knows the number of epochs; what comes first of both ends the run."""

    class Stream:
        def __iter__(self):
            return iter([DATA, DATA])

    first, second, third = run(pipeline(load.loader(Stream())), epochs=None, max_steps=5)
    assert [(r.epochs, r.step, r.complete) for r in (first, second, third)] == [
        (None, 2, True), (None, 4, True), (None, 5, False),
    ]  # fmt: skip
    assert str(third).startswith("epoch 3  loss")
    assert [r.step for r in run(epochs=1, max_steps=100)] == [3]
    assert [(r.step, r.complete) for r in run(epochs=9, max_steps=6)] == [(3, True), (6, True)]


def test_several_data_sets_are_validated_on_by_name(tmp_path):
    """Each as it is alone, under its name, averages too; schedules and Saver know them by the whole name."""
    sets = {"test": (DATA["inputs"], DATA["targets"]), "shifted": load.batches({**DATA, "inputs": DATA["inputs"] + 1},
            size=10), "list": DataLoader(TensorDataset(DATA["inputs"], DATA["targets"]), batch_size=5)}  # fmt: skip
    rate = schedules.reduce_on_plateau(0.1, patience=0, metric="shifted.loss")
    pipe = pipeline(None, update.sgd(rate), update.ema(0.9))
    with checkpoint.Saver(tmp_path, best="test.loss") as saver:
        for report in fit(pipe, epochs=2, validate=sets, compile=False):
            saver.offer(report, now=True)
    assert saver.best.value == report.validate["test.loss"]
    parts = {None: report.state, "ema": pipe.averaged(report.state)["ema"]}
    for name, data in sets.items():
        for view, state in parts.items():
            for metric, value in pipe.evaluate(state, data).items():
                assert report.validate[".".join(filter(None, (name, view, metric)))] == value
    assert len(report.validate) == 12
    pipe = pipeline(None, update.sgd(schedules.reduce_on_plateau(0.1)))
    with pytest.raises(ConfigError, match=r"'loss', which is no number of this run; did you mean '\w+\.loss'"):
        run(pipe, validate=sets)


def test_a_mapping_of_values_is_one_data_set():
    """Of tensors, and nested under the names that the batches have."""
    [report] = run(epochs=1, validate={k: v.tolist() for k, v in DATA.items()})
    assert set(report.validate) == {"loss", "accuracy"}
    nested = {"inputs": {"x": DATA["inputs"]}, "targets": (DATA["targets"],)}
    model = forward.model(pipes.Linear, inputs="x")

    @stage(writes=("x", "y"))
    def apart(inputs, targets):
        return inputs["x"], targets[0]

    losses = loss.cross_entropy().rename(targets="y"), backward.gradients(), update.sgd(0.1)
    [report] = run(Pipeline(load.batches(nested, size=4), apart, model, *losses), epochs=1, validate=nested)
    assert set(report.validate) == {"loss"}


def test_validation_takes_the_batches_of_training():
    """Unless a Load says otherwise: a loss that compares the samples of a batch is that of such batches."""

    @stage(writes="loss")
    def contrast(outputs):
        return (outputs @ outputs.T).softmax(-1).diagonal().mean()

    pipe = Pipeline(load.batches(DATA, size=4, shuffle=False), forward.model(pipes.Linear), contrast,
                    backward.gradients(), update.sgd(0.0))  # fmt: skip
    for validate, sizes in ((DATA, (4, 4, 2)), (load.batches(DATA, size=5), (5, 5))):
        for options in ({"compile": False}, {"backend": TRACED}):
            [report] = fit(pipe, epochs=1, validate=validate, **options)
            outputs = pipe.module(report.state)(DATA["inputs"]).split(sizes)
            values = [(x @ x.T).softmax(-1).diagonal().mean().item() * len(x) for x in outputs]
            assert report.validate["loss"] == pytest.approx(sum(values) / 10, rel=1e-5)
    assert len(list(pipe.load.over(load.batches(DATA, size=4, drop_last=True)).epoch(0, 0))) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": None}, "pass epochs=, max_steps= or both"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"validate": DATA, "validate_every": 0}, "validate_every=0"),
        ({"validate_every": 2}, "pass validate="),
    ],
)
def test_when_to_end_and_to_validate_has_to_be_said(options, message):
    with pytest.raises(ConfigError, match=message):
        run(**options)


@stage(writes="targets")
def from_zero(targets):
    return targets - 1


@pytest.mark.parametrize(
    ("net", "inputs", "targets", "before"),
    [
        (lambda: nn.Linear(4, 3), torch.randn(10, 4), torch.eye(3)[torch.arange(10) % 3], ()),  # one-hot
        (lambda: nn.Embedding(9, 9), torch.arange(60).view(10, 6) % 9, torch.arange(60).view(10, 6) % 9, ()),  # (B, T)
        (lambda: nn.Linear(4, 3), torch.randn(10, 4), torch.arange(10) % 3 + 1, (from_zero,)),  # made by a stage
    ],
)
def test_labels_are_looked_at_beside_outputs_of_their_own_length(net, inputs, targets, before):
    """All labels of the data are checked where the outputs are those of one batch."""
    pipe = Pipeline(load.batches((inputs, targets), size=4), *before, forward.model(net), loss.cross_entropy(),
                    evaluate.accuracy(), evaluate.confusion(len(net().weight)), backward.gradients(),
                    update.sgd(0.1))  # fmt: skip
    [report] = fit(pipe, epochs=1, validate=(inputs[:7], targets[:7]), compile=False)
    assert report.step == 3


def test_a_wrong_label_beyond_the_first_batch_is_refused():
    data = {**DATA, "targets": torch.where(torch.arange(10) == 9, 7, DATA["targets"])}
    pipe = Pipeline(load.batches(data, size=4, shuffle=False), forward.model(pipes.Linear), loss.cross_entropy(),
                    backward.gradients(), update.sgd(0.1))  # fmt: skip
    with pytest.raises(DataError, match="label 7 in sample 9"):
        list(fit(pipe, epochs=1, compile=False))
