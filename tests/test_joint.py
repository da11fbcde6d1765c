"""Several models under one backward, and parameters that no gradient reaches: as torch's own loop trains them."""

import copy
import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from pipeline import Pipeline, backward, checkpoint, evaluate, fit, forward, load, loss, place, stage, sweep, update
from pipeline.errors import StageError, WiringError
from pipeline.programs.loss_check import _moved
from tests.pipes import TRACED

torch.manual_seed(0)
X = torch.randn(60, 4)
Y = (X.sum(1) > 0).long()
WAYS = ["uncompiled", TRACED, "native", "one step a call", "resumed", "a member of a sweep"]
RULES = {
    "sgd": (update.sgd(0.1, momentum=0.9, weight_decay=0.01), functools.partial(
        torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01)),
    "adamw": (update.adamw(0.01), functools.partial(torch.optim.AdamW, lr=0.01)),
}  # fmt: skip


def run(pipe, way, tmp_path, epochs=2):
    """The State after training, however that is done."""
    if way == "resumed":
        *_, report = fit(pipe, epochs=1, compile=False)
        with checkpoint.Saver(tmp_path / way) as saver:
            saver.offer(report, now=True)
        saved = checkpoint.newest(tmp_path / way).saved
        *_, report = fit(pipe, epochs=epochs, compile=False, state=saved.restore(pipe), start=(1, 0))
    elif way == "a member of a sweep":
        runs = sweep(pipe, seeds=2, order="shared")
        *_, report = fit(runs, epochs=epochs, compile=False)
        return runs.member(report.state, 0)
    else:
        options = {
            "uncompiled": {"compile": False},
            TRACED: {"backend": way},
            "one step a call": {"backend": TRACED, "steps_per_call": 1},
        }
        *_, report = fit(pipe, epochs=epochs, **options.get(way, {}))
    return report.state


def by_hand(modules, optimizer, value, epochs=2, clip=None):
    """The loop of the tutorial over several modules: `value(batch)` is the loss."""
    own = [p for m in modules for p in m.parameters()]
    optimizer = optimizer(own)
    for _ in range(epochs):
        for i in range(0, len(X), 16):
            optimizer.zero_grad()
            value(X[i : i + 16], Y[i : i + 16]).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(own, clip)
            optimizer.step()


def close(kept, module):
    for name, p in module.named_parameters():
        torch.testing.assert_close(kept[name], p.detach(), rtol=1e-5, atol=1e-5)


class Kendall(nn.Module):
    """Weights of two tasks, which are learned: Kendall et al. (2018)."""

    def __init__(self):
        super().__init__()
        self.log_variances = nn.Parameter(torch.zeros(2))

    def forward(self, outputs, targets):
        parts = torch.stack([F.cross_entropy(outputs, targets), outputs.square().mean()])
        return ((-self.log_variances).exp() * parts + self.log_variances).sum()


def both(*ways):
    """Each way with each rule. The native backend's graph is the traced one, whose steps test_backends compiles."""
    thorough = {("native", "sgd"), ("native", "adamw")}
    cases = [(way, rule) for way in ways for rule in RULES]
    marked = [pytest.param(*case, marks=[pytest.mark.thorough] if case in thorough else []) for case in cases]
    return pytest.mark.parametrize(("way", "rule"), marked)


@both(*WAYS)
def test_all_that_a_loss_depends_on_is_trained(rule, way, tmp_path):
    """An encoder, a head, and a loss with parameters under one loss, clipped together, in parts."""
    encoder, head, weighing = nn.Linear(4, 8), nn.Sequential(nn.ReLU(), nn.Linear(8, 2)), Kendall()
    pipe = Pipeline(
        load.batches((X, Y), size=16, shuffle=False),
        forward.model(encoder, outputs="z", params="encoder", name="encoder"),
        forward.model(head, inputs="z", name="head"),
        loss.function(weighing),
        evaluate.accuracy(),
        backward.gradients(accumulate=2),
        evaluate.gradient_norm(),
        update.clip_norm(0.5),
        RULES[rule][0],
    )
    assert pipe["backward.gradients"].wrt == ()
    assert [s.wrt for s in pipe.stages if s.name == "backward.gradients"] == [("encoder", "params", "loss.Kendall")]
    state = run(pipe, way, tmp_path)
    plain = copy.deepcopy((encoder, head, weighing))
    by_hand(plain, RULES[rule][1], lambda x, y: plain[2](plain[1](plain[0](x)), y), clip=0.5)
    for name, module in zip(("encoder", "params", "loss.Kendall"), plain, strict=True):
        close(state[name], module)


class Heads(nn.Module):
    """A body, a head for each task, of which a batch has one, and a head of none."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 8)
        self.heads = nn.ModuleDict({k: nn.Linear(8, 2) for k in ("a", "b", "unused")})

    def forward(self, a=None, b=None):
        z = self.body(b if a is None else a).relu()
        return self.heads["b" if a is None else "a"](z)


@both("uncompiled", TRACED, "native")
def test_a_parameter_without_a_gradient_is_left_as_it_is(rule, way):
    """Tasks in turns: the head of the other task keeps its values, its memory and its count of steps."""
    module = Heads()
    batches = [{"a" if i % 3 else "b": X[16 * i : 16 * i + 16], "targets": Y[16 * i : 16 * i + 16]} for i in range(3)]
    steps = (loss.cross_entropy(), backward.gradients(), update.ema(0.5), RULES[rule][0])
    plain = copy.deepcopy(module)
    optimizer = RULES[rule][1](plain.parameters())
    for batch in batches * 2:
        optimizer.zero_grad()
        F.cross_entropy(plain(batch.get("a"), batch.get("b")), batch["targets"]).backward()
        optimizer.step()
    pipes = {task: Pipeline(forward.model(module, inputs={task: task}), *steps) for task in ("a", "b")}
    does = {task: own.step if way == "uncompiled" else own.compile(backend=way) for task, own in pipes.items()}
    state = pipes["a"].init(0)
    for batch in batches * 2:
        state, _ = does["a" if "a" in batch else "b"](state, batch)
    close(state.params, plain)
    if rule == "adamw":
        counts = state.memory["update.adamw"]["count"]
        steps = {k: int(optimizer.state[p]["step"]) if p in optimizer.state else 0 for k, p in plain.named_parameters()}
        assert {k: int(n) for k, n in counts.items()} == steps
        assert steps["heads.unused.weight"] == 0


def test_groups_and_averages_of_several_models():
    """A group's pattern begins with the model's name, and an average is of one model."""
    encoder, head = nn.Linear(4, 8), nn.Linear(8, 2)
    pipe = Pipeline(
        load.batches((X, Y), size=16, shuffle=False),
        forward.model(encoder, outputs="z", name="encoder"),
        forward.model(head, inputs="z", params="head", name="head"),
        loss.cross_entropy(),
        backward.gradients(),
        update.groups({"head.*": update.adamw(0.01)}, otherwise=update.sgd(0.1)),
        update.ema(0.5, of="head"),
    )
    *_, report = fit(pipe, epochs=1, compile=False)
    plain = copy.deepcopy((encoder, head))
    average = torch.optim.swa_utils.AveragedModel(
        plain[1], multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
    )
    average.update_parameters(plain[1])
    rules = torch.optim.SGD(plain[0].parameters(), 0.1), torch.optim.AdamW(plain[1].parameters(), 0.01)
    for i in range(0, len(X), 16):
        F.cross_entropy(plain[1](plain[0](X[i : i + 16])), Y[i : i + 16]).backward()
        for rule in rules:
            rule.step()
            rule.zero_grad()
        average.update_parameters(plain[1])
    close(report.state.params, plain[0])
    close(report.state["head"], plain[1])
    close(report.state["ema"], average.module)


MODEL = forward.model(lambda: nn.Linear(4, 2))
ENCODER = forward.model(nn.Linear(4, 4), outputs="z", params="encoder", name="encoder")
HEAD = forward.model(nn.Linear(4, 2), inputs="z", params="head", name="head")
LOSS = loss.cross_entropy()
LOAD = load.batches((X, Y), size=16)


TWO = backward.gradients(of="own"), backward.gradients(name="b")


@stage(writes="z")
def detached(z):
    return z.detach()


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ((ENCODER, MODEL, LOSS), "model of stage 'encoder' is never trained: no loss with a backward depends on it"),
        (
            (MODEL, loss.function(lambda inputs: F.mse_loss(inputs, inputs), "mse")),
            "differentiates 'loss', which does not depend on any model",
        ),
        ((ENCODER, HEAD, LOSS, backward.gradients(wrt="heads")), "does not depend on 'heads'; did you mean 'head'"),
        ((ENCODER, HEAD, LOSS, backward.gradients(wrt="head")), "'encoder' is never trained"),
        ((ENCODER, HEAD, LOSS, backward.gradients(), backward.gradients(name="b")), "one backward gives the gradients"),
        ((ENCODER, HEAD, LOSS, backward.gradients(), update.sgd().rename(params="head")), r"update.groups\({'head"),
        ((MODEL, ENCODER, HEAD.again(inputs="z", name="x"), LOSS), "calls a model again"),
        ((MODEL, LOSS, loss.function(lambda outputs: outputs.mean(), "own")), "'own' both write 'loss', and nothing"),
        (
            (MODEL, LOSS, loss.function(lambda outputs: outputs.mean()).rename(loss="own"), *TWO),
            "no stage since the backward before it writes",
        ),
    ],
)
def test_what_would_not_be_trained_is_refused(stages, message):
    """By name, when the pipeline is built."""
    rest = () if any(isinstance(s, backward.Gradients) for s in stages) else (backward.gradients(),)
    last = () if any("params" in s.writes or "head" in s.writes for s in stages) else (update.sgd(0.1),)
    with pytest.raises(WiringError, match=message):
        Pipeline(LOAD, *stages, *rest, *last)


def test_what_no_gradient_reaches_is_refused_before_the_first_step():
    """By name, where that needs data."""
    pipe = Pipeline(LOAD, ENCODER, detached, HEAD, LOSS, backward.gradients(), update.sgd(0.1))
    for compile in (False, True):
        with pytest.raises(StageError, match=r"'encoder' is not trained: .* in encoder; .*frozen=True"):
            next(fit(pipe, epochs=1, compile=compile))
    frozen = forward.model(nn.Linear(4, 4), outputs="z", params="encoder", name="encoder", frozen=True)
    assert fit(pipe.replace("encoder", frozen), epochs=1, compile=False)
    factory = forward.model(lambda: nn.Linear(4, 4), outputs="aside", params="aside", name="aside")
    with pytest.raises(WiringError, match="'aside' is never trained"):
        Pipeline(LOAD, factory, MODEL, LOSS, backward.gradients(), update.sgd(0.1)).init()


HELD = nn.Linear(2, 2)


@stage(writes="loss")
def penalized(outputs, targets):
    x = targets.float().requires_grad_()
    [slope] = torch.autograd.grad((x * x).sum(), x, create_graph=True)
    return F.cross_entropy(outputs, targets) + 0 * slope.sum()


def test_what_a_stage_holds_is_trained_or_refused_before_the_first_step():
    """Parameters in a closure have no place in State; what a stage differentiates by itself is its own."""
    for held in (lambda outputs, targets: F.cross_entropy(HELD(outputs), targets),
                 lambda outputs, targets: F.cross_entropy(outputs, targets) * (1 + HELD.bias.sum())):  # fmt: skip
        pipe = Pipeline(LOAD, MODEL, loss.function(held, "held"), backward.gradients(), update.sgd(0.1))
        for run in (pipe, sweep(pipe, seeds=2)):
            with pytest.raises(StageError, match=r"'held' holds tensors that require gradients, .*forward.model"):
                next(fit(run, epochs=1, compile=False))
    HELD.requires_grad_(False)
    assert next(fit(pipe, epochs=1, compile=False))
    HELD.requires_grad_(True)
    assert next(fit(pipe.replace("held", penalized), epochs=1, compile=False))


def test_a_run_that_trains_nothing_is_refused():
    """By fit, which trains; without an update, or with one in evaluation alone."""
    for more in ((), (backward.gradients(),), (backward.gradients(), update.sgd(0.1).only("evaluation"))):
        pipe = Pipeline(LOAD, MODEL, LOSS, *more)
        with pytest.raises(WiringError, match=r"nothing trains the model of stage 'forward.model': put backward"):
            fit(pipe, epochs=1, compile=False).send(None)


@stage(writes="loss")
def root(outputs, targets):
    return F.cross_entropy(outputs, targets).sqrt()


@stage(writes="loss")
def contrast(outputs):
    return F.cross_entropy(outputs @ outputs.T, torch.arange(len(outputs)))


def masked(outputs, targets, mask):
    return (F.cross_entropy(outputs, targets, reduction="none") * mask).sum() / mask.sum()


def test_parts_that_count_alike_by_chance_or_are_too_small_do_not_hide_a_loss():
    """The first samples are tried, and then a whole batch, in more parts than one number."""
    mask = torch.tensor([1.0, 0.0] * 6 + [1.0] * 4)
    hardest = loss.function(lambda outputs: outputs.square().sum(1).topk(3).values.mean(), "hardest")
    data = {"inputs": X[:32], "targets": Y[:32], "mask": mask.repeat(2)}
    for made, parts in ((loss.function(masked), 2), (loss.function(masked), 3), (hardest, 3)):
        stages = MODEL, made, backward.gradients(accumulate=parts), update.sgd(0.1)
        with pytest.raises(StageError, match=f"'{made.name}' makes a loss .* leave out accumulate={parts}"):
            next(fit(Pipeline(load.batches(data, size=16, shuffle=False), *stages), epochs=1, compile=False))


@given(st.sampled_from([0.0, 1.0]), st.integers(1, 5))
def test_other_outputs_of_chances_are_chances(low, n):
    """Others may end a GPU's process."""
    x = torch.full((n, 3), low)
    assert ((_moved(x) >= 0) & (_moved(x) <= 1)).all()
    assert not torch.equal(_moved(x), x)
    assert not torch.equal(_moved(x - 1.5), x - 1.5)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_stage_with_a_memory_before_the_model_is_of_each_part(parts):
    """It sees the samples of its part, and the model what it makes of them."""

    @stage(writes="inputs", init=lambda: torch.zeros(()))
    def halved(inputs, memory):
        return inputs / 2, memory + len(inputs)

    stages = halved, MODEL, loss.cross_entropy(), backward.gradients(accumulate=parts), update.sgd(0.1)
    pipe = Pipeline(LOAD, *stages)
    plain = Pipeline(LOAD, MODEL, loss.cross_entropy(), backward.gradients(), update.sgd(0.1))
    batch = {"inputs": X[:16], "targets": Y[:16]}
    after, _ = pipe.step(pipe.init(0), batch)
    expected, _ = plain.step(plain.init(0), {**batch, "inputs": X[:16] / 2})
    torch.testing.assert_close(after.params, expected.params)
    assert after.memory["halved"] == 16


@pytest.mark.parametrize(("std", "precision"), [(0.0, "fp32"), (0.02, "bf16")])
def test_a_model_that_has_learned_nothing_does_not_hide_a_loss(std, precision):
    """If all samples have nearly the same loss at first, parts agree with any mean of them."""
    head = nn.Linear(4, 5, bias=False)
    nn.init.normal_(head.weight, std=std)
    stages = loss.function(masked), backward.gradients(accumulate=2), update.sgd(0.1)
    pipe = Pipeline(place.on("cpu", precision=precision), forward.model(head), *stages)
    batch = {"inputs": X[:16], "targets": Y[:16], "mask": torch.tensor([1.0] * 9 + [0.0] * 7)}
    with pytest.raises(StageError, match=r"'masked' makes a loss .* leave out accumulate=2"):
        pipe.step(pipe.init(0), batch)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (root, "stage 'root' makes a loss of .* not a mean over samples; say of what .*loss.weight.* or leave out"),
        (contrast, "compares samples; leave out accumulate=2"),
        (
            stage(writes="loss", name="total")(lambda outputs: outputs.square().sum()),
            "it is a sum; say so.*weight='sum'",
        ),
    ],
)
def test_a_loss_that_its_parts_do_not_make_is_refused(made, message):
    """By a step, compiled or not, and each time; and warned of where it is a mean over batches."""
    pipe = Pipeline(LOAD, MODEL, made, backward.gradients(accumulate=2), update.sgd(0.1))
    batch = {"inputs": X[:16], "targets": Y[:16]}
    for step in (pipe.step, pipe.step, pipe.compile(backend=TRACED)):
        with pytest.raises(StageError, match=message):
            step(pipe.init(0), batch)
    plain = pipe.replace("backward.gradients", backward.gradients())
    if made is contrast:
        assert next(fit(plain, epochs=1, compile=False))
    else:
        with pytest.warns(UserWarning, match="the mean of batches is not the mean of all samples"):
            next(fit(plain, epochs=1, compile=False))


@pytest.mark.parametrize("way", [{"compile": False}, {"backend": TRACED}])
def test_a_second_backward_of_what_was_computed_before_the_first(way):
    """A linear probe: by a loss of its own, on features that the other loss trains."""
    encoder, head, probe = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 2)
    pipe = Pipeline(
        load.batches((X, Y), size=16, shuffle=False),
        forward.model(encoder, outputs="z", params="encoder", name="encoder"),
        forward.model(head, inputs="z", params="head", name="head"),
        loss.cross_entropy(),
        backward.gradients(),
        update.sgd(0.1),
        detached,
        forward.model(probe, inputs="z", outputs="told", params="probe", name="probe"),
        stage(writes="own", name="own")(lambda told, targets: F.cross_entropy(told, targets)),
        backward.gradients(of="own", writes="slopes", name="second"),
        update.sgd(0.1).rename(grads="slopes").named("slowly"),
    )
    *_, report = fit(pipe, epochs=2, **way)
    plain = copy.deepcopy((encoder, head, probe))

    def both(x, y):
        z = plain[0](x)
        return F.cross_entropy(plain[1](z), y) + F.cross_entropy(plain[2](z.detach()), y)

    by_hand(plain, functools.partial(torch.optim.SGD, lr=0.1), both)
    for name, module in zip(("encoder", "head", "probe"), plain, strict=True):
        close(report.state[name], module)


@pytest.mark.parametrize("way", [{"compile": False}, {"backend": TRACED}])
def test_a_part_in_which_nothing_counts_is_none_of_the_whole(way):
    """Its mean is NaN, as are its gradients."""
    module, mask = nn.Linear(4, 1), torch.ones(60)
    mask[:8] = 0
    data = {"inputs": X, "targets": X[:, :1], "mask": mask}

    def mean(outputs, targets, mask):
        return ((outputs - targets).square().squeeze(1) * mask).sum() / mask.sum()

    stages = forward.model(module), loss.function(mean, weight=lambda mask: mask), backward.gradients(accumulate=2)
    pipe = Pipeline(load.batches(data, size=16, shuffle=False), *stages, update.sgd(0.1))
    [report] = fit(pipe, epochs=1, **way)
    plain = copy.deepcopy(module)
    optimizer = torch.optim.SGD(plain.parameters(), 0.1)
    for x, y, m in zip(*(t.split(16) for t in data.values()), strict=True):
        optimizer.zero_grad()
        mean(plain(x), y, m).backward()
        optimizer.step()
    close(report.state.params, plain)
    assert report.train["loss"] < 10


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_an_update_between_two_backwards_is_done_once(parts):
    """A critic and its average, and then what it judges, whatever the number of parts."""
    maker, judge = nn.Linear(4, 4), nn.Linear(4, 1)
    make = forward.model(maker, outputs="made", params="maker", name="maker")
    critic = forward.model(judge, inputs="made", outputs="score", params="judge", name="judge")
    pipe = Pipeline(
        load.batches({"inputs": X}, size=16, shuffle=False),
        make,
        critic,
        stage(writes="high", name="high")(lambda score: F.softplus(score).mean()),
        backward.gradients(of="high", wrt="judge", accumulate=parts, name="first"),
        update.adam(0.1).rename(params="judge").named("judged"),
        update.ema(0.5, of="judge"),
        make.again(outputs="anew"),
        critic.again(inputs="anew", outputs="scored"),
        stage(writes="low", name="low")(lambda scored: F.softplus(-scored).mean()),
        backward.gradients(of="low", wrt="maker", accumulate=parts, writes="slopes", name="second"),
        update.adam(0.1).rename(params="maker", grads="slopes").named("made better"),
    )
    *_, report = fit(pipe, epochs=2, compile=False)
    plain = copy.deepcopy((maker, judge))
    rules = [torch.optim.Adam(m.parameters(), 0.1) for m in plain]
    average = copy.deepcopy(plain[1])
    for x in [*X.split(16)] * 2:
        for rule, sign in ((rules[1], 1), (rules[0], -1)):
            rule.zero_grad()
            F.softplus(sign * plain[1](plain[0](x))).mean().backward()
            rule.step()
            for mean, new in zip(average.parameters(), plain[1].parameters(), strict=True):
                mean.data.lerp_(new.data, 0.5 if sign == 1 else 0.0)
    close(report.state["maker"], plain[0])
    close(report.state["judge"], plain[1])
    close(report.state["ema"], average)
