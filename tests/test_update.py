"""Each rule of torch.optim against torch's own, and the others against their papers."""

import math
import re
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn, optim

from pipeline import Pipeline, backward, forward, loss, schedules, testing, update
from pipeline.errors import ConfigError
from pipeline.stage import Stage
from pipeline.tree import tree_map
from tests.pipes import TRACED
from tests.strategies import fractions, learning_rates, normals, parameters

STEPS = 20
CLOSE = {torch.float64: 1e-12, torch.float32: 1e-6}
"""How far a parameter may be off after those steps, relative to the largest number in it."""


def hyper(stage):
    return {k: torch.tensor(float(v), dtype=torch.float64) for k, v in stage.hyper.items()}


def remembered(stage, params):
    return stage.init(params) if stage.remembers else None


def run(stage, params, history, numbers=None):
    """The parameters after a stage has seen a list of gradients, and what it remembers."""
    memory = remembered(stage, params)
    for step, grads in enumerate(history):
        values = {"params": params, "grads": grads, "step": torch.tensor(step), "seed": torch.tensor(0)}
        written, memory = stage.run(values, numbers or hyper(stage), memory)
        params = written["params"]
    return params, memory


def torch_run(optimizer, params, history, **options):
    """The parameters after torch's optimizer has seen a list of gradients."""
    params = {k: p.clone().requires_grad_() for k, p in params.items()}
    rule = optimizer(params.values(), **options)
    for grads in history:
        for k, p in params.items():
            p.grad = grads[k].clone()
        rule.step()
    return {k: p.detach() for k, p in params.items()}


@st.composite
def runs(draw, steps=STEPS, dimensions=None):
    """Parameters and the gradients of some steps, in float64."""
    params = draw(parameters(dimensions=dimensions))
    grads = draw(normals((steps, sum(p.numel() for p in params.values())), torch.float64))
    flat = [row.split([p.numel() for p in params.values()]) for row in grads]
    return params, [{k: g.view_as(p) for (k, p), g in zip(params.items(), row, strict=True)} for row in flat]


def assert_close(ours, theirs, close, params):
    """They are equal, relative to the largest number that each parameter was at first or is at the end."""
    for k, expected in theirs.items():
        size = float(torch.cat([expected.flatten(), params[k].flatten()]).abs().max())
        off = float((ours[k] - expected).abs().max()) / max(size, 1e-3)
        assert off <= close, f"{k} is off by {off:.1e}"


decays = st.floats(0.0, 0.2)
small = st.floats(1e-9, 1e-2)
betas = st.tuples(fractions, st.floats(0.5, 0.999))
flags = st.booleans()
ADAM = {"lr": learning_rates, "betas": betas, "eps": small, "weight_decay": decays, "maximize": flags}
RULES = {
    "sgd": (optim.SGD, {"lr": learning_rates, "weight_decay": decays, "momentum": fractions, "dampening": fractions,
                        "maximize": flags}),
    "nesterov": (optim.SGD, {"lr": learning_rates, "weight_decay": decays, "momentum": st.floats(0.01, 0.99),
                             "nesterov": st.just(True), "maximize": flags}),
    "asgd": (optim.ASGD, {"lr": learning_rates, "lambd": decays, "alpha": st.floats(0.1, 1.0), "t0": st.floats(1, 20),
                          "weight_decay": decays, "maximize": flags}),
    "rprop": (optim.Rprop, {"lr": learning_rates, "etas": st.tuples(st.floats(0.1, 0.9), st.floats(1.01, 2.0)),
                            "step_sizes": st.tuples(small, st.floats(0.1, 50.0)), "maximize": flags}),
    "adam": (optim.Adam, {**ADAM, "amsgrad": flags}),
    "adamw": (optim.AdamW, {**ADAM, "amsgrad": flags}),
    "adamax": (optim.Adamax, ADAM),
    "nadam": (optim.NAdam, {**ADAM, "momentum_decay": decays, "decoupled_weight_decay": flags}),
    "radam": (optim.RAdam, {**ADAM, "decoupled_weight_decay": flags}),
    "adagrad": (optim.Adagrad, {"lr": learning_rates, "lr_decay": decays, "weight_decay": decays, "eps": small,
                                "initial_accumulator_value": decays, "maximize": flags}),
    "adadelta": (optim.Adadelta, {"lr": learning_rates, "rho": fractions, "eps": small, "weight_decay": decays,
                                  "maximize": flags}),
    "rmsprop": (optim.RMSprop, {"lr": learning_rates, "alpha": st.floats(0.9, 0.999), "eps": st.floats(1e-4, 1e-2),
                                "weight_decay": decays, "momentum": fractions, "centered": flags, "maximize": flags}),
    "adafactor": (optim.Adafactor, {"lr": learning_rates, "beta2_decay": st.floats(-1.0, -0.1), "d": st.floats(1, 3),
                                    "eps": st.tuples(st.one_of(st.none(), small), small), "weight_decay": decays,
                                    "maximize": flags}),
    "muon": (optim.Muon, {"lr": learning_rates, "weight_decay": decays, "momentum": fractions, "nesterov": flags,
                          "ns_steps": st.integers(1, 6),
                          "adjust_lr_fn": st.sampled_from([None, "original", "match_rms_adamw"])}),
}  # fmt: skip
"""Torch's optimizer, and what its options are drawn from; a small alpha leaves a variance of rounding errors alone."""


def made(name, **options):
    return getattr(update, "sgd" if name == "nesterov" else name)(**options)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@given(data=st.data())
@settings(max_examples=settings().max_examples // 2)
def test_rules_are_torchs(name, dtype, data):
    """A rule takes torch's steps, over drawn options, shapes and gradients."""
    optimizer, options = RULES[name]
    drawn = data.draw(st.fixed_dictionaries({}, optional=options))
    if name == "nesterov":
        drawn |= {"nesterov": True, "momentum": drawn.get("momentum", 0.9)}
    params, history = tree_map(lambda x: x.to(dtype), data.draw(runs(dimensions=2 if name == "muon" else None)))
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # torch's optimizers keep some of their numbers in it
    try:
        theirs = torch_run(optimizer, params, history, **drawn)
    finally:
        torch.set_default_dtype(before)
    assert_close(run(made(name, **drawn), params, history)[0], theirs, CLOSE[dtype], params)


@pytest.mark.parametrize("name", RULES)
def test_defaults_are_torchs(name):
    """Without options, a rule does what torch's optimizer does without."""
    params, history = next_run(2 if name == "muon" else None)
    options = {"nesterov": True, "momentum": 0.9} if name == "nesterov" else {}
    theirs = torch_run(RULES[name][0], params, history, **options)
    assert_close(run(made(name, **options), params, history)[0], theirs, 1e-6, params)


def next_run(dimensions=None, dtype=torch.float32):
    shapes = {"w": (4, 3), "v": (2, 5)} if dimensions == 2 else {"w": (4, 3), "b": (5,), "k": (2, 3, 2, 2)}
    params = {k: torch.randn(shape, dtype=dtype) for k, shape in shapes.items()}
    return params, [{k: torch.randn_like(p) for k, p in params.items()} for _ in range(STEPS)]


@pytest.mark.parametrize("name", [n for n in RULES if n not in ("adafactor", "muon")])
def test_complex_numbers_are_pairs(name):
    """Complex parameters are changed as torch changes them."""
    params, history = next_run(dtype=torch.complex128)
    options = {"nesterov": True, "momentum": 0.9} if name == "nesterov" else {}
    theirs = torch_run(RULES[name][0], params, history, **options)
    ours = run(made(name, **options), params, history)[0]
    for k in params:
        torch.testing.assert_close(ours[k], theirs[k], rtol=1e-6, atol=1e-6)


# -- against the papers


@given(runs(), learning_rates, st.tuples(fractions, fractions), decays)
def test_lion_is_the_papers(run_, lr, betas, decay):
    """Lion is algorithm 2 of Chen et al. (2023)."""
    params, history = run_
    beta1, beta2 = betas
    theta, m = dict(params), {k: torch.zeros_like(p) for k, p in params.items()}
    for grads in history:
        for k, g in grads.items():
            c = beta1 * m[k] + (1 - beta1) * g
            theta[k] = theta[k] - lr * (torch.sign(c) + decay * theta[k])
            m[k] = beta2 * m[k] + (1 - beta2) * g
    assert_close(run(update.lion(lr, betas=betas, weight_decay=decay), params, history)[0], theta, 1e-12, params)


@given(runs(), learning_rates, betas, small, decays)
def test_lamb_is_the_papers(run_, lr, betas, eps, decay):
    """LAMB is algorithm 2 of You et al. (2020), with the identity for its function of the norm."""
    params, history = run_
    beta1, beta2 = betas
    x = dict(params)
    m, v = ({k: torch.zeros_like(p) for k, p in params.items()} for _ in range(2))
    for t, grads in enumerate(history, 1):
        for k, g in grads.items():
            m[k] = beta1 * m[k] + (1 - beta1) * g
            v[k] = beta2 * v[k] + (1 - beta2) * g**2
            r = (m[k] / (1 - beta1**t)) / (torch.sqrt(v[k] / (1 - beta2**t)) + eps)
            whole = r + decay * x[k]
            x[k] = x[k] - lr * (x[k].norm() / whole.norm()) * whole
    assert_close(run(update.lamb(lr, betas=betas, eps=eps, weight_decay=decay), params, history)[0], x, 1e-11, params)


@given(runs(), learning_rates, betas, small, decays)
def test_schedule_free_is_the_papers(run_, lr, betas, eps, decay):
    """Schedule-free AdamW is algorithm 1 of Defazio et al. (2024), without its warm-up; x is what it is seen as."""
    params, history = run_
    beta1, beta2 = betas
    z, x, y, v = dict(params), dict(params), dict(params), {k: torch.zeros_like(p) for k, p in params.items()}
    weights = 0.0
    for t, grads in enumerate(history, 1):
        rate = lr * math.sqrt(1 - beta2**t)
        weights += rate**2
        c = rate**2 / weights
        for k, g in grads.items():
            v[k] = beta2 * v[k] + (1 - beta2) * g**2
            z[k] = z[k] - rate * g / (torch.sqrt(v[k]) + eps) - rate * decay * y[k]
            x[k] = (1 - c) * x[k] + c * z[k]
            y[k] = (1 - beta1) * z[k] + beta1 * x[k]
    stage = update.schedule_free_adamw(lr, betas=betas, eps=eps, weight_decay=decay)
    ours, memory = run(stage, params, history)
    assert_close(ours, y, 1e-11, params)
    assert_close(stage.averaged({"params": ours, "memory": {stage.name: memory}}, {})["params"], x, 1e-11, params)


def test_a_parameter_of_zeros_leaves_them_by_lamb():
    """Where a norm is 0, LAMB takes the step as it is."""
    params, history = {"w": torch.zeros(3)}, [{"w": torch.ones(3)}]
    assert run(update.lamb(0.1), params, history)[0]["w"].tolist() == pytest.approx([-0.1] * 3)


# -- one function of one tensor


def test_a_rule_of_ones_own():
    """A rule is a function of one tensor, whose numbers are hyperparameters; it equals SGD with momentum."""

    @update.rule(memory=lambda p: {"velocity": torch.zeros_like(p)})
    def heavy(p, g, memory, lr=0.1, momentum=0.9):
        velocity = momentum * memory["velocity"] + g
        return p - lr * velocity, {"velocity": velocity}

    params, history = next_run()
    ours, memory = run(heavy(0.05), params, history)
    assert_close(ours, run(update.sgd(0.05, momentum=0.9), params, history)[0], 1e-6, params)
    assert (heavy().name, heavy(schedules.cosine(1.0)).hyper["lr"].base) == ("heavy", 1.0)
    assert memory["velocity"].keys() == params.keys()


def test_a_rule_knows_which_step_it_is():
    """`t` counts the rule's own steps, from 1, and a rule without a memory returns the parameter alone."""

    @update.rule
    def slower(p, g, t, lr=1.0, plain=False):
        return p - (lr if plain else lr / t) * g

    params, history = {"w": torch.zeros(1)}, [{"w": torch.ones(1)}] * 3
    assert run(slower(), params, history)[0]["w"].item() == pytest.approx(-(1 + 1 / 2 + 1 / 3))
    assert run(slower(plain=True), params, history)[0]["w"].item() == pytest.approx(-3)


def test_what_a_rule_does_not_take_is_refused():
    """Another option than the function has, or a memory that nobody makes, is an error that says so."""
    plain = update.rule(lambda p, g, lr=0.1: p - lr * g, name="plain")
    with pytest.raises(ConfigError, match=r"plain: there is no option 'lrr'; did you mean 'lr'"):
        plain(lrr=0.1)
    with pytest.raises(ConfigError, match="plain: too many positional"):
        plain(0.1, 0.2)
    with pytest.raises(ConfigError, match="reads 'memory', but has no memory="):
        update.rule(lambda p, g, memory: p, name="kept")


EACH = {name: made(name, **({"momentum": 0.9, "nesterov": True} if name == "nesterov" else {})) for name in RULES} | {
    "plain": update.sgd(0.1, weight_decay=0.1),
    "amsgrad": update.adam(0.1, amsgrad=True),
    "centered": update.rmsprop(0.1, momentum=0.9, centered=True),
    "lion": update.lion(),
    "lamb": update.lamb(),
    "schedule-free": update.schedule_free_adamw(),
    "layerwise": update.layerwise(update.adamw(), 0.5),
    "thawed": update.thawed(update.adamw(), at=1),
}
each = pytest.mark.parametrize("stage", EACH.values(), ids=EACH)


@each
@given(run_=runs(steps=2), dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
@settings(max_examples=5)
def test_updates_are_pure_and_keep_shapes(stage, run_, dtype):
    """An update writes into none of its inputs, and gives names, shapes and dtypes as they were."""
    params, grads = ({f"w{k}": x[None].to(dtype) for k, x in tree.items()} for tree in (run_[0], run_[1][0]))
    params["w"], grads["w"] = torch.ones(2, 3, dtype=dtype), torch.ones(2, 3, dtype=dtype)
    memory = remembered(stage, params)
    values = {"params": params, "grads": grads, "step": torch.tensor(1)}
    written, new = testing.pure(stage.run, values, hyper(stage), memory)
    assert described(written["params"]) == described(params)
    assert described(new) == described(memory)


def described(tree):
    return tree_map(lambda x: x if x is None else (tuple(x.shape), x.dtype), tree)


@each
def test_updates_map_over_everything(stage):
    """Updates mapped over stacked parameters, gradients, memories and rates are the stack of the updates."""
    members = [next_run(dtype=torch.float64) for _ in range(3)]
    numbers = [{h: x * (1 + 0.1 * i) if h.endswith("lr") else x for h, x in hyper(stage).items()} for i in range(3)]

    def one(member, n):
        params, memory = run(stage, *member, n)
        return params, memory if stage.remembers else {}

    mapped = torch.vmap(one)(*(tree_map(lambda *xs: torch.stack(xs), *trees) for trees in (members, numbers)))
    alone = [one(member, n) for member, n in zip(members, numbers, strict=True)]
    close = 1e-2 if "muon" in stage.name else 1e-12  # of bfloat16's products
    testing.same(mapped, tree_map(lambda *xs: torch.stack(xs), *alone), close)


class Parts(nn.Module):
    """As many small layers as there are updates, each with a matrix, a vector and a bend between them."""

    def __init__(self, names):
        super().__init__()
        self.parts = nn.ModuleDict({name: nn.Linear(4, 4) for name in names})

    def forward(self, x):
        return sum(part(x).tanh() for part in self.parts.values())


def all_in_one():
    """A pipeline in which each update has a layer."""
    grouped = update.groups({f"parts.{name}.*": stage for name, stage in EACH.items()})
    return Pipeline(forward.model(lambda: Parts(EACH)), loss.mse(), backward.gradients(), grouped)


def test_updates_compile():
    """All updates in one graph, each for a layer of its own, give what they give uncompiled."""
    pipe = all_in_one()
    batches = [{"inputs": torch.randn(8, 4), "targets": torch.randn(8, 4)} for _ in range(4)]
    compiled = pipe.compile(backend=TRACED)  # natively too, which takes half a minute
    testing.compiled_equals_eager(compiled, pipe.init(0), batches, 1e-4)
    assert len(compiled.report.graphs) == 1


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf"), schedules.constant(-1.0)])
@pytest.mark.parametrize(
    "make",
    [
        lambda x: update.sgd(x),
        lambda x: update.sgd(0.1, momentum=x),
        lambda x: update.sgd(0.1, weight_decay=x),
        lambda x: update.sgd(0.1, momentum=0.9, dampening=x),
        lambda x: update.adam(x),
        lambda x: update.adam(betas=(x, 0.9)),
        lambda x: update.adamw(betas=(0.9, x)),
        lambda x: update.adamw(eps=x),
        lambda x: update.adamw(weight_decay=x),
        lambda x: update.nadam(momentum_decay=x),
        lambda x: update.rprop(etas=(x, 1.2)),
        lambda x: update.adafactor(eps=(x, 1e-3)) if isinstance(x, float) else update.adafactor(x),
        lambda x: update.muon(x),
        lambda x: update.clip_norm(x),
        lambda x: update.clip_value(x),
        lambda x: update.clip_adaptive(x),
        lambda x: update.noise(x),
        lambda x: update.weight_decay(x),
    ],
)
def test_hyperparameters_out_of_range_are_refused(make, bad):
    """A negative, infinite or undefined hyperparameter raises a ConfigError that names its stage and the value."""
    with pytest.raises(ConfigError, match=r"update\.\w+: \w+=(-1.0|nan|inf) is not"):
        make(bad)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: update.adam(betas=(1.0, 0.9)), "beta1=1.0 is not below 1"),
        (lambda: update.adam(betas=(0.9, 1.0)), "beta2=1.0 is not below 1"),
        (lambda: update.sgd(0.1, nesterov=True), "nesterov=True needs"),
        (lambda: update.sgd(0.1, nesterov=True, momentum=0.9, dampening=0.1), "nesterov=True needs"),
        (lambda: update.adafactor(d=0.5), "d=0.5 is not at least 1"),
        (lambda: update.adafactor(beta2_decay=0.5), "beta2_decay=0.5 is not at most 0"),
        (lambda: update.adadelta(rho=1.5), r"rho=1.5 is not in \[0, 1\]"),
        (lambda: update.muon(adjust_lr_fn="mine"), "'mine' is neither"),
    ],
)
def test_what_torch_refuses_is_refused(make, said):
    """Options that torch does not take raise a ConfigError."""
    with pytest.raises(ConfigError, match=said):
        make()


@pytest.mark.parametrize("lr", [None, [0.1], "0.1", True, torch.ones((), requires_grad=True)])
def test_a_rate_is_a_number(lr):
    """Anything else is refused where it is written; a 0-d tensor is the number that it holds."""
    with pytest.raises(ConfigError, match=r"update.sgd: lr=.* is neither a number nor a Schedule"):
        update.sgd(lr)
    assert update.sgd(torch.tensor(0.5)).hyper["lr"] == 0.5


# -- beside the rules


@given(runs(steps=1), st.floats(0.01, 10.0), st.sampled_from([1.0, 2.0, 3.0, math.inf]))
def test_clipping_is_torchs(run_, limit, norm_type):
    """clip_norm and clip_value give the gradients that torch.nn.utils gives."""
    params, [grads] = run_
    for stage, clip in (
        (update.clip_norm(limit, norm_type=norm_type), lambda p: nn.utils.clip_grad_norm_(p, limit, norm_type)),
        (update.clip_value(limit), lambda p: nn.utils.clip_grad_value_(p, limit)),
    ):
        leaves = {k: torch.zeros_like(p, requires_grad=True) for k, p in params.items()}
        for k, p in leaves.items():
            p.grad = grads[k].clone()
        clip(leaves.values())
        written, _ = stage.run({"grads": grads}, hyper(stage), None)
        torch.testing.assert_close(written["grads"], {k: p.grad for k, p in leaves.items()}, rtol=1e-12, atol=1e-12)


@given(runs(steps=1), st.floats(0.01, 10.0))
def test_a_clipped_norm_is_within_its_limit(run_, limit):
    """clip_norm leaves a norm of at most its limit, and gradients within it as they are."""
    grads = run_[1][0]

    def norm(grads):
        return torch.cat([g.flatten() for g in grads.values()]).norm().item()

    clipped = update.clip_norm(limit)(grads, torch.tensor(limit))
    assert norm(clipped) <= limit
    if norm(grads) < limit - 1e-4:
        torch.testing.assert_close(clipped, grads, rtol=0, atol=0)


@given(runs(steps=1), st.floats(0.001, 1.0))
def test_adaptive_clipping_is_the_papers(run_, limit):
    """clip_adaptive is equation 3 of Brock et al. (2021), unit by unit."""
    params, [grads] = run_
    written = update.clip_adaptive(limit)(params, grads, torch.tensor(limit, dtype=torch.float64))
    for k, g in grads.items():
        rows = [(params[k], g, written[k])] if g.ndim < 2 else list(zip(params[k], g, written[k], strict=True))
        for w, own, clipped in rows:
            most = max(w.norm().item(), 1e-3)
            ratio = own.norm().item() / most
            expected = limit * most / own.norm() * own if ratio > limit else own
            torch.testing.assert_close(clipped, expected, rtol=1e-10, atol=1e-12)


def test_a_pattern_leaves_parameters_out():
    """What `only` does not hold stays as it is."""
    params = {"body.weight": torch.ones(2, 2), "head.weight": torch.ones(2, 2)}
    grads = {k: torch.tensor([[1.0, 3.0], [5.0, 7.0]]) for k in params}
    for stage in (update.clip_adaptive(only="!head.*"), update.centralize(only="!head.*")):
        written, _ = stage.run({"params": params, "grads": grads}, hyper(stage), None)
        assert torch.equal(written["grads"]["head.weight"], grads["head.weight"])
        assert not torch.equal(written["grads"]["body.weight"], grads["body.weight"])
    decayed = update.weight_decay(0.5, only="!head.*")(params, grads, torch.tensor(0.5))
    assert [p.sum().item() for p in decayed.values()] == [2.0, 4.0]
    decayed = update.weight_decay(0.5)(params, {"head.weight": grads["head.weight"]}, torch.tensor(0.5))
    assert [p.sum().item() for p in decayed.values()] == [4.0, 2.0]
    for make in (update.clip_adaptive, update.centralize, partial(update.weight_decay, 0.5)):
        for pattern, wrong in (("heads.*", "heads.*"), ("!*.bias", "*.bias"), ("*, !haed.*", "haed.*")):
            with pytest.raises(
                ConfigError, match=f"{re.escape(repr(wrong))} matches none of the parameters body.weight"
            ):
                make(only=pattern).run({"params": params, "grads": grads}, hyper(make()), None)


def test_decay_before_sgd_is_adamws():
    """Decoupled decay of lr * weight_decay before Adam is AdamW."""
    params, history = next_run(dtype=torch.float64)
    decay, rule = update.weight_decay(0.01 * 0.1), update.adam(0.01)
    memory, ours = rule.init(params), params
    for grads in history:
        decayed = decay(ours, grads, torch.tensor(0.01 * 0.1, dtype=torch.float64))
        written, memory = rule.run({"params": decayed, "grads": grads}, hyper(rule), memory)
        ours = written["params"]
    testing.same(ours, run(update.adamw(0.01, weight_decay=0.1), params, history)[0], 1e-12)


def test_noise_has_its_variance_and_follows_the_step():
    """The noise has the variance eta / (1 + step)**gamma, and other numbers at another step."""
    stage, grads = update.noise(0.5, gamma=1.0), {"w": torch.zeros(40_000)}

    def at(step):
        values = {"grads": grads, "step": torch.tensor(step), "seed": torch.tensor(3)}
        return stage.run(values, hyper(stage), None)[0]["grads"]["w"]

    for step in (0, 4):
        # Five standard errors of a variance of so many numbers.
        assert at(step).var().item() == pytest.approx(0.5 / (1 + step), rel=5 * (2 / 40_000) ** 0.5)
    assert torch.equal(at(4), at(4))
    assert abs(torch.corrcoef(torch.stack([at(3), at(4)]))[0, 1]) < 5 / 40_000**0.5


def test_a_stage_without_draws_has_no_key():
    """Rules of the library draw nothing, so that no key is made for them."""
    assert not any(stage.draws for stage in EACH.values() if isinstance(stage, Stage))
