from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from pipeline import Pipeline, backward, fit, forward, load, loss, update
from pipeline.errors import DataError, StageError, WiringError
from tests.strategies import classification, cuts, normals, regression, seeds, shapes


def value_and_gradient(function, outputs, targets):
    outputs = outputs.clone().requires_grad_()
    value = function(outputs, targets)
    return value.detach(), torch.autograd.grad(value, outputs)[0]


def assert_same(ours, torchs, outputs, targets, torch_outputs=None):
    """The stage's value and gradient are those of torch's module."""
    value, gradient = value_and_gradient(lambda x, y: run(ours, x, y)[0], outputs, targets)
    expected, slope = value_and_gradient(torchs, outputs if torch_outputs is None else torch_outputs, targets)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient.reshape(slope.shape), slope)


def run(stage, outputs, targets):
    """What a stage writes, as a pipeline runs it: (loss, weight)."""
    hyper = {k: torch.tensor(v, dtype=torch.float64) for k, v in stage.hyper.items()}
    return tuple(stage.run({"outputs": outputs, "targets": targets}, hyper, None)[0].values())


# -- cross entropy


@given(classification(), st.floats(0.0, 0.9), st.booleans(), st.data())
def test_cross_entropy_is_torchs(sample, smoothing, weighted, data):
    """Cross entropy has torch's value and gradient with label smoothing, class weights and ignored targets."""
    outputs, targets = sample
    weight = data.draw(normals(outputs.shape[1])).abs() + 0.1 if weighted else None
    ignored = data.draw(
        seeds.map(lambda s: torch.rand(targets.shape, generator=torch.Generator().manual_seed(s)) < 0.3)
    )
    ignored.view(-1)[0] = False  # torch has no loss where nothing counts
    targets = torch.where(ignored, -7, targets)
    torchs = nn.CrossEntropyLoss(weight, ignore_index=-7, label_smoothing=smoothing)
    assert_same(loss.cross_entropy(smoothing=smoothing, weight=weight, ignore_index=-7), torchs, outputs, targets)


@given(classification(extra=1), st.floats(0.0, 0.9), st.booleans(), st.data())
def test_probabilities_as_targets_are_torchs(sample, smoothing, weighted, data):
    """Cross entropy of probabilities has torch's value and gradient, and counts rows."""
    outputs, targets = sample
    soft = data.draw(normals(outputs.shape)).softmax(1)
    weight = data.draw(normals(outputs.shape[1])).abs() + 0.1 if weighted else None
    ours = loss.cross_entropy(smoothing=smoothing, weight=weight, dim=1)
    assert_same(ours, nn.CrossEntropyLoss(weight, label_smoothing=smoothing), outputs, soft)
    assert run(ours, outputs, soft)[1] == targets.numel()
    last = loss.cross_entropy(smoothing=smoothing, weight=weight, dim=-1)
    torch.testing.assert_close(run(last, outputs.movedim(1, -1), soft.movedim(1, -1)), run(ours, outputs, soft))
    ours.check(outputs, soft)


@pytest.mark.parametrize("targets", [torch.zeros(2, 5).long(), torch.zeros(2, 5, 5)])
def test_shapes_that_do_not_tell_where_classes_are(targets):
    """Say what to pass, before the first step."""
    for made in (loss.cross_entropy(), loss.cross_entropy().check):
        with pytest.raises(StageError, match=r"where the classes are in outputs \(2, 5, 5\).*dim=1, or dim=-1"):
            made(torch.zeros(2, 5, 5), targets)
    for dim in (1, -1):
        loss.cross_entropy(dim=dim)(torch.zeros(2, 5, 5), targets)


@given(classification())
def test_classes_may_come_last(sample):
    """With dim=-1, and where the shapes tell, cross entropy of (B, ..., C) is that of (B, C, ...)."""
    outputs, targets = sample
    torch.testing.assert_close(loss.cross_entropy()(outputs.movedim(1, -1), targets), loss.cross_entropy()(*sample))
    last = loss.cross_entropy(dim=-1)(outputs.movedim(1, -1), targets)
    torch.testing.assert_close(last, loss.cross_entropy()(outputs, targets))


@pytest.mark.parametrize("weight", [None, torch.ones(3)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_nothing_that_counts_is_a_loss_of_zero(weight, smoothing):
    """A batch whose targets are all ignored has a loss of 0, a weight of 0 and gradients of 0."""
    stage = loss.cross_entropy(weight=weight, smoothing=smoothing)
    outputs = torch.randn(4, 3, requires_grad=True)
    value, total = stage(outputs, torch.full((4,), -100))
    assert (value.item(), total.item()) == (0.0, 0.0)
    assert not torch.autograd.grad(value, outputs)[0].any()


@pytest.mark.parametrize("label", [-1, 3, 1000])
def test_check_names_a_label_outside_the_classes(label):
    """check() names a label that is not a class, and where it is."""
    targets = torch.tensor([0, 2, label, -100])
    with pytest.raises(DataError, match=rf"label {label} in sample 2 is outside the 3 classes .*\(0 to 2\)"):
        loss.cross_entropy().check(torch.zeros(4, 3), targets)


def test_check_names_targets_that_are_no_labels():
    """check() says which loss takes targets that are values."""
    with pytest.raises(DataError, match=r"float32.*class indices.*loss\.mse"):
        loss.cross_entropy().check(torch.zeros(4, 3), torch.zeros(4))


@given(classification())
def test_check_lets_labels_pass(sample):
    """check() accepts every class and what is ignored, for any shape."""
    outputs, targets = sample
    loss.cross_entropy().check(outputs, torch.where(targets == 0, -100, targets))
    loss.cross_entropy(dim=-1).check(outputs.movedim(1, -1), targets)


# -- values


ELEMENTWISE = {
    "mse": (loss.mse, nn.MSELoss),
    "l1": (loss.l1, nn.L1Loss),
    "huber": (loss.huber, nn.HuberLoss),
    "binary_cross_entropy": (loss.binary_cross_entropy, nn.BCEWithLogitsLoss),
}
elementwise = pytest.mark.parametrize(("ours", "torchs"), ELEMENTWISE.values(), ids=ELEMENTWISE)


@elementwise
@given(sample=regression())
def test_losses_of_values_are_torchs(ours, torchs, sample):
    """A loss of values has torch's value and gradient, also for outputs (B, 1) and targets (B,)."""
    outputs, targets = sample
    targets = targets.sigmoid() if torchs is nn.BCEWithLogitsLoss else targets
    assert_same(ours(), torchs(), outputs, targets, outputs.reshape(targets.shape))


@given(regression(), st.floats(0.01, 5.0))
def test_huber_is_torchs_for_any_delta(sample, delta):
    """Huber's loss has torch's value and gradient for any delta."""
    outputs, targets = sample
    assert_same(loss.huber(delta), nn.HuberLoss(delta=delta), outputs, targets, outputs.reshape(targets.shape))


@given(shapes, st.data())
def test_binary_targets_have_any_dtype(shape, data):
    """Binary cross entropy takes bool and integer targets as 0.0 and 1.0."""
    outputs, targets = data.draw(normals(shape)), data.draw(normals(shape)) > 0
    expected = nn.BCEWithLogitsLoss()(outputs, targets.float())
    for dtype in (torch.bool, torch.int64, torch.float64):
        torch.testing.assert_close(run(loss.binary_cross_entropy(), outputs, targets.to(dtype))[0], expected)


@pytest.mark.parametrize("target", [-0.5, 2])
def test_binary_targets_are_shares(target):
    """check() refuses targets outside of [0, 1], as torch does of probabilities."""
    check = loss.binary_cross_entropy().check
    check(torch.zeros(3), torch.tensor([0.0, 0.5, 1.0]))
    with pytest.raises(DataError, match=rf"takes targets in \[0, 1\], and one is {target}; use loss.mse"):
        check(torch.zeros(2), torch.tensor([0, target]))


@elementwise
@pytest.mark.parametrize(("outputs", "targets"), [((4, 3), (4,)), ((4,), (4, 1)), ((4, 1), (3,)), ((2, 3), (3, 2))])
def test_what_would_broadcast_is_refused(ours, torchs, outputs, targets):
    """Outputs and targets of two shapes raise a StageError that shows both."""
    with pytest.raises(StageError, match=r"takes one shape, not outputs .* targets") as error:
        run(ours(), torch.zeros(outputs), torch.zeros(targets))
    assert error.value.stage == ours().name


# -- all of them


@given(st.data())
def test_weights_make_unequal_batches_exact(data):
    """sum(loss * weight) / sum(weight) over the batches of any split is the loss of the whole."""
    outputs, targets = data.draw(classification())
    values, goals = data.draw(regression())
    weighted = loss.cross_entropy(weight=torch.linspace(0.5, 2.0, outputs.shape[1]))
    for stage, x, y in (
        (loss.cross_entropy(), outputs, targets),
        (loss.cross_entropy(ignore_index=0), outputs, targets),
        (weighted, outputs, targets),
        (loss.mse(), values, goals),
        (loss.huber(0.5), values, goals),
    ):
        sizes = data.draw(cuts(len(x)))
        parts = [run(stage, *part) for part in zip(x.split(sizes), y.split(sizes), strict=True)]
        whole, weight = run(stage, x, y)
        torch.testing.assert_close(sum(w for _, w in parts), weight)
        total = sum(value * w for value, w in parts) / weight.clamp(min=1e-9)
        torch.testing.assert_close(total.double(), whole.double(), atol=1e-5, rtol=1e-5)


@given(classification(torch.float64, extra=1), regression(torch.float64), st.floats(0.0, 0.5))
def test_gradients_are_finite_differences(sample, values, smoothing):
    """Each loss has the gradients of finite differences."""
    for stage, (x, y) in (
        (loss.cross_entropy(smoothing=smoothing), sample),
        (loss.mse(), values),
        (loss.l1(), values),
        (loss.huber(0.5), values),
        (loss.binary_cross_entropy(), (values[0], values[1].sigmoid())),
    ):
        assert torch.autograd.gradcheck(lambda x, y=y, s=stage: run(s, x, y)[0], x.requires_grad_(), fast_mode=True)


@given(classification(), regression())
def test_losses_are_numbers_of_the_outputs_dtype(sample, values):
    """A loss is 0-d in the dtype of the outputs, float32 at least, its weight 0-d float64."""
    for stage, (x, y) in ((loss.cross_entropy(), sample), (loss.mse(), values), (loss.huber(), values)):
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            value, weight = run(stage, x.to(dtype), y)
            assert (value.shape, value.dtype) == ((), torch.promote_types(dtype, torch.float32))
            assert (weight.shape, weight.dtype) == ((), torch.float64)


def test_a_loss_of_ones_own():
    """function() makes a loss of any function of named values."""
    stage = loss.function(lambda outputs, inputs: (outputs - inputs).abs().max(), "loss.worst")
    assert (stage.name, stage.reads, stage.writes) == ("loss.worst", ("outputs", "inputs"), ("loss",))
    assert stage(torch.tensor([1.0, 5.0]), torch.tensor([0.0, 2.0])) == 3.0


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (torch.eye(3).long()[[0, 1]], r"one-hot rows take targets.argmax\(1\), or targets.float"),
        (torch.tensor([0.0, 1.0]), r"targets.long\(\)"),
        (torch.tensor([[0], [1]]), r"targets.squeeze\(1\)"),
    ],
)
def test_targets_that_are_no_class_indices_say_what_to_write(targets, said):
    """Before a number comes out of them that looks right."""
    with pytest.raises(DataError, match=said):
        loss.cross_entropy()(torch.zeros(2, 3), targets)


@given(classification(extra=0), st.sampled_from([torch.int8, torch.int16, torch.int32, torch.uint8]))
def test_class_indices_may_be_any_integers(case, dtype):
    """The loss is that of the same labels as int64."""
    outputs, targets = case
    assert loss.cross_entropy()(outputs, targets.to(dtype))[0] == loss.cross_entropy()(outputs, targets)[0]


@given(classification(extra=0))
def test_a_loss_of_torch_is_a_stage(case):
    """A loss module takes outputs and targets; its class is told to be called."""
    outputs, targets = case
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    assert loss.function(criterion)(outputs, targets) == criterion(outputs, targets)
    with pytest.raises(WiringError, match=r"write CrossEntropyLoss\(\)"):
        loss.function(nn.CrossEntropyLoss)


@given(classification(extra=0), regression())
def test_functions_of_torch_are_its_modules(case, values):
    """F.cross_entropy is nn.CrossEntropyLoss(): of outputs and targets, by name, with the same weight."""
    for f, module, sample in (
        (F.cross_entropy, nn.CrossEntropyLoss(), case),
        (partial(F.cross_entropy, ignore_index=0), nn.CrossEntropyLoss(ignore_index=0), case),
        (F.mse_loss, nn.MSELoss(), (values[1], values[1] + 1)),
        (partial(F.huber_loss, delta=0.5), nn.HuberLoss(delta=0.5), (values[1], values[1] + 1)),
    ):
        stage = loss.function(f)
        assert (stage.reads, stage.hyper, stage.writes) == (("outputs", "targets"), {}, ("loss",))
        assert stage.name == f"loss.{getattr(f, 'func', f).__name__}"
        torch.testing.assert_close(run(stage, *sample), run(loss.function(module), *sample), equal_nan=True)
        assert len(run(stage, *sample)) == 2


@given(classification(extra=1), st.data())
def test_a_weight_that_is_said_makes_unequal_batches_exact(case, data):
    """sum(loss * weight) / sum(weight) of the parts is that of the whole, of a mean that torch did not take."""
    outputs, targets = case

    def mean(outputs, targets, scale=2.0):
        counted = targets != 0
        each = F.cross_entropy(outputs, targets, reduction="none") * counted
        return scale * each.sum() / counted.sum().clamp(min=1)

    stage = loss.function(mean, "loss.masked", weight=lambda targets: targets != 0)
    assert (stage.reads, stage.writes, dict(stage.hyper)) == (("outputs", "targets"), loss.WRITES, {"scale": 2.0})
    sizes = data.draw(cuts(len(outputs)))
    parts = [run(stage, *part) for part in zip(outputs.split(sizes), targets.split(sizes), strict=True)]
    value, weight = run(stage, outputs, targets)
    assert weight == (targets != 0).sum() == sum(w for _, w in parts)
    total = sum(x * w for x, w in parts) / weight.clamp(min=1)
    torch.testing.assert_close(total.double(), value.double(), atol=1e-5, rtol=1e-5)


def test_what_a_loss_is_a_mean_of_may_be_said_in_words():
    """Either "samples", as many as its values have, or "sum", said or read off torch's module, whose weight is 1."""
    x, y = torch.randn(6, 3), torch.randn(6, 3)
    value, weight = run(loss.function(lambda outputs, targets: (outputs - targets).abs().max(), weight="samples"), x, y)
    assert (value, weight) == ((x - y).abs().max(), 6)
    said = loss.function(lambda outputs, targets: ((outputs - targets) ** 2).sum(), weight="sum")
    for stage in (
        said,
        loss.function(nn.MSELoss(reduction="sum")),
        loss.function(partial(F.mse_loss, reduction="sum")),
    ):
        assert (stage.sums, stage.writes) == (True, loss.WRITES)
        torch.testing.assert_close(run(stage, x, y), (F.mse_loss(x, y, reduction="sum"), torch.ones(()).double()))
    assert not loss.function(nn.MSELoss()).sums


def test_the_weight_of_a_loss_made_elsewhere():
    """weight() writes only that, of the loss that is named; a loss that is renamed takes its weight along."""
    made = loss.weight(lambda labels, scale=2: scale * len(labels), of="lm_loss")
    assert (made.name, made.reads, made.writes) == ("lm_loss.weight", ("labels",), ("lm_loss.weight",))
    assert made(torch.zeros(3)) == torch.tensor(6.0, dtype=torch.float64)
    assert loss.cross_entropy().rename(loss="a").writes == ("a", "a.weight")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: loss.function(nn.MSELoss(reduction="none")), r"loss.MSELoss has reduction='none'"),
        (lambda: loss.function(partial(F.mse_loss, reduction="none")), r"loss.mse_loss has reduction='none'"),
        (
            lambda: loss.function(nn.TripletMarginLoss()),
            r"takes anchor, positive, negative: write loss.function\(lambda",
        ),
        (lambda: loss.function(F.gaussian_nll_loss), r"takes input, target, var: write loss.function\(lambda"),
        (lambda: loss.function(nn.CTCLoss()), r"takes log_probs, targets, input_lengths, target_lengths: write"),
        (
            lambda: loss.function(lambda outputs: outputs.mean(), weight="sample"),
            r"weight='sample'.*'samples' or 'sum'",
        ),
    ],
)
def test_losses_that_are_no_stage_say_what_to_write(make, said):
    """In one line."""
    with pytest.raises(WiringError, match=said):
        make()


def test_classes_in_the_last_dimension_fit_in_data_of_any_length():
    """Fit looks at the labels of all samples beside the outputs of a few."""
    labels = torch.randint(0, 7, (24, 6), generator=torch.Generator().manual_seed(0))
    pipe = Pipeline(
        load.batches((labels, labels), size=8),
        forward.model(lambda: nn.Embedding(7, 7)),
        loss.cross_entropy(),
        backward.gradients(),
        update.sgd(0.1),
    )
    assert next(fit(pipe, epochs=1, compile=False)).train["loss"] > 0


SMALL = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
SOFT, OWN = SMALL.float().softmax(1) + 1e-3, torch.tensor([0.3, 0.1, 0.7])
CASES_IN_BF16 = {
    "mse": (loss.mse(), F.mse_loss, SMALL.float() + 0.001),
    "l1": (loss.l1(), F.l1_loss, SMALL.float() + 0.001),
    "poisson": (loss.poisson(), F.poisson_nll_loss, SOFT),
    "binary": (loss.binary_cross_entropy(), F.binary_cross_entropy_with_logits, SOFT.clamp(max=1)),
    "soft": (loss.cross_entropy(), F.cross_entropy, SOFT),
    "weighted": (loss.cross_entropy(weight=OWN), lambda x, y: F.cross_entropy(x, y, OWN), torch.arange(8) % 3),
}


@pytest.mark.parametrize(("ours", "torchs", "targets"), CASES_IN_BF16.values(), ids=CASES_IN_BF16)
def test_losses_in_low_precision_are_those_of_autocast(ours, torchs, targets):
    """Outputs in bfloat16 are compared in float32 with targets that are not rounded."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(run(ours, SMALL, targets)[0], torchs(SMALL, targets))


def test_sums_of_many_rows_fit_in_half():
    """A mean in float16 is no sum above 65,504, which is infinite there."""
    assert run(loss.cross_entropy(), torch.zeros(70_000, 3, dtype=torch.float16), torch.arange(70_000) % 3)[0] < 2


@pytest.mark.parametrize("assigned", [False, True])
@pytest.mark.parametrize("route", ["functional", "tape"])
def test_a_loss_that_changes_its_buffers_says_what_to_write(assigned, route):
    """They would be the first at each step."""

    class Counted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, outputs, targets):
            if assigned:
                self.calls = self.calls + 1
            else:
                self.calls += 1
            return F.cross_entropy(outputs, targets) / self.calls

    batch = {"inputs": torch.randn(6, 4), "targets": torch.arange(6) % 3}

    def step(objective):
        pipe = Pipeline(
            forward.model(torch.nn.Linear(4, 3)), objective, backward.gradients(route=route), update.sgd(0.1)
        )
        return pipe.step(pipe.init(0), batch)

    with pytest.raises(StageError, match=r"changes the buffer 'calls'.*write forward.model\(module, inputs="):
        step(loss.function(Counted()))
    kept = forward.model(Counted(), inputs=("outputs", "targets"), outputs="loss", params="own", name="own")
    assert step(kept)[0]["own.buffers"]["calls"] == 1
