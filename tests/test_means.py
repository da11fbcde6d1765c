from functools import partial

import pytest
import torch
from hypothesis import given
from torch import nn
from torch.nn import functional as F

from pipeline import Pipeline, backward, fit, forward, load, loss, stage, sweep, update
from pipeline.errors import StageError
from tests.pipes import TRACED
from tests.strategies import cuts, seeds

CLASSES, WEIGHTS = 5, torch.linspace(0.5, 2.0, 5)
N = 12


def tensors(seed):
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(N, CLASSES, generator=g), torch.randn(N, CLASSES, generator=g)
    labels = torch.randint(CLASSES, (N,), generator=g)
    return {
        "x": x, "y": y, "labels": labels, "some": torch.where(torch.rand(N, generator=g) < 0.4, -100, labels),
        "soft": y.softmax(1), "sides": y.sign(), "side": y[:, 0].sign(), "z": torch.randn(N, CLASSES, generator=g),
        "lengths": torch.full((N,), 3),
    }  # fmt: skip


LOSSES = {
    "cross_entropy": ("x some", F.cross_entropy),
    "class weights": ("x some", partial(F.cross_entropy, weight=WEIGHTS, label_smoothing=0.1)),
    "ignore_index": ("x labels", nn.CrossEntropyLoss(ignore_index=1)),
    "soft": ("x soft", nn.CrossEntropyLoss(WEIGHTS)),
    "nll": ("x some", nn.NLLLoss(WEIGHTS)),
    "mse": ("x y", F.mse_loss),
    "weighted mse": ("x y", lambda x, y: F.mse_loss(x, y, weight=x.detach().exp())),
    "l1": ("x y", nn.L1Loss()),
    "smooth l1": ("x y", F.smooth_l1_loss),
    "huber": ("x y", partial(F.huber_loss, delta=0.3)),
    "kl": ("x soft", F.kl_div),
    "kl batchmean": ("x soft", nn.KLDivLoss(reduction="batchmean")),
    "poisson": ("x soft", nn.PoissonNLLLoss()),
    "gaussian": ("x y soft", nn.GaussianNLLLoss()),
    "bce": ("soft soft", F.binary_cross_entropy),
    "bce logits": ("x soft", nn.BCEWithLogitsLoss(WEIGHTS, pos_weight=WEIGHTS)),
    "soft margin": ("x sides", nn.SoftMarginLoss()),
    "hinge": ("x sides", nn.HingeEmbeddingLoss()),
    "multi margin": ("x labels", nn.MultiMarginLoss()),
    "multilabel soft margin": ("x soft", F.multilabel_soft_margin_loss),
    "triplet": ("x y z", nn.TripletMarginLoss()),
    "distance": ("x y z", nn.TripletMarginWithDistanceLoss()),
    "cosine": ("x y side", nn.CosineEmbeddingLoss()),
    "ranking": ("x y sides", nn.MarginRankingLoss()),
}


@pytest.mark.parametrize(("takes", "criterion"), LOSSES.values(), ids=LOSSES)
@given(seed=seeds, sizes=cuts(N))
def test_the_losses_of_parts_make_that_of_the_whole(takes, criterion, seed, sizes):
    """Weighed by what torch divides by, whoever calls the loss."""
    given = [tensors(seed)[name] for name in takes.split()]

    def parts(values):
        s = stage(writes="loss")(
            (lambda outputs, targets: criterion(outputs, targets))
            if len(given) == 2
            else lambda outputs, targets, more: criterion(outputs, targets, more)
        )
        return s.run(dict(zip(("outputs", "targets", "more"), values, strict=False)), {}, None)[0]

    made = [parts(x) for x in zip(*(t.split(sizes) for t in given), strict=True)]
    made = [p for p in made if p["loss.weight"] > 0]
    if made:
        total = sum(p["loss.weight"] for p in made)
        whole = parts(given)
        assert whole["loss.weight"] == pytest.approx(total.item())
        assert (total.shape, total.dtype) == ((), torch.float64)
        mean = sum(p["loss"] * p["loss.weight"] for p in made) / total
        assert mean.item() == pytest.approx(criterion(*given).item(), abs=1e-5)


def test_a_sum_has_no_weight_of_its_own():
    """Nor what is made of several losses: their writer says it."""
    for made in (
        lambda outputs, y: F.mse_loss(outputs, y, reduction="sum"),
        lambda outputs, y: 2 * F.mse_loss(outputs, y),
    ):
        assert [*stage(writes="loss")(made).run({"outputs": X[:, 0], "y": X[:, 1]}, {}, None)[0]] == ["loss"]


X, Y = torch.randn(10, 6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(60).reshape(10, 6) % 5
for i in range(10):
    Y[i, i % 6 + 1 :] = -100
WHOLE = {"inputs": X, "labels": Y}


class WithLoss(nn.Module):
    """A model that returns its own loss."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 5)

    def forward(self, inputs, labels):
        logits = self.layer(inputs)
        return {"logits": logits, "loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten())}


def own(module):
    return (forward.model(module, inputs=("inputs", "labels"), outputs={"loss": "loss"}),)


def of_a_stage(module):
    criterion = loss.function(lambda outputs, labels: F.cross_entropy(outputs.movedim(-1, 1), labels), "loss.mine")
    return forward.model(module.layer), criterion


def handed_on(module):
    """A loss that another stage returns than made it."""
    model = forward.model(module, inputs=("inputs", "labels"), outputs="made")
    return model, stage(writes="loss", name="picked")(lambda made: made["loss"])


def said(module):
    """A model whose loss no loss of torch returned."""

    class Scaled(WithLoss):
        def forward(self, inputs, labels):
            return {"loss": super().forward(inputs, labels)["loss"] * 1.0}

    scaled = Scaled()
    scaled.load_state_dict(module.state_dict())
    return (*own(scaled), loss.weight(lambda labels: labels != -100))


@pytest.mark.parametrize("stages", [own, of_a_stage, handed_on, said])
@pytest.mark.parametrize("options", [None, {"backend": TRACED}, {"backend": TRACED, "steps": 2}])
def test_epochs_and_parts_of_a_loss_of_ones_own_are_the_wholes(stages, options):
    """Trained in parts, the weights are those of a loop by hand, and means over batches those of all samples."""
    torch.manual_seed(0)
    module = WithLoss()
    pipe = Pipeline(
        load.batches(WHOLE, size=4, shuffle=False), *stages(module), backward.gradients(accumulate=2), update.sgd(1.0)
    )
    before = WithLoss()
    before.load_state_dict(module.state_dict())
    total = count = 0
    for x, y in zip(X.split(4), Y.split(4), strict=True):
        value = before(x, y)["loss"]
        weight = (y != -100).sum().item()
        total, count = total + value.item() * weight, count + weight
        grads = torch.autograd.grad(value, before.parameters())
        with torch.no_grad():
            for p, g in zip(before.parameters(), grads, strict=True):
                p -= g
    compile = False if options is None else pipe.compile(**options)
    [report] = fit(pipe, epochs=1, validate=WHOLE, compile=compile)
    assert report.train["loss"] == pytest.approx(total / count, abs=1e-5)
    assert report.validate["loss"] == pytest.approx(before(X, Y)["loss"].item(), abs=1e-5)
    for a, b in zip(report.state.params.values(), before.parameters(), strict=True):
        torch.testing.assert_close(a, b.detach(), atol=1e-5, rtol=1e-5)


def test_members_of_a_sweep_weigh_their_losses():
    """Each member's means are those of its own."""
    torch.manual_seed(0)
    pipe = Pipeline(load.batches(WHOLE, size=4, shuffle=False), *own(WithLoss()), backward.gradients(), update.sgd(0.1))
    runs = sweep(pipe, hyper={"lr": [0.1, 0.5]})
    together, alone = (next(fit(p, epochs=1, validate=WHOLE, compile=False)) for p in (runs, pipe))
    assert together.validate["loss"][0] == pytest.approx(alone.validate["loss"], abs=1e-6)


@pytest.mark.parametrize("options", [{"compile": False}, {"backend": TRACED}])
def test_parts_and_batches_whose_targets_are_all_ignored_count_for_nothing(options):
    """The mean of them in torch is 0 / 0, and by hand it is of no batch but of a part of one."""
    given = tensors(0)
    labels = given["labels"].clone()
    labels[[0, 1, 4]] = -100
    data = {"inputs": given["x"], "targets": labels}
    for parts in (1, 2):
        pipe = Pipeline(load.batches(data, size=4, shuffle=False), forward.model(lambda: nn.Linear(5, 5)),
                        loss.function(F.cross_entropy), backward.gradients(accumulate=parts),
                        update.sgd(0.0))  # fmt: skip
        [report] = fit(pipe, epochs=1, validate={"inputs": given["x"][:4], "targets": labels[[0, 1, 0, 1]]}, **options)
        whole = F.cross_entropy(pipe.module(report.state)(given["x"]), labels)
        assert report.train["loss"] == pytest.approx(whole.item(), rel=1e-5)


def test_a_list_of_samples_is_cut_to_compare_parts():
    """What is refused is that lists have no parts, not a loss that is a mean over samples."""

    @stage(writes="loss")
    def each(outputs, targets):
        return torch.stack([(x - t["y"]).abs().mean() for x, t in zip(outputs, targets, strict=True)]).mean()

    batch = {"inputs": torch.randn(4, 3), "targets": [{"y": torch.randn(1 + i % 3, 3)} for i in range(4)]}
    pipe = Pipeline(load.loader([batch]), forward.model(lambda: nn.Linear(3, 3)), each,
                    backward.gradients(accumulate=2), update.sgd(0.1))  # fmt: skip
    with pytest.raises(StageError, match="'targets' is a list of samples: stack them"):
        list(fit(pipe, epochs=1, compile=False))
