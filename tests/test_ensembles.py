"""Ensembles: members that answer as one model."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from pipeline import Pipeline, backward, ensemble, evaluate, fit, forward, load, loss, models, stage, sweep, update
from pipeline.errors import ConfigError, NonFiniteError, PipeError
from tests import pipes
from tests.pipes import TRACED
from tests.strategies import normals


@given(st.integers(1, 5), st.sampled_from([1, -1]), st.data())
def test_joined_logits_have_the_mean_probabilities(members, dim, data):
    """The softmax, or sigmoid, of joined outputs is the mean of the members'."""
    outputs = data.draw(normals((members, 3, 4)))
    joined = loss.cross_entropy(dim=dim).join(outputs)
    torch.testing.assert_close(joined.softmax(1), outputs.softmax(2).mean(0))
    chances = loss.binary_cross_entropy().join(outputs)
    torch.testing.assert_close(chances.sigmoid(), outputs.sigmoid().mean(0))
    for values in (loss.mse(), loss.l1(), loss.huber()):
        torch.testing.assert_close(values.join(outputs), outputs.mean(0))


@given(st.integers(1, 6), st.data())
def test_votes_are_counted(members, data):
    """The largest is the class that most members tell; of as many votes, the likelier one."""
    outputs = data.draw(normals((members, 5, 3)))
    found = loss.votes(outputs)
    counts = torch.stack([(outputs.argmax(2) == c).sum(0) for c in range(3)], 1)
    assert torch.equal(found.floor().long(), counts)
    share = outputs.softmax(2).mean(0)
    for row, n, p in zip(found.argmax(1), counts, share, strict=True):
        most = [c for c in range(3) if n[c] == n.max()]
        assert p[row] == pytest.approx(max(float(p[c]) for c in most), abs=1e-6)


def whole(members=3, **options):
    return ensemble(pipes.digits(update.finite(), update.sgd(0.1), size=479), seeds=members, **options)


def test_metrics_are_those_of_the_joined_outputs_and_of_each_member():
    """Beside what the members have each for itself: their mean, and the votes of the class that most tell."""
    together = whole()
    *_, report = fit(together, epochs=2, validate=pipes.TEST, compile=False)
    each = [together.pipe.evaluate(together.member(report.state, i), pipes.TEST) for i in range(3)]
    batch = pipes.TEST[torch.arange(len(pipes.TEST))]
    outputs = torch.stack([together.pipe.module(together.member(report.state, i))(batch["inputs"]) for i in range(3)])
    share = outputs.softmax(2).mean(0)
    assert report.members is None
    assert report.validate["loss"] == pytest.approx(F.nll_loss(share.log(), batch["targets"]).item(), rel=1e-5)
    assert report.validate["accuracy"] == (share.argmax(1) == batch["targets"]).double().mean().item()
    votes = F.one_hot(outputs.argmax(2), 10).sum(0) + 0.1 * share
    assert report.validate["votes.accuracy"] == (votes.argmax(1) == batch["targets"]).double().mean().item()
    for name in ("loss", "accuracy"):
        mine = [report.validate[f"members.{name}/{i}"] for i in range(3)]
        assert mine == pytest.approx([m[name] for m in each], rel=1e-6)
        assert report.validate[f"members.{name}"] == pytest.approx(sum(mine) / 3)
    assert "votes.accuracy" in str(report)
    assert "members.loss/" not in str(report)


def test_members_are_those_of_a_sweep_of_their_seeds():
    """Training side by side is that of a sweep, from any seed on, and compiled as well."""
    together = whole(2)
    *_, report = fit(together, epochs=2, seed=5, validate=pipes.TEST, backend=TRACED)
    *_, other = fit(sweep(together.pipe, seeds=[5, 6]), epochs=2, compile=False)
    for mine, its in zip(report.state.params.values(), other.state.params.values(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-5)
    assert report.train["loss"] == pytest.approx(sum(other.train["loss"]) / 2, rel=1e-5)
    again = together.evaluate(report.state, pipes.TEST)
    assert {k: report.validate[k] for k in again} == pytest.approx(again, rel=1e-5)


def test_the_whole_is_a_module():
    """It gives the joined outputs, and its weights are those that `weights` names."""
    together = whole(2)
    state = together.init(0)
    module = together.module(state)
    x = torch.randn(5, 64)
    mine = [together.pipe.module(together.member(state, i))(x) for i in range(2)]
    torch.testing.assert_close(module(x), loss.mean_probabilities(torch.stack(mine)))
    weights = together.weights(state)
    assert weights.keys() == module.state_dict().keys()
    assert all(torch.equal(weights[k], v) for k, v in module.state_dict().items())


def test_a_member_that_is_not_finite_is_named():
    """An ensemble is one run, which ends there."""
    together = whole(3)
    broken = together.init(0).with_hyper(lr=torch.tensor([0.1, 1e30, 0.1]))
    with pytest.raises(NonFiniteError, match=r"step 2 \(epoch 1, batch 2, member 1\)"):
        list(fit(together, epochs=2, state=broken, compile=False))


def test_shared_order_follows_the_first_seed():
    """With a seed for the run, that of the order moves as those of the members do."""
    together = whole(2, order="shared")
    assert together.program.seed(together.init(7).tree) == 7


def small(made, *metrics, model=None):
    data = {"inputs": torch.randn(8, 4), "targets": torch.arange(8) % 2}
    model = model or forward.model(lambda: models.mlp(4, 2))
    return Pipeline(load.batches(data, size=4), model, made, *metrics, backward.gradients(), update.sgd(0.1))


@stage(writes="loss")
def decayed(outputs, targets, params):
    """A loss that reads the weights."""
    return F.cross_entropy(outputs, targets) + sum((p * p).sum() for p in params.values())


COUNTED = evaluate.on_host("seen", lambda targets: targets, len)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ensemble(small(decayed, evaluate.accuracy()), seeds=2), "reads 'params', of which each member"),
        (lambda: ensemble(small(loss.function(nn.CrossEntropyLoss())), seeds=2), "pass join="),
        (lambda: ensemble(whole(2), seeds=2), "not of another sweep"),
        (lambda: ensemble(small(loss.cross_entropy(), COUNTED), seeds=2), "'seen' is taken on the host"),
        (
            lambda: ensemble(
                small(
                    loss.cross_entropy().rename(outputs="logits"),
                    model=forward.model(lambda: models.mlp(4, 2), outputs="logits"),
                ),
                seeds=2,
            ),
            "'outputs' of its members, which no stage writes",
        ),
    ],
)
def test_what_can_not_be_joined_is_refused(make, said):
    """In one line that says what to do."""
    with pytest.raises(PipeError, match=said):
        make()


def test_a_join_of_ones_own():
    """Any function of all outputs."""
    together = ensemble(small(loss.function(nn.CrossEntropyLoss())), seeds=2, join=lambda outputs: outputs.amax(0))
    state = together.init(0)
    found = together.evaluate(state)["loss"]
    batch = next(iter(together.pipe.load.epoch(0, 0)))
    assert math.isfinite(found)
    torch.testing.assert_close(
        together.module(state)(batch["inputs"]),
        torch.stack([together.pipe.module(together.member(state, i))(batch["inputs"]) for i in range(2)]).amax(0),
    )


def test_a_model_of_several_parts_makes_no_module():
    """What is joined is the outputs; each member's module is its own."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x):
            return {"logits": self.layer(x), "hidden": x}

    together = ensemble(small(loss.cross_entropy(), model=forward.model(Two, outputs={"logits": "outputs"})), seeds=2)
    assert together.evaluate(together.init(0))["loss"] > 0
    with pytest.raises(ConfigError, match="several parts"):
        together.module(together.init(0))
