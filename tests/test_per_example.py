"""A gradient for each sample, what is made of them, and what they tell."""

import warnings
import zlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from pipeline import Pipeline, backward, evaluate, forward, loss, models, random, stage, testing, update
from pipeline.draws import keyed
from pipeline.errors import ConfigError, StageError, WiringError
from pipeline.stage import Stage
from tests import pipes, strategies
from tests.pipes import TRACED

EACH = backward.gradients(per_example=True)
BATCH = {"inputs": torch.randn(6, 4), "targets": torch.tensor([0, 1, 2, -100, 1, 0])}


def capturing(*stages):
    """A pipeline, and a dict of what its last step computed."""
    seen = {}

    def capture(params, grads, outputs, loss):
        seen.update(grads=grads, outputs=outputs, loss=loss)
        return params

    return Pipeline(*stages, Stage("capture", capture, writes=("params",))), seen


def looped(module, state, batch, dim=1):
    """The gradients, outputs and losses of samples one by one, by torch's own autograd, and what counts of each."""
    salt, made = zlib.crc32(b"forward.model"), []
    for i in range(len(batch["targets"])):
        leaves = {k: p.clone().requires_grad_() for k, p in state.params.items()}
        with keyed(random.key(state["seed"], i), state.step, salt):
            outputs = functional_call(module, {**state.buffers, **leaves}, (batch["inputs"][i : i + 1],))
        targets = batch["targets"][i : i + 1]
        count = int((targets != -100).sum())
        total = nn.functional.cross_entropy(outputs.movedim(dim, 1), targets, reduction="sum")
        grads = torch.autograd.grad(total / max(count, 1), [*leaves.values()])
        made.append((dict(zip(leaves, grads, strict=True)), outputs.detach(), total.item(), count))
    grads, outputs, totals, counts = zip(*made, strict=True)
    return {k: torch.stack([g[k] for g in grads]) for k in grads[0]}, torch.cat(outputs), totals, counts


def assert_looped(module, seed, batch, dim=1):
    """A per-example backward computes what the loop over samples does."""
    stages = forward.model(module), loss.cross_entropy(dim=dim), evaluate.accuracy(dim=dim), EACH
    pipe, seen = capturing(*stages)
    state = pipe.init(seed)
    after, _ = pipe.step(state, batch)
    grads, outputs, totals, counts = looped(module, state, batch, dim)
    testing.same(seen["grads"], grads, 1e-6)
    testing.same(seen["outputs"], outputs, 1e-6)
    assert seen["loss"].item() == pytest.approx(sum(totals) / max(sum(counts), 1), abs=1e-6)
    assert after.memory[EACH.name]["sum"].item() == pytest.approx(sum(totals), abs=1e-5)
    assert after.memory[EACH.name]["weight"] == sum(counts)
    assert after.memory["evaluate.accuracy"]["count"] == sum(counts)
    right = (outputs.argmax(dim) == batch["targets"]).sum()
    assert after.memory["evaluate.accuracy"]["sum"] == right


@given(strategies.widths(), strategies.batches(), st.sampled_from([0.0, 0.5]), strategies.seeds, st.data())
def test_they_are_those_of_a_loop_over_the_samples(widths, batch, dropout, seed, data):
    """Gradients, outputs, loss and metrics are those of the samples one by one, with draws of their own, and ignored
    targets count for nothing."""
    ignored = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(batch["targets"]),
                                              max_size=len(batch["targets"]))))  # fmt: skip
    batch = {**batch, "targets": torch.where(ignored, -100, batch["targets"])}
    torch.manual_seed(seed)
    assert_looped(models.mlp(*widths, dropout=dropout), seed, batch)


def normalised():
    """A convnet whose one BatchNorm is in eval mode."""
    fixed = nn.BatchNorm2d(4).eval()
    head = nn.Dropout(0.3), nn.Flatten(), nn.Linear(4 * 36, 3)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), fixed, *head)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x):
        return self.head(self.rnn(x.view(-1, 2, 2))[0][:, -1])


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_those_of_other_models():
    """The same with GroupNorm, a BatchNorm in eval mode, recurrence, attention and dropout."""
    assert_looped(normalised(), 1, {"inputs": torch.randn(5, 2, 6, 6), "targets": torch.arange(5) % 3})
    assert_looped(Recurrent(), 1, BATCH)
    tokens = torch.randint(13, (5, 8))
    targets = tokens.roll(1, 1).where(torch.rand(5, 8) > 0.3, -100)
    transformer = models.transformer(13, width=8, heads=2, depth=1, context=8, dropout=0.2)
    assert_looped(transformer, 2, {"inputs": tokens, "targets": targets}, dim=-1)
    transformer = models.transformer(13, width=8, heads=2, depth=1, context=8)
    with warnings.catch_warnings(action="error"):  # of what torch would call once for each sample
        assert_looped(transformer, 2, {"inputs": tokens, "targets": targets}, dim=-1)


@pytest.mark.parametrize("weighs", [True, False])
def test_their_mean_is_the_gradient_of_the_batch(weighs):
    """Where all samples weigh alike and nothing is drawn, a step on the mean is an ordinary step, of any part of a
    pipeline and by any loss: values from before another backward are each sample's too."""
    batch = {**BATCH, "targets": torch.arange(6) % 3}
    criterion = loss.function(nn.CrossEntropyLoss())
    if weighs:
        criterion = loss.cross_entropy().rename(**{"loss.weight": "b_loss.weight"}).named("b_loss")

    @stage(writes="doubled")
    def double(outputs, inputs):
        return inputs * outputs.sum(1, keepdim=True).detach()

    def pipe(second, *more):
        return Pipeline(
            forward.model(lambda: pipes.Linear()),
            double,
            loss.cross_entropy(),
            backward.gradients(),
            update.sgd(0.1),
            forward.model(lambda: pipes.Linear(), inputs="doubled", outputs="b", params="b_params", name="second"),
            criterion.rename(outputs="b", loss="b_loss"),
            second(of="b_loss", wrt="b_params", writes="b_grads", name="b"),
            *(s.rename(params="b_params", grads="b_grads") for s in more),
            update.adam().rename(params="b_params", grads="b_grads"),
        )

    plain = pipe(backward.gradients)
    mean = pipe(lambda **o: backward.gradients(per_example=True, **o), update.mean_gradients())
    a, b = (p.step(p.init(0), batch) for p in (plain, mean))
    testing.same(a[0].tree, b[0].tree, 1e-5)
    testing.same(a[1], b[1], 1e-6)


@st.composite
def examples(draw):
    """Parameters and gradients of some samples, one of them perhaps of zeros."""
    params, count = draw(strategies.parameters()), draw(st.integers(1, 6))
    grads = {k: draw(strategies.normals((count, *p.shape), torch.float64)) for k, p in params.items()}
    scales = torch.tensor(draw(st.lists(st.sampled_from([0.0, 0.1, 1.0, 30.0]), min_size=count, max_size=count)))
    return params, {k: g * scales.view(-1, *[1] * (g.ndim - 1)) for k, g in grads.items()}


def run(made, params, grads, step=0):
    hyper = {k: torch.tensor(float(v), dtype=torch.float64) for k, v in made.hyper.items()}
    values = {"params": params, "grads": grads, "seed": torch.tensor(3), "step": torch.tensor(step)}
    return testing.pure(made.run, values, hyper, None)[0]["grads"]


@given(examples(), st.floats(0.01, 10.0))
def test_clipping_is_the_formula(case, limit):
    """The mean of g / max(1, |g| / limit), as Abadi et al. (2016) have it, with the norm over all parameters."""
    params, grads = case
    count = len(next(iter(grads.values())))
    expected = {k: torch.zeros_like(p) for k, p in params.items()}
    for i in range(count):
        norm = torch.cat([g[i].flatten() for g in grads.values()]).norm()
        for k in params:
            expected[k] += grads[k][i] / max(1.0, norm.item() / limit) / count
    testing.same(run(update.clip_per_example(limit), params, grads), expected, 1e-10)
    testing.same(run(update.private(limit, 0.0), params, grads), expected, 1e-10)


def test_private_noise_is_that_of_the_formula():
    """The noise on the sum has the deviation noise * limit, is another one in each entry and step, and the same one
    twice."""
    params = {"w": torch.zeros(200, 100), "b": torch.zeros(200, 100)}
    grads = {k: torch.randn(8, 200, 100) for k in params}
    clipped = run(update.clip_per_example(0.5), params, grads)

    def noise(step):
        made = run(update.private(0.5, 3.0), params, grads, step)
        return {k: (made[k] - clipped[k]) * 8 / (3.0 * 0.5) for k in params}

    first, second = noise(0), noise(1)
    for a, b in ((first["w"], first["b"]), (first["w"], second["w"]), (first["b"], second["b"])):
        assert torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].abs() < 0.03
    for z in (*first.values(), *second.values()):
        assert abs(z.mean()) < 0.03  # 4 deviations of a mean of 20,000
        assert abs(z.std() - 1) < 0.02
        assert abs((z**4).mean() - 3) < 0.3
    testing.same(noise(1), second)


@given(st.lists(examples(), min_size=1, max_size=3))
def test_the_noise_scale_is_its_definition(cases):
    """The sums are those of the trace of the gradients' covariance, and of the squared mean less what of it is
    noise."""
    metric = evaluate.noise_scale()
    traces, squares, totals = [], [], metric.init()
    for params, grads in cases:
        flat = torch.cat([g.flatten(1) for g in grads.values()], 1)
        totals = {k: v + totals[k] for k, v in metric(params, grads).items()}
        if len(flat) > 1:
            traces.append(flat.T.cov().trace() if flat.shape[1] > 1 else flat.var())
            squares.append(flat.mean(0).square().sum() - traces[-1] / len(flat))
    zero = torch.zeros((), dtype=torch.float64)
    testing.same(totals, {"signal": sum(squares, zero), "noise": sum(traces, zero)}, 1e-8)


def test_norms_are_reported_of_samples_and_of_batches():
    """The mean norm and its root mean square, over what the backward gives; evaluation has none."""
    stages = forward.model(lambda: pipes.Linear()), loss.cross_entropy()
    pipe = Pipeline(*stages, EACH, evaluate.gradient_norm(), update.mean_gradients(), update.sgd(0.1))
    plain = Pipeline(*stages, backward.gradients(), evaluate.gradient_norm(), update.sgd(0.1))
    state = pipe.init(0)
    metrics, of_batches = (p.step(state, BATCH)[1] for p in (pipe, plain))
    grads, *_ = looped(pipes.Linear(), state, BATCH)
    norms = torch.cat([g.flatten(1) for g in grads.values()], 1).norm(dim=1)
    assert metrics["gradient norm"].item() == pytest.approx(norms.mean().item(), rel=1e-5)
    assert metrics["gradient norm/root mean square"].item() == pytest.approx(norms.square().mean().sqrt().item())
    whole = torch.cat([g.mean(0).flatten() for g in grads.values()]).norm() * 6 / 5  # of 6 targets, 5 count
    assert of_batches["gradient norm"].item() == pytest.approx(whole.item(), rel=1e-5)
    assert list(pipe.evaluate(state, BATCH)) == ["loss"]


def trained(*updates, model=lambda: models.mlp(4, 5, 3, dropout=0.5)):
    return Pipeline(
        forward.model(model),
        loss.cross_entropy(),
        evaluate.accuracy(),
        EACH,
        evaluate.gradient_norm(),
        evaluate.noise_scale(),
        *updates,
        update.sgd(0.1, momentum=0.9),
    )


@pytest.mark.parametrize("made", [update.clip_per_example(0.5), update.private(0.5, 1.0), update.mean_gradients()])
def test_they_keep_the_laws(made):
    """A step is pure, keeps shapes, and maps over States."""
    pipe = trained(made)
    testing.lawful(pipe, pipe.init(0), BATCH)


@pytest.mark.parametrize("model", [lambda: models.mlp(4, 5, 3, dropout=0.5), Recurrent])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_they_compile_as_one_graph(model):
    """The compiled step is the plain one, noise among it."""
    pipe = trained(update.private(0.5, 1.0), model=model)
    step = pipe.compile(backend=TRACED)
    testing.compiled_equals_eager(step, pipe.init(0), [BATCH, BATCH])
    assert len(step.report.graphs) == 1


class Running(pipes.Linear):
    """With a mean of what it saw, written in place or assigned."""

    def __init__(self, assigns):
        super().__init__()
        self.assigns = assigns
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        y = self.layer(x)
        self.calls += 1
        if self.assigns is True:
            self.mean = 0.9 * self.mean + 0.1 * y.detach().mean(0)
        elif self.assigns is False:
            self.mean.mul_(0.9).add_(0.1 * y.detach().mean(0))
        return y - self.mean


@pytest.mark.parametrize(
    "module",
    [
        lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)),
        lambda: nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.BatchNorm2d(1), nn.Flatten()),
        lambda: Running(True),
        lambda: Running(False),
    ],
)
def test_buffers_by_the_batch_are_refused(module):
    """A model that writes what depends on other samples has no gradient for each; the line names it and says what to
    write."""
    pipe = trained(update.mean_gradients(), model=module)
    with pytest.raises(StageError, match=r"'forward.model' has no gradient for each sample.*use nn.GroupNorm"):
        pipe.step(pipe.init(0), BATCH)


def test_buffers_of_all_samples_are_kept():
    """A count of calls is one more after a step, as it is without gradients for each sample."""
    pipe = trained(update.mean_gradients(), model=lambda: Running(None))
    assert pipe.step(pipe.init(0), BATCH)[0].buffers["calls"] == 1


def test_what_does_not_go_with_them_is_refused():
    """Parts, the tape, and stages that remember are refused where they are written."""
    with pytest.raises(ConfigError, match="accumulate=2 parts: leave one"):
        backward.gradients(per_example=True, accumulate=2)
    with pytest.raises(WiringError, match="leave out route='tape'"):
        backward.gradients(per_example=True, route="tape")
    remembers = Stage("queue", lambda outputs, memory: memory, init=lambda: torch.zeros(()))
    stages = forward.model(lambda: pipes.Linear()), loss.cross_entropy()
    with pytest.raises(WiringError, match=r"'queue' remembers something.*put it after the backward"):
        Pipeline(*stages, remembers, EACH, update.mean_gradients(), update.sgd(0.1))
    Pipeline(*stages, EACH, remembers, update.mean_gradients(), update.sgd(0.1))


@pytest.mark.parametrize("rule", [update.sgd(0.1), update.adam(), update.clip_norm(1.0)])
def test_a_rule_that_takes_one_gradient_is_not_given_many(rule):
    """The line names the rule and what to put before it."""
    more = [] if "params" in rule.writes else [update.sgd(0.1)]
    pipe = Pipeline(forward.model(lambda: pipes.Linear()), loss.cross_entropy(), EACH, rule, *more)
    with pytest.raises(StageError, match=r"'update\.\w+' makes 'params/.*put update.clip_per_example\(\)"):
        pipe.step(pipe.init(0), BATCH)


@pytest.mark.parametrize(
    "made", [update.clip_per_example(1.0), update.private(1.0, 1.0), update.mean_gradients(), evaluate.noise_scale()]
)
def test_what_takes_many_is_not_given_one(made):
    """The line says how to have a gradient for each sample."""
    stages = forward.model(lambda: pipes.Linear()), loss.cross_entropy(), backward.gradients()
    pipe = Pipeline(*stages, made, update.sgd(0.1))
    with pytest.raises(StageError, match=r"takes a gradient for each sample.*gradients\(per_example=True\)"):
        pipe.step(pipe.init(0), BATCH)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_limits_out_of_range_are_refused(bad):
    """A negative, infinite or undefined limit raises a ConfigError."""
    for make in (update.clip_per_example, lambda x: update.private(x, 1.0), lambda x: update.private(1.0, x)):
        with pytest.raises(ConfigError, match=r"update\.\w+: \w+=(-1.0|nan|inf) is not"):
            make(bad)


def test_other_failures_keep_their_words():
    """What torch can't map over samples is said with the stage and the line."""

    class Looks(pipes.Linear):
        def forward(self, x):
            y = self.layer(x)
            return y if y.sum() > 0 else -y

    pipe = trained(update.mean_gradients(), model=Looks)
    with pytest.raises(StageError, match=r"'forward.model' failed on inputs .*test_per_example.py:\d+"):
        pipe.step(pipe.init(0), BATCH)
