"""Averages of weights equal torch.optim.swa_utils and their papers, and are evaluated and saved beside the weights."""

import copy
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn, optim
from torch.optim import swa_utils

from pipeline import Pipeline, backward, fit, forward, load, loss, models, testing, update
from pipeline.errors import ConfigError, StateError, WiringError
from pipeline.stage import Average, Stage
from pipeline.state import format_metric
from tests import by_hand, kills, pipes, strategies
from tests.pipes import TRACED
from tests.test_cli_resume import TINY, back_to
from tests.test_update import hyper, run, runs


class Normed(nn.Module):
    """A layer, a BatchNorm, and a layer."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10)

    def forward(self, x):
        return self.last(self.norm(self.first(x.flatten(1))).relu())


def normed(*stages):
    return pipes.digits(update.sgd(0.1, momentum=0.9), *stages, model=Normed, size=256)


def by_torch(average, count=8, use=lambda done: True):
    """An AveragedModel of torch after so many steps by hand, and the model."""
    torch.manual_seed(0)
    module = Normed()
    averaged = average(module)
    optimizer = optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for done, batch in enumerate(batches(count), 1):
        by_hand.train(module, [batch], optimizer)
        if use(done):
            averaged.update_parameters(module)
    return averaged, module


def batches(count):
    pipe = normed()
    return [b for epoch in range(2) for b in pipe.load.epoch(0, epoch)][:count]


def trained(pipe, count=8):
    return pipe.unroll(pipe.init(0), batches(count))[0]


def averaged_ema(module, decay):
    averaged = swa_utils.AveragedModel(module, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(decay))
    averaged.update_parameters(module)  # it begins as the first weights
    return averaged


def weights(pipe, state):
    return pipe.models[0].state_dict(state)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_ema_equals_torchs_averaged_model(decay):
    """After training, the average has torch's weights, and the model's own buffers."""
    pipe = normed(update.ema(decay))
    state = trained(pipe)
    averaged, module = by_torch(lambda m: averaged_ema(m, decay))
    testing.same(weights(pipe, pipe.averaged(state)["ema"]), dict(averaged.module.state_dict()), 1e-5)
    testing.same(weights(pipe, state), dict(module.state_dict()), 1e-5)


@settings(max_examples=6)
@given(st.integers(1, 9), st.integers(1, 3))
def test_swa_equals_torchs_averaged_model(start, every):
    """From `start` on each `every` steps count alike; before, it is the weights themselves."""
    pipe = normed(update.swa(start, every=every))
    state = trained(pipe)
    averaged, module = by_torch(swa_utils.AveragedModel, use=lambda n: n >= start and (n - start) % every == 0)
    expected = averaged.module if start <= 8 else module
    testing.same(state["swa"], dict(expected.named_parameters()), 1e-5)


@given(runs(), st.integers(1, 4), strategies.fractions)
def test_lookahead_is_its_algorithm(drawn, every, alpha):
    """After each `every` steps the slow weights go part of the way, and the fast ones begin from there."""
    params, history = drawn
    rule, look = update.sgd(0.1), update.lookahead(every, alpha)
    memory, ours, slow, fast = look.init(params), params, params, params
    for k, grads in enumerate(history, 1):
        written, memory = look.run({"params": run(rule, ours, [grads])[0]}, hyper(look), memory)
        ours = written["params"]
        fast = {n: p - 0.1 * grads[n] for n, p in fast.items()}
        if k % every == 0:
            slow = fast = {n: s + alpha * (fast[n] - s) for n, s in slow.items()}
    torch.testing.assert_close(ours, fast, rtol=1e-10, atol=1e-10)


def test_refreshed_equals_update_bn():
    """BatchNorm's statistics are those of torch's update_bn on the same batches; nothing else is other."""
    pipe = normed(update.swa(2))
    state = trained(pipe)
    before = state.clone()
    module = Normed()
    module.load_state_dict(weights(pipe, state))
    swa_utils.update_bn([b["inputs"] for b in pipe.load.epoch(0, 0)], module)
    fresh = pipe.refreshed(state)
    testing.same(weights(pipe, fresh), dict(module.state_dict()), 1e-5)
    testing.same(state.tree, before.tree)
    testing.same(fresh.replace(buffers=state.buffers).tree, state.tree)
    own = pipe.refreshed(state.replace(params=state["swa"]))
    testing.same(pipe.averaged(state)["swa"].tree, own.tree)


def test_refreshed_leaves_other_buffers_alone():
    """A model without BatchNorm, or with one in eval mode, gives the State as it was."""
    plain, still = pipes.mlp(), Normed()
    still.norm.eval()
    still = pipes.digits(model=still)
    for pipe in (plain, still):
        state = pipe.init(0)
        testing.same(pipe.refreshed(state).tree, state.tree)


@pytest.mark.parametrize("stages", [
    (update.sgd(0.1), update.ema(0.9)), (update.sgd(0.1), update.swa(2)), (update.sgd(0.1), update.lookahead(2)),
    (update.groups({"first.*": update.schedule_free_adamw()}, otherwise=update.adamw()),),
])  # fmt: skip
def test_weights_beside_other_copies_are_refused(stages):
    """A new State with the weights of another seed would go back to copies of its first ones; a trained one may."""
    pipe = pipes.digits(*stages, model=Normed, size=256)
    state, other = pipe.init(0), pipe.init(1)
    with pytest.raises(StateError, match=r"a copy of other weights .*forward.model\(weights="):
        fit(pipe, epochs=1, state=state.replace(params=other.params), compile=False)
    fit(pipe, epochs=1, state=state, compile=False)
    fit(pipe, epochs=1, state=state.replace(params=other.params, step=state.step + 1), compile=False)


def test_averages_are_lawful():
    """A step with all of them is pure, keeps shapes, and vmaps."""
    pipe = normed(update.lookahead(2), update.ema(0.9), update.swa(2))
    testing.lawful(pipe, trained(pipe, 3), batches(1)[0])


def test_fit_reports_averages_by_the_same_program():
    """Each epoch has the results of the averages, compiled by one evaluation program, and training is undisturbed."""
    pipe, bare = normed(update.ema(0.9), update.swa(4)), normed()
    program = pipe.compile(backend=TRACED)
    for report, plain in zip(
        fit(pipe, epochs=2, validate=pipes.TEST, compile=program),
        fit(bare, epochs=2, validate=pipes.TEST, compile=False),
        strict=True,
    ):
        assert report.validate["accuracy"] == plain.validate["accuracy"]
        testing.same(report.state.params, plain.state.params, 1e-5)
        for name, seen in pipe.averaged(report.state).items():
            for key, value in pipe.evaluate(seen, pipes.TEST).items():
                assert report.validate[f"{name}.{key}"] == pytest.approx(value, rel=1e-4)
    kinds = [g.program for g in program.report.graphs]
    assert kinds.count("evaluation") == 2  # a full batch, and the last one
    assert f"ema.accuracy {100 * report.validate['ema.accuracy']:.2f} %" in str(report)
    assert str(report).index("val loss") < str(report).index("ema.loss") < str(report).index("accuracy")


def test_a_rule_may_be_an_average_of_its_own():
    """What a rule makes of its memory, its parameters and its numbers is seen, evaluated and named as any average."""

    def toward(params, grads, memory, lr):
        return {k: p - lr * grads[k] for k, p in params.items()}, memory

    def view(params, memory, lr):
        return {"params": {k: memory[k] + lr * (p - memory[k]) for k, p in params.items()}}

    rule = Stage("free", toward, average=Average(view), writes=("critic",), hyper={"lr": 0.25},
                          names={"params": "critic"}, init=lambda params: copy.deepcopy(params))  # fmt: skip
    stages = forward.model(pipes.Linear, params="critic"), loss.cross_entropy(), backward.gradients(wrt="critic")
    pipe = Pipeline(*stages, rule)
    state = pipe.step(pipe.init(0), {"inputs": torch.ones(3, 4), "targets": torch.arange(3)})[0]
    first, now = state.memory["free"], state["critic"]
    expected = {k: torch.lerp(first[k], now[k], 0.25) for k in now}
    testing.same(pipe.averaged(state)["free"]["critic"], expected, 1e-6)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: update.ema(1.0), "decay=1.0 is not below 1"),
        (lambda: update.swa(0), "start=0 is not a positive whole number"),
        (lambda: update.swa(1, every=0.5), "every=0.5 is not a positive whole number"),
        (lambda: update.lookahead(0), "every=0 is not a positive whole number"),
        (lambda: normed(update.ema(of="outputs")), "averages 'outputs', which is not the params= of a model here"),
        (lambda: normed(update.ema(of="param")), "did you mean 'params'"),
        (lambda: normed(update.ema().rename(params="G")), "update.ema\\(of=..., writes=...\\)"),
        (lambda: normed(update.ema(), update.ema().named("slow")), "both keep 'ema'"),
        (lambda: taught("student"), "calls a model with 'student', which no stage keeps"),
    ],
)
def test_what_does_not_fit_is_refused(make, said):
    """Numbers out of range, and averages of what no model keeps, are named where they are made."""
    with pytest.raises((ConfigError, WiringError), match=said):
        make()


def taught(params="teacher", model=Normed):
    """A student, and a teacher that is the average of its weights."""
    student = forward.model(model)

    def agree(outputs, goal):
        return (outputs - goal.detach()).square().mean()

    return Pipeline(
        load.batches(pipes.DIGITS, size=256),
        student,
        student.again(outputs="goal", params=params),
        loss.function(agree),
        backward.gradients(),
        update.sgd(0.1),
        update.ema(0.9, writes="teacher"),
    )


def test_a_teacher_is_called_in_train_mode_and_keeps_its_buffers():
    """The teacher takes the batch's statistics; its buffers are the student's, and it begins as the student."""
    pipe = taught()
    batch = batches(1)[0]
    state, metrics = pipe.step(pipe.init(0), batch)
    assert metrics["loss"] == 0.0
    testing.same(state["teacher.buffers"], state.buffers)
    assert state.buffers["norm.num_batches_tracked"] == 1
    testing.lawful(pipe, state, batch)


def test_a_lazy_model_may_follow_a_teacher():
    """A model that is made by a look at a batch may read what a teacher says, though the average stands after it."""
    student = forward.model(lambda: models.mlp(64, 8), frozen=True)
    head = forward.model(lambda: nn.LazyLinear(4), inputs="goal", params="head", name="head")
    teacher = student.again(outputs="goal", params="teacher")
    stages = load.batches(pipes.DIGITS, size=8), student, teacher, head, loss.cross_entropy(), backward.gradients()
    assert Pipeline(*stages, update.ema(writes="teacher")).init(0)["head"]["weight"].shape == (4, 8)


@pytest.mark.parametrize(("name", "text"), [("ema.accuracy", "ema.accuracy 50.00 %"), ("swa.loss", "swa.loss 0.5000")])
def test_metrics_of_an_average_look_like_others(name, text):
    """A share is shown in percent under any average's name."""
    assert format_metric(name, 0.5) == text


def test_the_command_averages_saves_and_resumes(pipe, tmp_path, monkeypatch):
    """`--ema` reports and saves the average, may tell the best epoch, and is the same after a resume, bit for bit."""
    monkeypatch.chdir(tmp_path)
    options = "--epochs", "4", "--ema", "0.9", "--best", "ema.accuracy", "--set", "keep=9", "--out", "whole"
    code, out, err = pipe(*TINY, *options)
    assert (code, err) == (0, "")
    assert "  ema.loss 2." in out
    assert "ema.safetensors: their average" in out
    assert "\nbest    ema.accuracy" in out
    shutil.copytree("whole", "part")
    back_to(Path("part"), 10)
    os.remove("part/ema.safetensors")
    assert pipe("train", "--resume", "part")[0] == 0
    assert kills.ended(Path("part")) == kills.ended(Path("whole"))
    weights = load_file("whole/ema.safetensors")
    assert testing.differences(weights, load_file("part/ema.safetensors")) == []
    assert weights.keys() == load_file("whole/model.safetensors").keys()
    assert testing.differences(weights, load_file("whole/model.safetensors")) != []
    assert pipe("train", "--resume", "part", "--ema", "0.99", "--epochs", "5")[0] == 0


def test_a_run_without_an_average_gets_none_later(pipe, tmp_path, monkeypatch):
    """What was not averaged from the beginning is refused, and so is a metric of an average that is not there."""
    monkeypatch.chdir(tmp_path)
    assert pipe(*TINY, "--epochs", "1", "--out", "plain")[0] == 0
    code, _, err = pipe("train", "--resume", "plain", "--ema", "0.9")
    assert (code, err.count("averages no weights")) == (2, 1)
    code, _, err = pipe(*TINY, "--best", "ema.accuracy")
    assert (code, err.count("is no metric of this run")) == (2, 1)
