"""Buffers that are carried from batch to batch, in training and in evaluation."""

import warnings

import pytest
import torch
from torch import nn

from pipeline import (
    Pipeline,
    backward,
    checkpoint,
    ensemble,
    evaluate,
    fit,
    forward,
    load,
    loss,
    sweep,
    testing,
    update,
)
from pipeline.errors import PipeError, WiringError
from tests.pipes import TRACED

X = torch.randn(6, 4, 1, generator=torch.Generator().manual_seed(0))
BATCHES = [{"inputs": x, "targets": x + y} for x, y in zip(X, X.roll(1, 0), strict=True)]


class Carry(nn.Module):
    """Adds what the batch before was."""

    def __init__(self, in_place=False):
        super().__init__()
        self.w, self.in_place = nn.Parameter(torch.full((1,), 0.5)), in_place
        self.register_buffer("h", torch.zeros(4, 1))

    def forward(self, inputs):
        y = self.w * (inputs + self.h)
        if self.in_place:
            self.h.copy_(inputs)
        else:
            self.h = inputs.detach()
        return y


def piped(carry, build=Carry, data=None):
    return Pipeline(
        data or load.loader(BATCHES), forward.model(build, carry=carry), loss.mse(), backward.gradients(),
        update.sgd(0.1),
    )  # fmt: skip


def by_hand(epochs, anew):
    """A loop in torch that evaluates after each epoch, and goes on from where it was before."""
    net, losses = Carry(), []
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(epochs):
        net.h = net.h * (not anew)
        for batch in BATCHES:
            optimizer.zero_grad()
            nn.functional.mse_loss(net(batch["inputs"]), batch["targets"]).backward()
            optimizer.step()
        kept, net.h = net.h, net.h * (not anew)
        with torch.no_grad():
            means = [nn.functional.mse_loss(net(b["inputs"]), b["targets"]).item() for b in BATCHES]
        net.h = kept
        losses.append(sum(means) / len(means))
    return net, losses


WAYS = [{"compile": False}, {"backend": TRACED}]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("carry", ["h", ("*",), {"h": "epoch"}])
def test_a_state_is_carried_as_by_hand(carry, in_place, way):
    """In steps and evaluations, through a run or an epoch; evaluation begins with State's values and leaves them."""
    anew = carry == {"h": "epoch"}
    net, losses = by_hand(3, anew)
    pipe = piped(carry, lambda: Carry(in_place))
    reports = [(r.validate["loss"], r.state.clone()) for r in fit(pipe, epochs=3, validate=BATCHES, **way)]
    assert [value for value, _ in reports] == pytest.approx(losses, abs=1e-6)
    testing.same(reports[-1][1].params, dict(net.named_parameters()), 1e-6)
    testing.same(reports[-1][1].buffers, dict(net.named_buffers()))
    testing.evaluation_changes_nothing(pipe, reports[-1][1], BATCHES[0])


def test_shuffled_samples_of_a_sequence_are_warned_of():
    """A state that is carried through an epoch needs samples that follow one another."""
    rows = {name: torch.cat([batch[name] for batch in BATCHES]) for name in BATCHES[0]}
    with pytest.warns(UserWarning, match=r"'h' is carried .* write load.batches\(..., shuffle=False, drop_last=True\)"):
        next(fit(piped({"h": "epoch"}, data=load.batches(rows, size=4)), epochs=1, compile=False))
    ordered = load.batches(rows, size=4, shuffle=False, drop_last=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        next(fit(piped({"h": "epoch"}, data=ordered), epochs=1, compile=False))


@pytest.mark.parametrize("carry", ["h", {"h": "epoch"}])
def test_members_carry_each_their_own(carry):
    """A member of a sweep trains and is evaluated as the run alone; an ensemble joins what its members carry."""
    pipe = piped(carry)
    runs = sweep(pipe, hyper={"lr": [0.1, 0.02]}, order="shared")
    for way in WAYS:
        *_, together = fit(runs, epochs=2, validate=BATCHES, **way)
        for i, lr in enumerate([0.1, 0.02]):
            alone = pipe.replace("update.sgd", update.sgd(lr))
            *_, last = fit(alone, epochs=2, validate=BATCHES, compile=False)
            assert together.validate["loss"][i] == pytest.approx(last.validate["loss"], abs=1e-6)
            testing.same(runs.member(together.state, i).tree["params"], last.state.params, 1e-6)
    *_, joined = fit(ensemble(pipe, seeds=2, order="shared"), epochs=2, validate=BATCHES, compile=False)
    assert joined.validate["loss"] == pytest.approx(by_hand(2, carry != "h")[1][-1], abs=1e-6)


def test_it_goes_on_where_a_run_is_resumed(tmp_path):
    """A run that was stopped inside an epoch, and one between two, go on with what was carried."""
    pipe = piped({"h": "epoch"})
    for every in (4, 6):
        with checkpoint.Saver(tmp_path / str(every)) as saver:
            for whole in fit(pipe, epochs=3, every=every, compile=False):
                if whole.step == every:
                    saver.offer(whole, now=True)
        saved = checkpoint.newest(tmp_path / str(every)).saved
        *_, resumed = fit(pipe, epochs=3, state=saved.restore(pipe), start=saved.start, compile=False)
        testing.same(resumed.state.tree, whole.state.tree)


def test_what_evaluation_would_drop_is_refused():
    """Once a value changes in evaluation and nothing is said of it, of one run or of members; else it is left."""
    for build in (Carry, lambda: Carry(True)):
        pipe = piped(None, build)
        for run in (pipe, sweep(pipe, seeds=2, order="shared")):
            with pytest.raises(PipeError, match=r"changes its buffer 'h' in evaluation; write.*carry='h'"):
                run.evaluate(run.init(0), BATCHES)
            run.step(run.init(0), BATCHES[0])
        state = pipe.init(0)
        for carry in ((), {"h": None}):
            left = piped(carry, build)
            hand = [nn.functional.mse_loss(0.5 * b["inputs"], b["targets"]).item() for b in BATCHES]
            assert left.evaluate(state, BATCHES)["loss"] == pytest.approx(sum(hand) / 6, abs=1e-6)


def test_what_does_not_change_costs_nothing():
    """BatchNorm in eval mode, and a buffer that is assigned its own value, need no word."""

    class Net(nn.Sequential):
        def forward(self, x):
            self[0].running_mean = self[0].running_mean * 1
            return super().forward(x)

    pipe = piped(None, lambda: Net(nn.BatchNorm1d(1)))
    assert list(pipe.program.zeros()) == ["batches measured", "backward.gradients"]
    for _ in range(2):
        pipe.evaluate(pipe.init(0), BATCHES)


def test_names_are_of_buffers():
    """A name that no buffer has says which there are; it is carried through a run or an epoch, on one process."""
    with pytest.raises(WiringError, match=r"carry='hh'.*did you mean 'h'"):
        piped("hh").init(0)
    with pytest.raises(WiringError, match='"run", an "epoch" or None, not'):
        piped({"h": "day"})


def test_a_model_that_is_only_read_may_carry():
    """A frozen module keeps its state in training and evaluation, and nothing else; again() carries on."""
    teacher = forward.model(
        Carry().requires_grad_(False), params="teacher", frozen=True, outputs="soft", carry="h", name="teacher"
    )
    student = forward.model(lambda: nn.Linear(1, 1))
    rest = loss.mse().rename(targets="soft"), backward.gradients(), update.sgd(0.1)
    pipe = Pipeline(load.loader(BATCHES), teacher, student, *rest)
    state, _ = pipe.step(pipe.init(0), BATCHES[0])
    assert torch.equal(state["teacher.buffers"]["h"], X[0])
    seen = evaluate.metric("seen", lambda soft: {"n": soft.sum().double()}, lambda s: {"n": s["n"]},
                           {"n": torch.float64})  # fmt: skip
    first = forward.model(Carry, carry="h")
    twice = Pipeline(first, first.again(outputs="soft"), seen)
    assert twice.evaluate(twice.init(0), BATCHES)["n"] == pytest.approx(float(X.sum()), abs=1e-5)
