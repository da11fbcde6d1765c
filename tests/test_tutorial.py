"""The tutorial's loop, written by hand and as a pipeline: every batch loss and the final weights are the same."""

import pytest
import torch
from torch import optim

from pipeline import (
    Pipeline,
    backward,
    evaluate,
    fit,
    forward,
    load,
    loss,
    models,
    place,
    schedules,
    sources,
    testing,
    update,
)  # fmt: skip
from tests import by_hand
from tests.pipes import TRACED

EPOCHS, DATA = 5, sources.random()
VARIANTS = {
    "sgd": ([update.sgd(0.01)], lambda p: optim.SGD(p, lr=0.01), None, None),
    "momentum": ([update.sgd(0.01, momentum=0.9)], lambda p: optim.SGD(p, lr=0.01, momentum=0.9), None, None),
    "clipping": ([update.clip_norm(1.0), update.sgd(0.01)], lambda p: optim.SGD(p, lr=0.01), 1.0, None),
    "step_lr": (
        [update.sgd(schedules.step(0.01, every=20, gamma=0.5))],
        lambda p: optim.SGD(p, lr=0.01),
        None,
        lambda o: optim.lr_scheduler.StepLR(o, 20, gamma=0.5),
    ),
    "adamw": ([update.adamw(1e-3)], lambda p: optim.AdamW(p, lr=1e-3), None, None),
}


def pipeline(updates):
    return Pipeline(
        load.batches(DATA, size=64),
        place.on("cpu"),
        forward.model(lambda: models.mlp(784, 128, 10)),
        loss.cross_entropy(),
        evaluate.accuracy(),
        backward.gradients(),
        *updates,
    )


def batches(pipe):
    return [batch for epoch in range(EPOCHS) for batch in pipe.load.epoch(0, epoch)]


def both(variant, step, pipe):
    """Losses and weights by hand and by the pipeline, from the same seed and in the same order."""
    _, optimizer, clip, scheduler = VARIANTS[variant]
    torch.manual_seed(0)
    module = models.mlp(784, 128, 10)
    chosen = optimizer(module.parameters())
    expected = by_hand.train(
        module, batches(pipe), chosen, clip=clip, scheduler=scheduler(chosen) if scheduler else None
    )
    state, losses = pipe.init(seed=0), []
    for batch in batches(pipe):
        state, metrics = step(state, batch)
        losses.append(metrics["loss"].item())
    return (expected, dict(module.named_parameters())), (losses, state.params)


@pytest.mark.parametrize("variant", VARIANTS)
def test_eager(variant):
    """Eager steps equal the loop to 1e-6."""
    pipe = pipeline(VARIANTS[variant][0])
    (losses, weights), (ours, params) = both(variant, pipe.step, pipe)
    assert len(ours) == 80
    assert ours == pytest.approx(losses, abs=1e-6)
    testing.same(params, {k: w.detach() for k, w in weights.items()}, 1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_compiled(variant):
    """Compiled steps, the short last batch included, equal the loop to 1e-5."""
    pipe = pipeline(VARIANTS[variant][0])
    compiled = pipe.compile(backend="auto" if variant == "clipping" else TRACED)  # C++ takes seconds to compile
    (losses, weights), (ours, params) = both(variant, compiled, pipe)
    assert ours == pytest.approx(losses, abs=1e-5)
    testing.same(params, {k: w.detach() for k, w in weights.items()}, 1e-5)
    assert len(compiled.report.graphs) == 2


def test_fit_reports_what_the_tutorial_prints():
    """Fit's epoch losses and accuracies are the means that the loop would print after each epoch."""
    pipe = pipeline([update.sgd(0.01)])
    torch.manual_seed(0)
    module = models.mlp(784, 128, 10)
    optimizer = optim.SGD(module.parameters(), lr=0.01)
    for report in fit(pipe, epochs=EPOCHS, validate=DATA, seed=0, compile=False):
        epoch = list(pipe.load.epoch(0, report.epoch - 1))
        losses = by_hand.train(module, epoch, optimizer)
        mean = sum(x * len(b["targets"]) for x, b in zip(losses, epoch, strict=True)) / len(DATA)
        assert report.train["loss"] == pytest.approx(mean, abs=1e-6)
        assert report.validate["accuracy"] == by_hand.accuracy(module, pipe.load.over(DATA).epoch(0, 0))
        assert str(report).startswith(f"epoch {report.epoch}/5  loss ")
