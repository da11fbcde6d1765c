import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import schedules, testing, update
from pipeline.errors import ConfigError
from pipeline.tree import tree_map
from tests.strategies import fractions, learning_rates, normals, parameters

decays = st.floats(0.0, 0.2)
betas = st.tuples(fractions, st.floats(0.5, 0.999))
STEPS = 7


def hyper(stage):
    return {k: torch.tensor(float(v), dtype=torch.float64) for k, v in stage.hyper.items()}


def remembered(stage, params):
    return stage.init(params) if stage.remembers else None


def steps(stage, params, history, numbers=None):
    """The parameters after a stage has seen a list of gradients."""
    memory = remembered(stage, params)
    for grads in history:
        written, memory = stage.run({"params": params, "grads": grads}, numbers or hyper(stage), memory)
        params = written["params"]
    return params


def torch_steps(optimizer, params, history, **options):
    """The parameters after torch's optimizer has seen a list of gradients."""
    params = {k: p.clone().requires_grad_() for k, p in params.items()}
    rule = optimizer(params.values(), **options)
    for grads in history:
        for k, p in params.items():
            p.grad = grads[k].clone()
        rule.step()
    return {k: p.detach() for k, p in params.items()}


@st.composite
def runs(draw):
    """Parameters and the gradients of some steps, in float64."""
    params = draw(parameters())
    grads = draw(normals((STEPS, sum(p.numel() for p in params.values())), torch.float64))
    flat = [row.split([p.numel() for p in params.values()]) for row in grads]
    return params, [{k: g.view_as(p) for (k, p), g in zip(params.items(), row, strict=True)} for row in flat]


def assert_torchs(stage, optimizer, run, **options):
    """The stage and torch's optimizer agree to rounding in float64, and closely in float32."""
    for dtype, close in ((torch.float64, 1e-10), (torch.float32, 1e-6)):
        params, history = tree_map(lambda x, d=dtype: x.to(d), run)
        ours, torchs = steps(stage, params, history), torch_steps(optimizer, params, history, **options)
        torch.testing.assert_close(ours, torchs, rtol=close, atol=close)


@given(runs(), learning_rates, st.floats(0.01, 0.99), fractions, decays)
def test_sgd_is_torchs(run, lr, momentum, dampening, weight_decay):
    """SGD takes torch's steps: plain, with momentum and dampening, and with Nesterov's."""
    shared = {"lr": lr, "weight_decay": weight_decay}
    for options in (
        shared,
        {**shared, "momentum": momentum, "dampening": dampening},
        {**shared, "momentum": momentum, "nesterov": True},
    ):
        assert_torchs(update.sgd(**options), torch.optim.SGD, run, **options)


@pytest.mark.parametrize(("rule", "optimizer"), [(update.adam, torch.optim.Adam), (update.adamw, torch.optim.AdamW)])
@given(run=runs(), lr=learning_rates, betas=betas, eps=st.floats(1e-9, 1e-2), weight_decay=decays)
def test_adam_is_torchs(rule, optimizer, run, lr, betas, eps, weight_decay):
    """Adam and AdamW take torch's steps."""
    options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    assert_torchs(rule(**options), optimizer, run, **options)


@pytest.mark.parametrize(("rule", "optimizer"), [(update.adam, torch.optim.Adam), (update.adamw, torch.optim.AdamW)])
def test_defaults_are_torchs(rule, optimizer):
    """A rule's defaults are those of torch's optimizer."""
    ours, torchs = rule().hyper, optimizer([torch.zeros(1)]).defaults
    assert (ours["beta1"], ours["beta2"]) == torchs["betas"]
    assert {k: ours[k] for k in ("lr", "eps", "weight_decay")} == {k: torchs[k] for k in ("lr", "eps", "weight_decay")}


@given(runs(), st.floats(0.01, 10.0))
def test_clipping_is_torchs(run, limit):
    """clip_norm and clip_value give the gradients that torch.nn.utils gives."""
    params, [grads, *_] = run
    for stage, clip in (
        (update.clip_norm(limit), torch.nn.utils.clip_grad_norm_),
        (update.clip_value(limit), torch.nn.utils.clip_grad_value_),
    ):
        leaves = {k: torch.zeros_like(p, requires_grad=True) for k, p in params.items()}
        for k, p in leaves.items():
            p.grad = grads[k].clone()
        clip(leaves.values(), limit)
        written, _ = stage.run({"grads": grads}, hyper(stage), None)
        torch.testing.assert_close(written["grads"], {k: p.grad for k, p in leaves.items()}, rtol=1e-12, atol=1e-12)


@given(runs(), st.floats(0.01, 10.0))
def test_a_clipped_norm_is_within_its_limit(run, limit):
    """clip_norm leaves a norm of at most its limit, and gradients within it as they are."""
    grads = run[1][0]

    def norm(grads):
        return torch.cat([g.flatten() for g in grads.values()]).norm().item()

    clipped = update.clip_norm(limit)(grads, torch.tensor(limit))
    assert norm(clipped) <= limit
    if norm(grads) < limit - 1e-4:
        torch.testing.assert_close(clipped, grads, rtol=0, atol=0)


RULES = {
    "sgd": update.sgd(0.1),
    "momentum": update.sgd(0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": update.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": update.adam(),
    "adamw": update.adamw(),
    "clip_norm": update.clip_norm(0.1),
    "clip_value": update.clip_value(0.1),
}
rules = pytest.mark.parametrize("stage", RULES.values(), ids=RULES)


@rules
@given(run=runs(), dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_updates_are_pure_and_keep_shapes(stage, run, dtype):
    """An update writes into none of its inputs, and gives names, shapes and dtypes as they were."""
    params, grads = ({k: x.to(dtype) for k, x in tree.items()} for tree in (run[0], run[1][0]))
    memory = remembered(stage, params)
    written, new = testing.pure(stage.run, {"params": params, "grads": grads}, hyper(stage), memory)
    assert described(written[stage.writes[0]]) == described(params)
    assert described(new) == described(memory)


def described(tree):
    return tree_map(lambda x: x if x is None else (tuple(x.shape), x.dtype), tree)


@rules
def test_updates_map_over_hyperparameters(stage):
    """An update mapped over stacked hyperparameters is the stack of the updates."""
    params = {"w": torch.randn(3, 2), "b": torch.randn(2)}
    grads, values = {k: torch.randn_like(p) for k, p in params.items()}, torch.tensor([0.01, 0.1, 0.5]).double()
    name = "lr" if "lr" in stage.hyper else "limit"
    memory = remembered(stage, params)

    def one(value):
        return stage.run({"params": params, "grads": grads}, {**hyper(stage), name: value}, memory)[0]

    mapped = torch.vmap(one)(values)
    for i, value in enumerate(values):
        testing.same(tree_map(lambda x, i=i: x[i], mapped), one(value), tolerance=1e-6)


def test_two_updates_are_two_steps():
    """A momentum of 0 forgets: its steps do not depend on the gradients before."""
    params = {"w": torch.zeros(1)}
    assert steps(update.sgd(0.5), params, [{"w": torch.ones(1)}, {"w": torch.full((1,), 2.0)}])["w"].item() == -1.5


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
        lambda x: update.clip_norm(x),
        lambda x: update.clip_value(x),
    ],
)
def test_hyperparameters_out_of_range_are_refused(make, bad):
    """A negative, infinite or undefined hyperparameter raises a ConfigError that names its stage and the value."""
    with pytest.raises(ConfigError, match=r"update\.\w+: \w+=(-1.0|nan|inf) is not"):
        make(bad)


def test_what_torch_refuses_is_refused():
    """Betas of 1, and Nesterov's momentum without momentum or with dampening, raise a ConfigError."""
    for betas in ((1.0, 0.9), (0.9, 1.0)):
        with pytest.raises(ConfigError, match="is not below 1"):
            update.adam(betas=betas)
    for options in ({}, {"momentum": 0.9, "dampening": 0.1}):
        with pytest.raises(ConfigError, match="nesterov=True needs"):
            update.sgd(0.1, nesterov=True, **options)


@pytest.mark.parametrize("lr", [None, [0.1], "0.1", True])
def test_a_rate_is_a_number(lr):
    """Anything else is refused where it is written."""
    with pytest.raises(ConfigError, match=r"update.sgd: lr=.* is neither a number nor a Schedule"):
        update.sgd(lr)
