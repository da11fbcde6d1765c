"""Any module becomes a pure function of what it is given."""

import re
import types
import warnings

import pytest
import torch
from torch import nn
from torch.ao import quantization

from pipeline import Pipeline, backward, checkpoint, evaluate, fit, forward, load, loss, models, stage, testing, update
from pipeline.errors import PipeError, StageError, WiringError
from tests import by_hand, pipes
from tests.pipes import TRACED

REST = backward.gradients(), update.sgd(0.1)
BATCH = {"inputs": torch.randn(6, 4), "targets": torch.tensor([0, 1, 2, 0, 1, 2])}


def step(model, batch=BATCH, objective=None):
    pipe = Pipeline(model, objective or loss.cross_entropy(), backward.gradients(), update.sgd(0.1))
    state = pipe.init(0)
    return state, *pipe.step(state, batch)


def test_a_factory_is_initialised_from_the_seed_as_torch_would():
    """init(seed) gives the weights of torch.manual_seed(seed), and leaves the generator alone."""
    torch.manual_seed(3)
    expected = dict(pipes.Linear().named_parameters())
    before = torch.random.get_rng_state()
    state = Pipeline(forward.model(pipes.Linear)).init(3)
    testing.same(state.params, {k: p.detach() for k, p in expected.items()})
    assert torch.equal(before, torch.random.get_rng_state())


def test_an_instance_keeps_its_weights_and_is_never_touched():
    """Training from an instance starts from its weights and does not change them."""
    module = pipes.Linear()
    before = {k: p.detach().clone() for k, p in module.named_parameters()}
    state, after, _ = step(forward.model(module))
    testing.same(state.params, before)
    testing.same({k: p.detach() for k, p in module.named_parameters()}, before)
    assert not torch.equal(after.params["layer.weight"], before["layer.weight"])
    assert all(p.grad is None for p in module.parameters())


def test_frozen_parameters_stay():
    """What has requires_grad=False is kept beside the buffers and not trained."""
    module = models.mlp(4, 5, 3)
    module[1].requires_grad_(False)
    state, after, _ = step(forward.model(module))
    assert set(state.params) == {"3.weight", "3.bias"}
    testing.same(after.buffers, state.buffers)
    testing.same(dict(module.state_dict()), Pipeline(forward.model(module)).models[0].state_dict(state.tree))


class Two(nn.Module):
    """Two inputs, one of them by keyword, and tied weights."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 3, bias=False)
        self.b = nn.Linear(4, 3, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x, *, scale):
        return self.a(x) + scale * self.b(x)


def test_inputs_by_keyword_and_tied_weights():
    """Inputs are taken by name, and tied weights are one parameter that load_state_dict takes under both names."""
    model = forward.model(Two, inputs={"x": "inputs", "scale": "scale"})
    assert {"inputs", "scale"} <= set(model.reads)
    state, after, _ = step(model, {**BATCH, "scale": torch.ones(6, 1)})
    assert set(state.params) == {"a.weight"}
    loaded = Two()
    loaded.load_state_dict(model.state_dict(after.tree))
    assert torch.equal(loaded.b.weight, after.params["a.weight"])


def test_several_inputs_by_position():
    """A tuple of names is passed in its order."""
    model = forward.model(lambda: nn.Bilinear(4, 2, 3), inputs=("inputs", "more"))
    step(model, {**BATCH, "more": torch.randn(6, 2)})


def test_a_frozen_teacher_is_only_read():
    """A second model under other names gives values to a loss of one's own, in eval mode, and never changes."""

    @stage(writes="loss")
    def distil(outputs, teacher_outputs, temperature=2.0):
        soft = (teacher_outputs / temperature).softmax(1)
        return -(soft * (outputs / temperature).log_softmax(1)).sum(1).mean()

    teacher = forward.model(
        lambda: models.mlp(4, 8, 8, 3, dropout=0.5),
        params="teacher", outputs="teacher_outputs", frozen=True, name="forward.teacher",
    )  # fmt: skip
    pipe = Pipeline(teacher, forward.model(pipes.Linear), distil, backward.gradients(), update.sgd(0.1))
    state = pipe.init(0)
    testing.lawful(pipe, state, BATCH)
    after, metrics = pipe.step(state.with_hyper(temperature=3.0), BATCH)
    testing.same(after["teacher"], state["teacher"])
    assert 0 < metrics["loss"] < 5


def test_a_generator_and_a_critic():
    """Two backwards in one pipeline each differentiate what stands since the one before."""

    @stage(writes="critic_loss")
    def critic_loss(real, inputs):
        return (real.squeeze(1) - inputs[:, 0]).square().mean()

    @stage(writes="loss")
    def generator_loss(outputs, critic):
        return outputs.square().mean() + 0.0 * sum(p.sum() for p in critic.values())

    pipe = Pipeline(
        forward.model(lambda: nn.Linear(4, 1), params="critic", outputs="real", name="forward.critic"),
        critic_loss,
        backward.gradients(of="critic_loss", wrt="critic", writes="critic_grads", name="backward.critic"),
        update.sgd(0.1).rename(params="critic", grads="critic_grads").named("update.critic"),
        forward.model(pipes.Linear),
        generator_loss,
        backward.gradients(),
        update.adam(0.01),
    )
    state = pipe.init(0)
    testing.lawful(pipe, state, BATCH)
    after, metrics = pipe.step(state, BATCH)
    assert set(metrics) == {"critic_loss", "loss"}
    for name in ("critic", "params"):
        assert not torch.equal(*(next(iter(s[name].values())) for s in (state, after)))


def test_evaluation_is_in_eval_mode():
    """Dropout is off and running statistics are used when measuring."""
    pipe = Pipeline(forward.model(lambda: models.mlp(4, 64, 3, dropout=0.9)), loss.cross_entropy(), evaluate.accuracy(),
                    backward.gradients(), update.sgd(0.1))  # fmt: skip
    state = pipe.init(0)
    module = models.mlp(4, 64, 3, dropout=0.9).eval()
    module.load_state_dict(pipe.models[0].state_dict(state.tree))
    expected = nn.functional.cross_entropy(module(BATCH["inputs"]), BATCH["targets"]).item()
    assert pipe.evaluate(state, BATCH)["loss"] == pytest.approx(expected, abs=1e-6)


def test_inputs_that_do_not_fit_name_both_shapes():
    """An input width that the model can't take is an error with the stage, the input and the layer."""
    with pytest.raises(StageError, match=r"forward.model.*inputs \(6, 5\).*6x5 and 4x3"):
        step(forward.model(pipes.Linear), {**BATCH, "inputs": torch.randn(6, 5)})


@pytest.mark.parametrize("wrong", [3, "mlp", lambda: 3])
def test_what_is_no_module(wrong):
    """Something else than a module, or a factory of something else, is refused."""
    with pytest.raises(WiringError, match=r"takes an nn.Module or a function"):
        Pipeline(forward.model(wrong)).init(0)


def test_lazy_modules_look_at_a_batch():
    """A lazy module has the shapes and, from one seed, the weights of the same module called on the first batch."""
    pipe = Pipeline(forward.model(lambda: nn.LazyLinear(3)), loss.cross_entropy(), backward.gradients())
    with pytest.raises(WiringError, match=r"lazy module.*init\(batch=...\)"):
        pipe.init(0)
    torch.manual_seed(5)
    module = nn.LazyLinear(3)
    module(BATCH["inputs"])
    testing.same(pipe.init(5, batch=BATCH).params, {k: p.detach() for k, p in module.named_parameters()})


def test_a_factory_that_needs_arguments_says_so():
    """A class given for a factory is refused with what to write."""
    with pytest.raises(WiringError, match=r"missing 2 required.*write lambda: Linear\(...\)"):
        Pipeline(forward.model(nn.Linear)).init(0)


class Parts(pipes.Linear):
    """Returns more than one thing."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(self.layer(x), x)


@pytest.mark.parametrize(
    ("make", "outputs"),
    [
        (lambda y, x: (y, x), ("outputs", "more")),
        (lambda y, x: [y, x, 3], ("outputs", "more")),
        (lambda y, x: {"logits": y, "rest": x}, {"logits": "outputs", "rest": "more"}),
        (lambda y, x: types.SimpleNamespace(logits=y, rest=x), {"logits": "outputs", "rest": "more"}),
    ],
)
def test_parts_of_what_a_model_returns_have_names(make, outputs):
    """Each part is a value of its own, by position or by name."""

    @stage(writes=())
    def look(more, outputs):
        assert more.shape == (6, 4)
        assert outputs.shape == (6, 3)

    model = forward.model(lambda: Parts(make), outputs=outputs)
    pipe = Pipeline(model, look, loss.cross_entropy(), backward.gradients(), update.sgd(0.1))
    plain = Pipeline(forward.model(pipes.Linear), loss.cross_entropy(), backward.gradients(), update.sgd(0.1))
    testing.same(pipe.step(pipe.init(0), BATCH)[0].params, plain.step(plain.init(0), BATCH)[0].params)


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        (
            "outputs",
            r"'loss.cross_entropy' failed.*'outputs' is a tuple of 2.*forward.model\(..., outputs=...\)",
        ),
        (("a", "b", "outputs"), r"returns a tuple of 2, which has no parts a, b, outputs"),
        ({"logit": "outputs"}, "returns a tuple of 2, which has no 'logit'"),
    ],
)
def test_parts_that_are_not_there_are_said(outputs, said):
    """What does not fit is refused with what the module returns."""
    with pytest.raises(StageError, match=said):
        step(forward.model(lambda: Parts(lambda y, x: (y, x)), outputs=outputs))


def test_a_model_may_be_called_again():
    """Two calls of one module are those of the loop by hand, their buffers one after the other."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    model = forward.model(module)
    joined = loss.function(lambda outputs, second, targets: nn.functional.cross_entropy(outputs + second, targets))
    pipe = Pipeline(model, model.again(inputs="more", outputs="second"), joined, backward.gradients(), update.sgd(0.1))
    batch = {**BATCH, "more": torch.randn(6, 4)}
    after, _ = testing.pure(pipe.step, pipe.init(0), batch)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    nn.functional.cross_entropy(module(batch["inputs"]) + module(batch["more"]), batch["targets"]).backward()
    optimizer.step()
    made = {**after.params, **after.buffers}
    testing.same({name: made[name] for name in module.state_dict()}, dict(module.state_dict()), 1e-6)
    assert [m.name for m in pipe.models] == ["forward.model"]


def test_modules_are_made_outside_of_what_is_keyed():
    """A State of another pipeline is trained as its own: making the module late draws nothing and counts nothing."""
    pipe, other = (
        Pipeline(forward.model(lambda: models.mlp(4, 8, 3, dropout=0.5)), loss.cross_entropy(), backward.gradients())
        for _ in range(2)
    )
    state = pipe.init(0)
    expected = pipe.step(state, BATCH)[1]
    testing.same([other.step(state, BATCH)[1] for _ in range(2)], [expected] * 2)


def test_numbers_keep_their_dtype():
    """A 0-d parameter stays float32, though hyperparameters are float64."""

    class Scaled(pipes.Linear):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            return self.layer(x) * self.scale

    pipe = Pipeline(forward.model(Scaled), loss.cross_entropy(), backward.gradients(), update.adamw(0.1))
    testing.keeps_shapes(pipe, pipe.init(0), BATCH)


def test_a_tensor_that_a_module_holds_is_not_written_into():
    """One that is no buffer is refused by the call that writes into it, eager and compiled."""

    class Holds(pipes.Linear):
        def __init__(self):
            super().__init__()
            self.seen = torch.zeros(3)

        def forward(self, x):
            y = self.layer(x)
            self.seen.add_(y.detach().mean(0))
            return y - self.seen

    pipe = Pipeline(forward.model(Holds), loss.cross_entropy(), backward.gradients(), update.sgd(0.1))
    for step in (pipe.step, pipe.compile(backend=TRACED)):
        with pytest.raises(StageError, match=r"writes into 'held.0' in place.*use register_buffer\(\)"):
            step(pipe.init(0), BATCH)


# -- modules that change their own tensors


class Kept(nn.Module):
    """A layer, a buffer and a frozen copy of the layer; what its forward does with them differs."""

    def __init__(self):
        super().__init__()
        self.layer, self.teacher = nn.Linear(4, 3), nn.Linear(4, 3).requires_grad_(False)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("queue", torch.zeros(8, 3))
        self.register_buffer("at", torch.zeros((), dtype=torch.int64))


class Assigns(Kept):
    def forward(self, x):
        y = self.layer(x)
        self.mean = 0.9 * self.mean + 0.1 * y.detach().mean(0)
        return y - self.mean


class Writes(Kept):
    def forward(self, x):
        y = self.layer(x)
        self.mean.mul_(0.9).add_(y.detach().mean(0), alpha=0.1)
        return y - self.mean


class Queues(Kept):
    def forward(self, x):
        y = self.layer(x)
        outputs = y + self.queue.mean(0)
        self.queue[(self.at + torch.arange(len(y))) % 8] = y.detach()
        self.at += len(y)
        return outputs


class Follows(Kept):
    @torch.no_grad()
    def follow(self):
        for teacher, own in zip(self.teacher.parameters(), self.layer.parameters(), strict=True):
            teacher.mul_(0.9).add_(own, alpha=0.1)

    def forward(self, x):
        self.follow()
        return self.layer(x) - self.teacher(x)


@pytest.mark.parametrize("route", ["functional", "tape"])
@pytest.mark.parametrize("kind", [Assigns, Writes, Queues, Follows])
def test_modules_that_change_their_tensors(kind, route):
    """Buffers written in place or assigned anew, and teachers inside, are those of the loop by hand; State stays."""
    torch.manual_seed(0)
    module = kind()
    batch = {"inputs": torch.randn(6, 4), "targets": torch.arange(6) % 3}
    pipe = Pipeline(forward.model(module), loss.cross_entropy(), backward.gradients(route=route), update.sgd(0.1))
    states = {way: pipe.init(0) for way in ("eager", "compiled")}
    compiled = pipe.compile(backend=TRACED, donate=False)
    by_hand.train(module, [batch] * 3, torch.optim.SGD(module.layer.parameters(), lr=0.1))
    for _ in range(3):
        states["eager"], _ = testing.pure(pipe.step, states["eager"], batch)
        states["compiled"], _ = testing.pure(compiled, states["compiled"], batch)
    for state in states.values():
        made = {**state.params, **state.buffers}
        testing.same({name: made[name] for name in module.state_dict()}, dict(module.state_dict()), 1e-6)


class Renormed(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(5, 3, max_norm=1.0)

    def forward(self, x):
        return self.words(x)


class Assigned(Kept):
    def forward(self, x):
        self.teacher.weight.data = self.layer.weight.data
        return self.layer(x)


@pytest.mark.parametrize("route", ["functional", "tape"])
@pytest.mark.parametrize(
    ("kind", "inputs", "said"),
    [(Renormed, torch.arange(6) % 5, "writes into 'params.words.weight'"), (Assigned, torch.randn(6, 4), ".data")],
)
def test_what_would_change_a_parameter_is_refused(kind, inputs, said, route):
    """A forward that writes into a trained parameter is refused by its name, and State is as it was."""
    gradients = backward.gradients(route=route)
    pipe = Pipeline(forward.model(kind), loss.cross_entropy(), gradients, update.sgd(0.1))
    state = pipe.init(0)
    before = state.clone()
    for step in (pipe.step, pipe.compile(donate=False)):
        with pytest.raises(PipeError, match=re.escape(said)):
            step(state, {"inputs": inputs, "targets": torch.arange(6) % 3})
    testing.same(state.tree, before.tree)


class Backboned(nn.Module):
    """A head on a part that came in eval mode, as a backbone of from_pretrained() does."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 64), nn.BatchNorm1d(64), nn.Dropout(0.5)).eval()
        self.head = nn.Linear(64, 3)

    def forward(self, x):
        return self.head(self.backbone(x))


@pytest.mark.parametrize("built", [Backboned, Backboned()])
def test_parts_in_eval_mode_train_where_that_is_said(built):
    """train=True is model.train() by hand; parts stay in eval mode with a warning when training begins, once, or where
    train=False says so; a module that came so as a whole trains as a whole."""
    whole = Backboned().eval()
    for train, of, warned, trains in (
        (None, built, True, False), (True, built, False, True),
        (False, built, False, False), (None, whole, False, True),
    ):  # fmt: skip
        model = forward.model(of, train=train)
        pipe = Pipeline(model, loss.cross_entropy(), backward.gradients(), update.sgd(0.0))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            state = pipe.init(0)
            pipe.evaluate(state, [BATCH])
            assert not caught
            for _ in range(2):
                state, metrics = pipe.step(state, BATCH)
            pipe.compile(backend=TRACED)(state.clone(), BATCH)
        assert [("'backbone' came in eval mode" in str(w.message)) for w in caught] == [True] * warned
        assert int(state.buffers["backbone.1.num_batches_tracked"]) == 2 * trains
        assert (pipe.step(state, BATCH)[1]["loss"] != metrics["loss"]) == trains
    with pytest.raises(WiringError, match=r"frozen=True.*leave out train="):
        forward.model(built, frozen=True, train=False)


def quantized():
    """torch.ao's default net for quantization-aware training: its observers have shapes from a first call."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    net.qconfig = quantization.get_default_qat_qconfig("x86")
    return quantization.prepare_qat(net.train())


@pytest.mark.parametrize("way", [{"compile": False}, {"backend": TRACED}])
@pytest.mark.filterwarnings("ignore")
def test_observers_get_their_shapes_by_a_look(way, tmp_path):
    """Quantization-aware training is that of the loop by hand, with what it observed, and is resumed; the instance is
    as it was."""
    x, y = torch.randn(64, 4), torch.arange(64) % 3
    net, hand = quantized(), quantized()
    optimizer = torch.optim.SGD(hand.parameters(), 0.1)
    for _ in range(2):
        for a, b in zip(x.split(8), y.split(8), strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(hand(a), b).backward()
            optimizer.step()
    pipe = Pipeline(load.batches((x, y), size=8, shuffle=False), forward.model(net, carry=()), loss.cross_entropy(),
                    backward.gradients(), update.sgd(0.1))  # fmt: skip
    with checkpoint.Saver(tmp_path) as saver:
        for report in fit(pipe, epochs=2, validate=(x, y), **way):
            if report.epoch == 1:
                saver.offer(report, now=True)
    testing.same(report.state.params, dict(hand.named_parameters()), 1e-5)
    testing.same(report.state.buffers, dict(hand.named_buffers()), 1e-5)
    testing.same(net.state_dict(), quantized().state_dict())
    carrying = pipe.replace("forward.model", forward.model(quantized(), carry="*"))
    *_, carried = fit(carrying, epochs=1, validate=[{"inputs": x, "targets": y}] * 2, **way)
    hand = pipe.module(carried.state)
    losses = [nn.functional.cross_entropy(hand(x), y).item() for _ in range(2)]
    assert carried.validate["loss"] == pytest.approx(sum(losses) / 2, abs=1e-5)
    saved = checkpoint.newest(tmp_path).saved
    *_, resumed = fit(pipe, epochs=2, state=saved.restore(pipe), start=saved.start, compile=False)
    testing.same(resumed.state.params, report.state.params, 1e-6)


FIRST = {
    "ones": (lambda x, seen: torch.ones(4) if seen is None else seen, True),
    "the last": (lambda x, seen: x.mean(0), True),
    "halves": (lambda x, seen: torch.ones(4) if seen is None else seen / 2, False),
    "a mean": (lambda x, seen: x.mean(0) if seen is None else seen + 0.1 * (x.mean(0) - seen), False),
    "a minimum": (lambda x, seen: x.amin(0) if seen is None else torch.minimum(x.amin(0), seen), False),
}


@pytest.mark.parametrize("kind", FIRST)
def test_shapes_of_a_first_call_are_taken_where_that_changes_nothing(kind):
    """What a buffer is after a first call is taken before the first step where that then leaves the same as by hand;
    else the step is refused. A module that has an empty buffer needs no batch."""
    value, fits = FIRST[kind]

    class Net(nn.Linear):
        def __init__(self):
            super().__init__(4, 3)
            self.register_buffer("seen", torch.tensor([]))

        def forward(self, x):
            if self.training:
                self.seen = value(x.detach(), self.seen if self.seen.numel() else None)
            return super().forward(x) + self.seen.sum()

    data = {"inputs": torch.randn(6, 4), "targets": torch.arange(6) % 3}
    pipe = Pipeline(load.batches(data, size=6), forward.model(Net), loss.cross_entropy(), *REST)
    state = pipe.init(0)
    if fits:
        hand = Net()
        for _ in range(2):
            state, _ = pipe.step(state, data)
            hand(data["inputs"])
            testing.same(state.buffers["seen"], hand.seen)
    else:
        with pytest.raises(StageError, match=r"'seen' \(4,\).*call the module once on a batch"):
            pipe.step(state)
    Pipeline(forward.model(Net), loss.cross_entropy(), *REST).init(0)


@pytest.mark.parametrize("hook", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_on_parameters_are_refused(hook):
    """A hook that would never be called is refused by its parameter's name."""
    module = nn.Linear(4, 3)
    getattr(module.weight, hook)(lambda grad: None)
    pipe = Pipeline(forward.model(module), loss.cross_entropy(), backward.gradients(), update.sgd(0.1))
    with pytest.raises(WiringError, match="parameter 'weight' has a hook"):
        pipe.init(0)
