"""Groups of parameters, each with a rule or numbers of its own, against torch's param groups."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import optim

from pipeline import fit, loss, schedules, testing, update
from pipeline.errors import ConfigError, PipeError, WiringError
from pipeline.tree import tree_map
from tests import pipes
from tests.pipes import TRACED
from tests.strategies import learning_rates
from tests.test_update import RULES, assert_close, decays, made, run, runs


def torch_groups(optimizer, groups, params, history):
    """The parameters after torch's optimizer, with param groups of (names, options), has seen some gradients."""
    params = {k: p.clone().requires_grad_() for k, p in params.items()}
    rule = optimizer([{"params": [params[k] for k in names], **options} for names, options in groups])
    for grads in history:
        for k, p in params.items():
            p.grad = grads[k].clone()
        rule.step()
    return {k: p.detach() for k, p in params.items()}


@pytest.mark.parametrize("name", sorted({*RULES} - {"muon", "nesterov", "rprop"}))
@given(data=st.data())
@settings(max_examples=settings().max_examples // 2)
def test_groups_are_torchs(name, data):
    """Groups take the steps of torch's optimizer with param groups of drawn options."""
    params, history = data.draw(runs())
    options = st.fixed_dictionaries({"lr": learning_rates, "weight_decay": decays})
    own = {k: data.draw(options) for k in params}
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # torch's optimizers keep some of their numbers in it
    try:
        theirs = torch_groups(RULES[name][0], [([k], own[k]) for k in params], params, history)
    finally:
        torch.set_default_dtype(before)
    grouped = update.groups({k: made(name, **own[k]) for k in params})
    assert_close(run(grouped, params, history)[0], theirs, 1e-12, params)


@given(runs(), learning_rates, st.floats(0.1, 1.0))
def test_layers_have_torchs_rates(drawn, lr, decay):
    """Layerwise gives the k-th layer from the outputs lr * decay**k, as torch's param groups of those rates do."""
    params, history = ({f"layer.{k[1]}.weight": x for k, x in tree.items()} for tree in drawn[0:1]), drawn[1]
    [params] = params
    history = [{f"layer.{k[1]}.weight": g for k, g in grads.items()} for grads in history]
    rates = [([k], {"lr": lr * decay ** (len(params) - 1 - i)}) for i, k in enumerate(params)]
    theirs = torch_groups(optim.AdamW, rates, params, history)
    assert_close(run(update.layerwise(update.adamw(lr), decay), params, history)[0], theirs, 1e-12, params)


def test_what_a_layer_is():
    """A layer is what shares a name up to its first number, or up to its last dot; or what a given pattern holds."""
    names = [
        "embed.weight",
        "blocks.0.in.weight",
        "blocks.0.out.bias",
        "blocks.1.in.weight",
        "head.weight",
        "head.bias",
    ]
    params = {k: torch.zeros(()) for k in names}
    grads = {k: torch.ones(()) for k in names}
    stage = update.layerwise(update.sgd(1.0), 0.5)
    moved = run(stage, params, [grads])[0]
    assert [-p.item() for p in moved.values()] == [0.125, 0.25, 0.25, 0.5, 1.0, 1.0]
    stage = update.layerwise(update.sgd(1.0), 0.5, layers=["embed.*, *bias", "blocks.*, !*bias", "head.weight"])
    moved = run(stage, params, [grads])[0]
    assert [-p.item() for p in moved.values()] == [0.25, 0.5, 0.25, 0.5, 1.0, 0.25]


def test_frozen_parameters_stay_and_thaw():
    """What is frozen stays; what thaws at a step changes from there on, as if training had begun there."""
    params = {"body.w": torch.ones(3), "head.w": torch.ones(3)}
    history = [{k: torch.full((3,), 0.1 * (i + 1)) for k in params} for i in range(5)]
    still = update.groups({"body.*": update.frozen()}, otherwise=update.adamw(0.1))
    ours, memory = run(still, params, history)
    assert torch.equal(ours["body.w"], params["body.w"])
    assert [*memory] == ["otherwise"]  # nothing is remembered of what stays
    thaws = update.groups({"body.*": update.thawed(update.adamw(0.1), at=3)}, otherwise=update.adamw(0.1))
    ours = run(thaws, params, history)[0]
    testing.same({"body.w": ours["body.w"]}, run(update.adamw(0.1), {"body.w": params["body.w"]},
                                                 [{"body.w": g["body.w"]} for g in history[3:]])[0], 1e-6)  # fmt: skip
    testing.same({"head.w": ours["head.w"]}, run(update.adamw(0.1), {"head.w": params["head.w"]},
                                                 [{"head.w": g["head.w"]} for g in history])[0], 1e-6)  # fmt: skip


@pytest.mark.parametrize(("rule", "others", "said"), [
    (update.schedule_free_adamw(), [update.weight_decay(0.1)], "'update.schedule_free_adamw' makes anew"),
    (update.layerwise(update.schedule_free_adamw(), 0.5), [update.weight_decay(0.1)], "makes anew"),
    (update.groups({"1.*": update.frozen()}, otherwise=update.sgd()), [update.weight_decay(0.1)], "only='!...'"),
    (update.groups({"1.*": update.thawed(update.sgd(), 3)}, otherwise=update.sgd()), [update.weight_decay(0.1)],
     "'update.weight_decay' changes weights of which 'update.groups' leaves some"),
])  # fmt: skip
def test_changes_of_frozen_and_of_overwritten_weights_are_refused(rule, others, said):
    """A change that is lost, and one of what stays; a decay of other parameters may be."""
    with pytest.raises(WiringError, match=said):
        pipes.digits(*others, rule)
    if rule.freezes:
        pipes.digits(update.weight_decay(0.1, only="!1.*"), rule)
    else:
        with pytest.raises(WiringError, match=r"lookahead.* changes weights"):
            pipes.digits(rule, update.lookahead())


def test_a_group_of_a_predicate_has_its_name():
    """A predicate sees name and tensor, and its own name is that of its hyperparameters."""

    def matrices(name, tensor):
        return tensor.ndim == 2 and name != "head"

    stage = update.groups({matrices: update.sgd(1.0)}, otherwise=update.sgd(0.1))
    assert sorted(stage.hyper) == ["matrices.lr", "matrices.weight_decay", "otherwise.lr", "otherwise.weight_decay"]
    params = {"w": torch.zeros(1, 1), "head": torch.zeros(1, 1), "b": torch.zeros(1)}
    moved = run(stage, params, [{k: torch.ones_like(p) for k, p in params.items()}])[0]
    assert [-p.item() for p in moved.values()] == pytest.approx([1.0, 0.1, 0.1])


def test_muon_hands_the_rest_to_adamw():
    """Matrices go as by torch's Muon, filters as if they were some, and all else as by AdamW, or by the rule given."""
    params = {"w": torch.randn(4, 3), "b": torch.randn(3), "k": torch.randn(5, 2, 3, 3)}
    history = [{k: torch.randn_like(p) for k, p in params.items()} for _ in range(5)]
    ours = run(update.muon(0.02), params, history)[0]

    def only(*names):
        return {k: params[k] for k in names}, [{k: g[k] for k in names} for g in history]

    flat, flat_history = tree_map(lambda x: x.reshape(len(x), -1), only("w", "k"))
    theirs = torch_groups(optim.Muon, [(["w", "k"], {"lr": 0.02})], flat, flat_history)
    testing.same({k: ours[k].reshape(len(ours[k]), -1) for k in "wk"}, theirs, 1e-6)
    testing.same({"b": ours["b"]}, run(update.adamw(), *only("b"))[0], 1e-6)
    some = run(update.muon(0.02, matrices="!w", rest=update.sgd(0.1)), params, history)[0]
    testing.same({"k": some["k"]}, {"k": ours["k"]}, 1e-6)
    testing.same({k: some[k] for k in "wb"}, run(update.sgd(0.1), *only("w", "b"))[0], 1e-6)
    with pytest.raises(ConfigError, match=r"matrices='head\.\*' matches no matrix of w, b, k"):
        run(update.muon(matrices="head.*"), params, history)
    assert run(update.muon(rest=update.frozen()), params, history)[0]["b"].equal(params["b"])
    # A predicate may hold nothing of a part: here are no matrices.
    alone = update.groups({"b": update.muon(0.01, rest=update.sgd(1.0))}, otherwise=update.frozen())
    testing.same(run(alone, params, history[:1])[0], {**params, "b": params["b"] - history[0]["b"]}, 1e-6)


def test_an_average_may_be_of_a_group():
    """Where one group's rule averages, State is seen with its averages, and the others' parameters as they are."""
    free = update.schedule_free_adamw(0.1)
    params = {"w": torch.randn(4), "b": torch.randn(3)}
    history = [{k: torch.randn_like(p) for k, p in params.items()} for _ in range(5)]
    for stage in (update.groups({"w": free}, otherwise=update.sgd(0.1)),
                  update.groups({"b": update.frozen()}, otherwise=update.thawed(free, at=0))):  # fmt: skip
        ours, memory = run(stage, params, history)
        seen = stage.averaged({"params": ours, "memory": {stage.name: memory}}, {})["params"]
        alone = run(free, {"w": params["w"]}, [{"w": g["w"]} for g in history])[1]["average"]["w"]
        testing.same(seen, {"w": alone, "b": ours["b"]}, 1e-6)


def three():
    """Three groups of the digits' classifier, one with a schedule."""
    return update.groups({"1.*": update.adamw(schedules.linear(1e-2, steps=20)),
                          "3.bias": update.adamw(weight_decay=0.0)}, otherwise=update.adamw(3e-3))  # fmt: skip


def test_a_changed_rate_needs_no_other_graph():
    """Numbers of groups are in State by name: compiled, a changed one takes effect without another graph."""
    pipe = pipes.digits(three())
    compiled, state = pipe.compile(backend=TRACED, donate=False), pipe.init(0)
    name = "update.groups.3.bias.lr"
    assert state.hyper[name] == 1e-3
    assert state.hyper["update.groups.1.*.lr.steps"] == 20
    batch = pipes.first(pipe)
    stepped, _ = compiled.step(state, batch)
    graphs = len(compiled.report.graphs)
    still, _ = compiled.step(stepped.with_hyper({name: 0.0}), batch)
    assert torch.equal(still.params["3.bias"], stepped.params["3.bias"])
    assert not torch.equal(still.params["3.weight"], stepped.params["3.weight"])
    assert len(compiled.report.graphs) == graphs
    testing.compiled_equals_eager(compiled, state, [batch, batch])


def test_a_number_of_many_groups_is_told_apart():
    """A bare name that many groups have is refused, with the names that there are."""
    state = pipes.digits(three()).init(0)
    with pytest.raises(PipeError, match=r"'lr'.*update.groups.3.bias.lr"):
        state.with_hyper(lr=0.1)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: {"1.*": update.sgd(0.1)}, "parameter '3.weight' is in no group; name it, or"),
        (lambda: {"*": update.sgd(0.1), "*.bias": update.sgd(0.1)},
         r"parameter '1.bias' is in two groups, '\*' and '\*.bias'; leave it out of one"),
        (lambda: {"*": update.sgd(0.1), "head.*": update.sgd(0.1)}, r"'head.\*' matches none of the parameters"),
        (lambda: {"*": 0.1}, "is a float, not a stage such as update.adamw"),
        (lambda: {"*": loss.mse()}, "is stage 'loss.mse', which reads .* a group's rule makes params from params"),
        (lambda: {"*": update.ema()}, "is stage 'update.ema', which reads"),
        (lambda: {"*": update.clip_norm(1.0)}, "is stage 'update.clip_norm'"),
        (lambda: {(lambda n, t: True): update.sgd(0.1), (lambda n, t: False): update.sgd(0.1)}, "two groups have one"),
    ],
)  # fmt: skip
def test_what_is_no_partition_is_refused(make, said):
    """A parameter in no group or in two, a group of nothing, and a member that is no rule are named."""
    with pytest.raises((ConfigError, WiringError), match=said):
        pipes.digits(update.groups(make())).init(0)


def test_a_layer_needs_a_rate():
    """Layerwise refuses what has no lr."""
    with pytest.raises(ConfigError, match="takes a rule with an lr"):
        update.layerwise(update.frozen(), 0.5)


def test_groups_train_and_resume():
    """A run of groups, layers and a thawing is the same when it goes on from the middle."""
    rule = update.groups({"1.*": update.thawed(update.adamw(), at=20)},
                         otherwise=update.layerwise(update.adamw(1e-2), 0.5))  # fmt: skip
    pipe = pipes.digits(rule, size=256)
    whole = [r.state.clone() for r in fit(pipe, epochs=2, compile=False)]
    again = [r.state for r in fit(pipe, epochs=2, state=whole[0], start=(1, 0), compile=False)]
    testing.same(again[-1].tree, whole[-1].tree)
