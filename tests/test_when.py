"""Stages that are part of the train step, or of the evaluation, alone."""

import zlib

import pytest
import torch
from torch import nn

from pipeline import Pipeline, backward, evaluate, fit, forward, load, loss, place, stage, sweep, testing, update
from pipeline.draws import keyed
from pipeline.errors import WiringError
from tests.pipes import TRACED

NOISE = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
DATA = NOISE, (NOISE.sum(1) > 0).long()
LINEAR = forward.model(lambda: nn.Linear(4, 2))
REST = backward.gradients(), update.sgd(0.5)


@stage(writes="inputs", when="train")
def noise(inputs):
    return inputs + 3 * torch.randn_like(inputs)


def drawn(step):
    """What stage `noise` draws at a step of seed 0."""
    return keyed(torch.tensor(0), torch.tensor(step), zlib.crc32(b"noise"))


@pytest.mark.parametrize("way", [{"compile": False}, {"backend": TRACED}])
def test_a_stage_for_training_alone_trains_as_by_hand_and_is_not_evaluated(way):
    """Noise is in the steps, as in a loop by hand, and not in what is evaluated, before place or behind it."""
    pipe = Pipeline(load.batches(DATA, size=8, shuffle=False), noise, LINEAR, loss.cross_entropy(), *REST)
    *_, last = fit(pipe, epochs=2, validate=DATA, **way)
    torch.manual_seed(0)
    net = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(net.parameters(), 0.5)
    for step in range(10):
        x, y = (t.split(8)[step % 5] for t in DATA)
        with drawn(step):
            x = x + 3 * torch.randn_like(x)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    testing.same(last.state.params, dict(net.named_parameters()), 1e-5)
    assert last.validate == pytest.approx(pipe.without("noise").evaluate(last.state, DATA))
    assert "noise (train only)" in str(pipe)


def test_a_stage_for_evaluation_alone_is_in_no_step():
    """Losses, metrics and stages on the host are each in their program alone; of a sweep too."""
    seen = []

    @stage(writes="inputs", when="train")
    def never(inputs):
        seen.append(len(inputs))
        return inputs * 0

    parts = (
        load.batches(DATA, size=8), never, place.on("cpu"), LINEAR, loss.cross_entropy().only("evaluation"),
        loss.function(nn.CrossEntropyLoss(), name="own").only("train"), evaluate.accuracy().only("evaluation"),
        evaluate.perplexity().only("train"), *REST,
    )  # fmt: skip
    pipe = Pipeline(*parts)
    for run in (pipe, sweep(pipe, seeds=2, order="shared")):
        *_, last = fit(run, epochs=1, validate=DATA, compile=False)
        assert (set(last.train), set(last.validate)) == ({"loss", "perplexity"}, {"loss", "accuracy"})
    assert set(pipe.init(0).memory) & {"evaluate.accuracy", "evaluate.perplexity"} == {"evaluate.perplexity"}
    before = len(seen)
    pipe.evaluate(pipe.init(0), DATA)
    assert len(seen) == before


@stage(writes="view", when="train")
def view(inputs):
    return inputs


@pytest.mark.parametrize("data", [load.batches(DATA, size=8), load.loader([DATA])])
def test_what_only_one_program_has_is_not_read_in_the_other(data):
    """A name that training alone writes, or evaluation alone, says at construction what to write; a default does."""
    model, rest = forward.model(lambda: nn.Linear(4, 2), inputs="view"), (loss.cross_entropy(), *REST)
    with pytest.raises(WiringError, match=r"'forward.model' reads 'view' in evaluation.*when=\"evaluation\""):
        Pipeline(data, view, model, *rest)
    with pytest.raises(WiringError, match=r"'forward.model' reads 'view' in train.*when=\"train\""):
        Pipeline(data, view.only("evaluation"), model, *rest)
    Pipeline(data, view, view.only("evaluation").named("same"), model, *rest)
    lengths = evaluate.on_host("lengths", lambda view: len(view), lambda seen: {"n": sum(seen)})
    with pytest.raises(WiringError, match="'lengths' reads 'view' in evaluation"):
        Pipeline(data, view, LINEAR, *rest, lengths)
    with pytest.raises(WiringError, match='none of "train", "evaluation" and "always"'):
        view.only("training")

    @stage(writes="loss")
    def optional(outputs, targets, view=None):
        return nn.functional.cross_entropy(outputs, targets) + (0 if view is None else 1)

    pipe = Pipeline(data, view, LINEAR, optional, *REST)
    *_, last = fit(pipe, epochs=1, validate=[DATA], compile=False)
    assert last.train["loss"] > 1 > last.validate["loss"]
