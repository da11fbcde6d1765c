"""Pipelines: what fits, what does not, and other pipelines made of them."""

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import (
    Pipeline,
    backward,
    evaluate,
    fit,
    forward,
    load,
    log,
    loss,
    models,
    place,
    schedules,
    stage,
    sweep,
    testing,
    update,
)
from pipeline.errors import StageError, StateError, WiringError
from pipeline.programs.evaluate import check_state
from tests import pipes
from tests.pipes import TRACED

DATA = {"inputs": torch.randn(10, 4), "targets": torch.arange(10) % 3}
MODEL, LOSS, GRADS, SGD = forward.model(pipes.Linear), loss.cross_entropy(), backward.gradients(), update.sgd(0.1)


@stage(writes="loss")
def misspelt(outputs, target):
    return outputs.mean() + target.sum()


@stage(writes="inputs")
def drawn(inputs, seed):
    return inputs + seed


@stage(writes="more")
def doubled(inputs):
    return inputs * 2


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ((MODEL, LOSS, SGD), r"'update.sgd' reads 'grads', which no earlier stage writes; put backward.gradients\(\)"),
        ((MODEL, LOSS, SGD, GRADS), r"'update.sgd' reads 'grads'.* put 'backward.gradients', which does, before it"),
        ((LOSS, MODEL, GRADS, SGD), r"'loss.cross_entropy' reads 'outputs'.*put 'forward.model', which does"),
        ((LOSS, GRADS, SGD), r"reads 'outputs', which no earlier stage writes; put forward.model"),
        ((MODEL, GRADS, SGD), r"'backward.gradients' reads 'loss'.*put a loss such as"),
        (
            (MODEL, LOSS, GRADS, GRADS.named("again"), SGD),
            r"'again' differentiates 'loss' again; one backward gives the gradients of several models",
        ),
        ((load.batches(DATA, size=2), MODEL, misspelt, GRADS, SGD), r"reads 'target'.*did you mean 'targets'"),
        ((MODEL, MODEL), r"two stages are named 'forward.model'; give one another name"),
        (
            (MODEL, loss.mse(), MODEL, loss.mse()),
            r"named 'forward.model', and two 'loss.mse'; .*: .named\('forward.model.2'\), .named\('loss.mse.2'\)",
        ),
        ((MODEL, MODEL.named("b")), r"'forward.model' and 'b' both keep 'params'"),
        ((place.on("cpu"), place.on("cpu").named("b")), "one place stage, not 2"),
        ((load.batches(DATA, size=2), load.batches(DATA, size=2).named("b")), "one load stage, not 2"),
        ((doubled, load.batches(DATA, size=2), place.on("cpu"), MODEL), "'doubled' stands before 'load.batches'"),
        ((MODEL, LOSS, GRADS, SGD, load.batches(DATA, size=2)), "'forward.model' stands before 'load.batches'"),
        (
            (load.batches(DATA, size=2), MODEL, place.on("cpu")),
            "needs State, so it can't stand before place",
        ),
        ((load.batches(DATA, size=2), drawn, place.on("cpu"), MODEL), "'drawn' needs State"),
        ((), "at least one stage"),
        ((models.mlp(2, 2),), r"made of stages, not Sequential: write forward.model\(...\)"),
        ((torch.nn.CrossEntropyLoss(),), r"not CrossEntropyLoss: write loss.function\(nn.CrossEntropyLoss\(\)\)"),
        ((torch.optim.SGD([torch.zeros(1)], lr=1.0),), r"not SGD: write update.sgd\(...\)"),
        (([MODEL, LOSS],), r"not list: pass them one by one"),
        ((MODEL, loss.cross_entropy), r"not function: call it, loss.cross_entropy\(...\)"),
        ((lambda outputs: outputs,), "not function: make one with @stage"),
        (
            (load.batches({"image": DATA["inputs"], "label": DATA["targets"]}, size=2), MODEL),
            r"forward.model\(..., inputs='image'\)",
        ),
        (
            (load.batches({"inputs": DATA["inputs"], "label": DATA["targets"]}, size=2), MODEL, LOSS),
            r".rename\(targets='label'\)",
        ),
    ],
)
def test_wiring_errors_are_raised_at_construction(stages, message):
    """What does not fit is refused when the pipeline is built, by a message that names both ends and the mend."""
    with pytest.raises(WiringError, match=message):
        Pipeline(*stages)


@given(st.permutations([MODEL, LOSS, GRADS, SGD, evaluate.accuracy()]))
def test_only_orders_in_which_values_exist_are_pipelines(stages):
    """A permutation of stages is accepted exactly when each value is written before it is read."""
    order = [s.name for s in stages]
    chain = ["forward.model", "loss.cross_entropy", "backward.gradients", "update.sgd"]
    fits = [n for n in order if n in chain] == chain
    fits &= order.index("evaluate.accuracy") > order.index("forward.model")
    try:
        Pipeline(*stages)
    except WiringError:
        assert not fits
    else:
        assert fits


def test_pipelines_are_frozen():
    """Neither a pipeline nor a stage can be changed."""
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Pipeline(MODEL).stages = ()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        MODEL.name = "other"


def test_replace_insert_without():
    """Each gives a new pipeline, checked anew, and leaves the old one."""
    pipe = Pipeline(MODEL, LOSS, GRADS, SGD)
    clipped = pipe.insert(update.clip_norm(1.0), before="update.sgd")
    assert [s.name for s in clipped.stages][-2:] == ["update.clip_norm", "update.sgd"]
    assert [s.name for s in pipe.insert(evaluate.accuracy(), after="forward.model").stages][1] == "evaluate.accuracy"
    assert clipped.without("update.clip_norm").given == pipe.given
    assert pipe.replace("update.sgd", update.adam())["update.adam"].hyper["lr"] == 1e-3
    assert pipe.stages[-1] is SGD
    with pytest.raises(WiringError, match=r"no stage 'update.sdg'; did you mean 'update.sgd'"):
        pipe.without("update.sdg")
    with pytest.raises(WiringError, match="either before= or after="):
        pipe.insert(SGD)


def test_the_table_shows_stages_and_what_they_read_write_and_keep():
    """print(pipe) is a row a stage."""
    rows = str(pipes.mlp()).splitlines()
    assert rows[0].split() == ["stage", "reads", "writes", "keeps"]
    assert [row.split()[0] for row in rows[1:]] == [s.name for s in pipes.mlp().stages]
    assert any(row.split() == ["update.clip_norm", "grads", "grads", "limit"] for row in rows)


@pytest.mark.parametrize(("returned", "message"), [((1, 2), "2 values"), (None, "None"), ({"x": 1}, "x")])
def test_a_stage_that_returns_what_it_did_not_declare(returned, message):
    """Other returns than the declared ones are an error that names the stage."""
    wrong = stage(writes=("a", "b") if isinstance(returned, dict) else "loss", name="wrong")(
        lambda outputs: returned if returned != (1, 2) else None
    )
    if returned == (1, 2):
        wrong = stage(writes=("a", "b", "c"), name="wrong")(lambda outputs: (1, 2))
    with pytest.raises(StageError, match=rf"'wrong' returned .*{message}"):
        Pipeline(MODEL, wrong).step(Pipeline(MODEL, wrong).init(0), DATA)


def test_a_loss_of_ones_own_is_reported_as_a_mean_over_samples():
    """A plain stage that writes the loss needs no weight: unequal batches still give the mean of all."""

    @stage(writes="loss")
    def squares(outputs):
        return outputs.square().mean()

    pipe = Pipeline(load.batches(DATA, size=4), MODEL, squares, GRADS, update.sgd(0.0))
    state = pipe.init(0)
    whole = pipe.step(state, DATA)[1]["loss"].item()
    assert pipe.evaluate(state)["loss"] == pytest.approx(whole, abs=1e-6)
    assert next(fit(pipe, epochs=1, compile=False)).train["loss"] == pytest.approx(whole, abs=1e-6)


def test_a_stage_before_place_works_on_the_batch():
    """A stage on the host changes the batch, in training and in evaluation."""
    scaled = stage(writes="inputs", name="scaled")(lambda inputs: inputs * 0)
    pipe = Pipeline(load.batches(DATA, size=4), scaled, place.on("cpu"), MODEL, LOSS, GRADS, update.sgd(0.0))
    report = next(fit(pipe, epochs=1, validate=DATA, compile=False))
    bias = report.state.params["layer.bias"]
    expected = torch.nn.functional.cross_entropy(bias.expand(10, 3), DATA["targets"]).item()
    assert [report.train["loss"], report.validate["loss"]] == pytest.approx([expected] * 2, abs=1e-6)


def test_a_batch_of_ones_own_passes_the_stages_before_place():
    """Steps by hand are those of the pipeline's own data, draws included; so is a measurement."""
    noisy = stage(writes="inputs", name="noisy", when="train")(lambda inputs: inputs + torch.randn(inputs.shape))
    scaled = stage(writes="inputs", name="scaled")(lambda inputs: 2 * inputs)
    pipe = Pipeline(load.batches(DATA, size=4), noisy, scaled, place.on("cpu"), MODEL, LOSS, GRADS, update.sgd(0.1))
    own = state = pipe.init(3)
    compiled, third = pipe.compile(backend=TRACED, donate=False), pipe.init(3)
    for epoch in range(2):
        for batch in pipe.load.epoch(3, epoch):
            own, state, third = pipe.step(own)[0], pipe.step(state, batch)[0], compiled(third, batch)[0]
    testing.same(state.tree, own.tree)
    testing.same(third.tree, own.tree, 1e-6)
    assert pipe.measured(state, DATA)["loss"].item() == pytest.approx(pipe.evaluate(state)["loss"], abs=1e-6)


def test_a_stage_with_memory():
    """A moving average of the parameters is a stage with an init and a memory."""

    def average(params, memory, decay=0.5):
        new = {k: decay * memory[k] + (1 - decay) * p for k, p in params.items()}
        return new, new

    ema = stage(writes="average", init=lambda params: {k: p.clone() for k, p in params.items()})(average)
    pipe = Pipeline(MODEL, LOSS, GRADS, SGD, ema)
    state = pipe.init(0)
    after, _ = pipe.step(state, DATA)
    expected = 0.5 * state.params["layer.weight"] + 0.5 * after.params["layer.weight"]
    assert torch.allclose(after.memory["average"]["layer.weight"], expected)


def test_a_schedule_of_the_runs_length_needs_it():
    """Init says which number is missing; with the length, the rate falls to the floor."""
    pipe = Pipeline(MODEL, LOSS, GRADS, update.sgd(schedules.cosine(0.1)))
    with pytest.raises(StateError, match=r"update.sgd.lr needs the run's length: pass steps="):
        pipe.init(0)
    assert pipe.init(0, steps=7).hyper["update.sgd.lr.steps"] == 7


def test_a_state_of_another_pipeline_is_refused():
    """The message names what differs."""
    other = Pipeline(MODEL, LOSS, GRADS, update.adam())
    with pytest.raises(StateError, match=r"hyper at update.adam.beta1"):
        check_state(other.program, Pipeline(MODEL, LOSS, GRADS, SGD).init(0))


def test_evaluation_leaves_out_what_needs_gradients():
    """Update stages and metrics of gradients do not run when measuring."""
    norm = evaluate.metric(
        "grad_norm",
        lambda grads: {"sum": sum(g.norm() for g in grads.values()).double()},
        lambda sums: {"grad_norm": sums["sum"]},
        {"sum": torch.float64},
    )
    pipe = Pipeline(MODEL, LOSS, evaluate.accuracy(), GRADS, norm, SGD)
    assert [s.name for s in pipe.evaluation] == [
        "forward.model", "loss.cross_entropy", "evaluate.accuracy", "backward.gradients",
    ]  # fmt: skip
    state = pipe.init(0)
    assert set(pipe.evaluate(state, DATA)) == {"loss", "accuracy"}
    assert set(pipe.step(state, DATA)[1]) == {"loss", "accuracy", "grad_norm"}


def test_completion_shows_what_is_meant_for_people():
    """Of a module of steps, its own functions and classes, without imports and hidden names."""
    assert {"jsonl", "csv", "tensorboard", "read"} <= {*dir(log)}
    assert not {"json", "Path", "annotations", "_text"} & {*dir(log)}
    assert {"adamw", "clip_norm", "FLOAT", "accuracy"} <= {*dir(update), *dir(evaluate)}
    for module in (evaluate, log, update, schedules):
        assert all(hasattr(module, name) for name in dir(module))


def test_sweeps_and_schedules_read_well():
    """A schedule by its shape and numbers; a sweep by its settings; both as pages of a notebook, with all escaped."""
    cosine = schedules.cosine(0.1, warmup=5)
    assert repr(cosine) == "Schedule(cosine of 0.1, warmup=5, floor=0)"
    assert repr(schedules.schedule(0.5, lambda step, every=10.0: step // every)) == "Schedule(factor of 0.5, every=10)"
    assert "<svg" in cosine._repr_html_()
    pipe = Pipeline(MODEL, loss.mse(), backward.gradients(), update.sgd(cosine))
    page = sweep(pipe, hyper={"lr": [0.1, 0.25]}, seeds=2, order="shared")._repr_html_()
    assert page.count("<tr>") > 5
    assert "0.25" in page
