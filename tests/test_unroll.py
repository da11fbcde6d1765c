"""Training as a function: its gradients with respect to hyperparameters and first weights are slopes."""

import pytest
import torch
from hypothesis import given, settings
from torch import nn

from pipeline import Pipeline, Stage, backward, evaluate, forward, loss, stage, testing, update
from pipeline.errors import ConfigError, StageError
from tests import strategies

RULES = {
    "sgd": (lambda: update.sgd(0.1, momentum=0.8, weight_decay=0.01), ("lr", "momentum", "weight_decay")),
    "adamw": (lambda: update.adamw(0.01, betas=(0.8, 0.9)), ("lr", "beta1", "beta2", "weight_decay")),
}


def data(seed, size=12):
    """A batch in float64."""
    made = torch.Generator().manual_seed(seed)
    inputs = torch.randn(size, 4, dtype=torch.float64, generator=made)
    return {"inputs": inputs, "targets": torch.randint(3, (size,), generator=made)}


BATCHES, OTHERS = [data(k) for k in range(4)], data(99)


class Smooth(nn.Module):
    """A net without a kink, so that finite differences say what they should."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6).double(), nn.Linear(6, 3).double()

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


def classifier(rule, model=Smooth, **options):
    stages = forward.model(model), loss.cross_entropy(), evaluate.accuracy(), backward.gradients(**options)
    return Pipeline(*stages, rule)


def validation(pipe, state):
    """The loss on other data after some steps."""
    trained, _ = pipe.unroll(state, BATCHES)
    return pipe.measured(trained, OTHERS)["loss"]


def slope(f, x, near):
    """By central differences of the fourth order."""
    return (8 * (f(x + near) - f(x - near)) - (f(x + 2 * near) - f(x - 2 * near))) / (12 * near)


@pytest.mark.parametrize(("rule", "name"), [(r, name) for r, (_, names) in RULES.items() for name in names])
def test_hypergradients_equal_finite_differences(rule, name):
    """A validation loss after training has the gradient of its slope in each number of the rule."""
    pipe = classifier(RULES[rule][0]())
    state = pipe.init(0)

    def after(number):
        return validation(pipe, state.with_hyper({name: number}))

    number = state.hyper[f"update.{rule}.{name}"]
    got, expected = torch.func.grad(after)(number), slope(after, number, 1e-4)
    assert got != 0
    assert abs(got / expected - 1) <= 1e-5


@pytest.mark.parametrize("rule", RULES)
def test_gradients_of_first_weights_equal_finite_differences(rule):
    """So it has in the weights that training began with: along any direction, the slope."""
    pipe = classifier(RULES[rule][0]())
    state = pipe.init(0)
    along = {k: torch.randn_like(p) for k, p in state.params.items()}

    def after(params):
        return validation(pipe, state.replace(params=params))

    def moved(far):
        return after({k: p + far * along[k] for k, p in state.params.items()})

    grads = torch.func.grad(after)(state.params)
    got, expected = sum((grads[k] * v).sum() for k, v in along.items()), slope(moved, torch.zeros(()).double(), 1e-5)
    assert abs(got / expected - 1) <= 1e-5


class Dead(Smooth):
    """A net whose first layer has a gradient of exactly 0."""

    def forward(self, x):
        return self.last(torch.relu(self.first(x) - 100))


@pytest.mark.parametrize("name", ["adadelta", "adagrad", "adam", "adamax", "adamw", "asgd", "lamb", "nadam", "radam",
                                  "rmsprop", "schedule_free_adamw", "sgd"])  # fmt: skip
def test_a_gradient_through_training_is_finite_where_a_unit_is_dead(name):
    """Rules that divide by the root of what was never above 0 have a slope there all the same."""
    pipe = classifier(getattr(update, name)(), Dead)
    state = pipe.init(0)

    def after(params, lr):
        return validation(pipe, state.replace(params=params).with_hyper(lr=lr))

    grads, slope = torch.func.grad(after, argnums=(0, 1))(state.params, torch.tensor(0.01, dtype=torch.float64))
    assert all(g.isfinite().all() for g in (*grads.values(), slope))


def test_a_gradient_is_the_same_by_torchs_tape():
    """An outer `torch.autograd.grad` gives what torch.func gives."""
    pipe = classifier(RULES["sgd"][0]())
    state = pipe.init(0)
    lr = torch.tensor(0.1, dtype=torch.float64)
    [got] = torch.autograd.grad(validation(pipe, state.with_hyper(lr=lr.requires_grad_())), lr)
    testing.same(got, torch.func.grad(lambda n: validation(pipe, state.with_hyper(lr=n)))(lr.detach()), 1e-12)


def test_unrolled_runs_map_over_learning_rates():
    """One gradient for each of several learning rates, by vmap."""
    pipe = classifier(RULES["sgd"][0]())
    state = pipe.init(0)
    slopes = torch.func.grad(lambda lr: validation(pipe, state.with_hyper(lr=lr)))
    rates = torch.tensor([0.01, 0.1, 0.5], dtype=torch.float64)
    testing.same(torch.func.vmap(slopes)(rates), torch.stack([slopes(lr) for lr in rates]), 1e-9)


@given(strategies.seeds)
@settings(max_examples=5)
def test_unroll_is_steps_one_after_the_other_and_measured_is_evaluation(seed):
    """The State and the metrics are those of the steps, and the figures those of an evaluation; both are pure."""
    pipe = classifier(RULES["adamw"][0]())
    state, batches = pipe.init(seed), [data(seed + k) for k in range(3)]
    last, metrics = testing.pure(pipe.unroll, state, batches)
    rows = []
    for batch in batches:
        state, row = pipe.step(state, batch)
        rows.append(row)
    testing.same(last.tree, state.tree)
    testing.same(metrics, {name: torch.stack([row[name] for row in rows]) for name in rows[0]})
    figures = testing.pure(pipe.measured, last, batches[0])
    assert {k: v.ndim for k, v in figures.items()} == {"loss": 0, "accuracy": 0}
    assert {k: v.item() for k, v in figures.items()} == pipe.evaluate(
        last, (batches[0]["inputs"], batches[0]["targets"])
    )


def test_what_can_not_be_unrolled_is_refused():
    """No batches, and gradients by the tape, of which there are no second ones, are named; alone the tape is fine."""
    pipe = classifier(RULES["sgd"][0](), route="tape")
    state = pipe.init(0)
    pipe.unroll(state, [data(0)])
    with pytest.raises(ConfigError, match="at least one batch"):
        pipe.unroll(state, [])
    lr = torch.tensor(0.1, dtype=torch.float64)
    with pytest.raises(StageError, match="by the tape"):
        torch.func.grad(lambda n: validation(pipe, state.with_hyper(lr=n)))(lr)
    with pytest.raises(StageError, match="by the tape"):
        validation(pipe, state.with_hyper(lr=lr.requires_grad_()))


def test_a_second_backward_is_of_the_parameters_as_the_first_left_them():
    """Its gradient is at what an update made of them, and not through that update."""

    def halved(params):
        return {k: p * 0.5 for k, p in params.items()}

    def again(stages, k):
        return [s.named(f"{s.name} {k}") for s in stages]

    net = forward.model(Smooth)
    step = loss.cross_entropy(), backward.gradients(), update.sgd(0.1), Stage("halved", halved, writes=("params",))
    once, twice = Pipeline(net, *step), Pipeline(net, *again(step, 0), net.again(), *again(step, 1))
    expected, _ = once.unroll(once.init(0), [OTHERS] * 2)
    state, _ = twice.step(twice.init(0), OTHERS)
    testing.same(state.params, expected.params, 1e-12)
    split = twice.replace("backward.gradients 1", backward.gradients(accumulate=3).named("backward.gradients 1"))
    testing.same(split.step(split.init(0), OTHERS)[0].params, expected.params, 1e-12)


@pytest.mark.parametrize("mapped", [False, True])
def test_a_stage_may_differentiate_what_it_is_given(mapped):
    """A torch.func.grad inside a stage marks its own copy of an argument; the argument itself stays refused."""

    def slopes(inputs):
        return torch.func.grad(lambda x: x.square().sum())(inputs)

    def marks(inputs):
        return inputs.requires_grad_()

    first = {"seed": torch.tensor(0), "step": torch.tensor(0), "inputs": torch.ones(2, 3)}

    def run(function):
        made = stage(writes="outputs")(function)
        return lambda inputs: made.run({**first, "inputs": inputs}, {}, None)[0]["outputs"]

    whole = torch.func.vmap(run(slopes)) if mapped else run(slopes)
    testing.same(whole(first["inputs"]), 2 * first["inputs"])
    with pytest.raises(StageError, match="sets requires_grad of 'inputs'"):
        run(marks)(first["inputs"])
