import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from pipeline import Pipeline, Report, State, backward, forward, loss, models, testing, update
from pipeline.errors import DataError, StateError
from pipeline.state import format_metric, samples
from pipeline.tree import named
from tests.strategies import learning_rates, parameters, seeds


def made(lr=0.1):
    """A State in which two stages have a hyperparameter `limit`."""
    return Pipeline(
        forward.model(lambda: models.mlp(4, 2)),
        loss.cross_entropy(),
        backward.gradients(),
        update.clip_value(1.0),
        update.clip_norm(2.0),
        update.sgd(lr, momentum=0.9),
    ).init(seed=3)


@st.composite
def states(draw):
    """A State of drawn parameters, without a pipeline."""
    params, buffers = draw(parameters()), draw(parameters())
    hyper = {f"update.{k}": torch.tensor(draw(learning_rates)).double() for k in ("sgd.lr", "sgd.momentum")}
    memory = {"update.sgd": {"velocity": params}}
    step, seed = torch.tensor(draw(st.integers(0, 99))), torch.tensor(draw(seeds))
    return State({"params": params, "buffers": buffers, "memory": memory, "hyper": hyper, "step": step, "seed": seed})


@given(states())
def test_a_state_is_a_pytree(state):
    """A State taken apart into its tensors and put together again is the same State."""
    leaves, spec = pytree.tree_flatten(state)
    again = pytree.tree_unflatten(leaves, spec)
    assert isinstance(again, State)
    assert all(torch.is_tensor(x) for x in leaves)
    testing.same(again.tree, state.tree)
    doubled = pytree.tree_map(lambda x: x * 2, state)
    testing.same(doubled.params, {k: p * 2 for k, p in state.params.items()})


@given(states())
def test_a_clone_shares_nothing(state):
    """A clone has the same values in storage of its own."""
    copy = state.clone()
    testing.same(copy.tree, state.tree)
    places = [{x.data_ptr() for x in pytree.tree_leaves(s)} for s in (state, copy)]
    assert not places[0] & places[1]


@given(states(), learning_rates)
def test_changes_make_another_state(state, lr):
    """Neither replace nor with_hyper, nor writing into what a State gives out, changes it."""
    before = state.clone()
    other = state.replace(step=state.step + 1).with_hyper(lr=lr)
    state.params["more"] = state.hyper["more"] = state.memory["more"] = state["buffers"]["more"] = 0
    testing.same(state.tree, before.tree)
    assert (other.step.item(), other.hyper["update.sgd.lr"].item()) == (state.step.item() + 1, lr)
    assert other.params["p0"] is state.params["p0"]
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        state._tree = {}


def test_names_keep_their_order():
    """Other values in another order are in the order of the State."""
    state = State({"params": {"a": torch.zeros(1), "b": torch.ones(1)}, "step": torch.zeros(())})
    assert [*state.replace(params={"b": torch.zeros(1), "a": torch.zeros(1)}).params] == ["a", "b"]


@given(learning_rates)
def test_hyperparameters_have_short_and_whole_names(lr):
    """A hyperparameter is changed by its own name, its stage's and its own, or the whole name; it stays 0-d float64."""
    state = made()
    for changed in (
        state.with_hyper(lr=lr),
        state.with_hyper({"sgd.lr": lr}),
        state.with_hyper({"update.sgd.lr": torch.tensor(lr, dtype=torch.float64)}),
    ):
        value = changed.hyper["update.sgd.lr"]
        assert (value.item(), value.dtype, value.shape) == (lr, torch.float64, ())
    stacked = state.with_hyper(lr=torch.tensor([0.1, 0.2]))
    assert (stacked.hyper["update.sgd.lr"].shape, stacked.hyper["update.sgd.lr"].dtype) == ((2,), torch.float64)


def test_the_callers_tensor_is_copied():
    """A hyperparameter does not change with the tensor that it was given as."""
    lr = torch.tensor(0.5, dtype=torch.float64)
    state = made().with_hyper(lr=lr)
    lr.zero_()
    assert state.hyper["update.sgd.lr"].item() == 0.5


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda s: s.with_hyper(momentun=0.5), "no hyperparameter 'momentun'; did you mean 'momentum'"),
        (lambda s: s.with_hyper({"update.sgd.lt": 0.5}), "did you mean 'update.sgd.lr'"),
        (lambda s: s.with_hyper(limit=0.5), "name one of update.clip_value.limit, update.clip_norm.limit"),
        (lambda s: s["parms"], "keeps no 'parms'; did you mean 'params'"),
        (lambda s: s.replace(setp=0), "keeps no 'setp'; did you mean 'step'"),
    ],
)
def test_a_name_that_there_is_not(use, message):
    """A name that is not there, or means two things, raises a StateError with the ones that are meant."""
    with pytest.raises(StateError, match=message):
        use(made())


def test_a_spent_state_raises():
    """After donation a State raises whenever it is used and says so when printed, and its successor has the values."""
    state = made()
    copy = state.clone()
    kin = state.with_hyper(lr=0.5)
    state.lease.donated = True
    with pytest.raises(StateError, match="donated"):
        kin.clone()
    testing.same(made().tree, copy.tree)
    assert repr(state) == "State(donated)"
    for use in (
        lambda: state.params,
        lambda: state["step"],
        lambda: state.step,
        lambda: state.hyper,
        state.clone,
        lambda: state.replace(step=0),
        lambda: state.with_hyper(lr=1.0),
        lambda: pytree.tree_leaves(state),
    ):
        with pytest.raises(StateError, match=r"donated to a compiled step.*state\.clone\(\)"):
            use()


def test_a_state_tells_its_size():
    """A State prints its step and how many numbers it keeps under each name, and stacked States their count."""
    text = repr(made())
    assert text.startswith("State(step 0, numbers in params: 10, buffers: 0,")
    stacked = pytree.tree_map(lambda x: torch.stack([x, x]), made())
    assert repr(stacked).startswith("State(step (2,), numbers in params: 20")


# -- Report


def report(train, validate, **changes):
    given = {"epoch": 3, "epochs": 20, "step": 60, "batch": 20, "batches": 20, "complete": True, "samples": 1437}
    return Report(**{**given, "train": train, "validate": validate, "seconds": 0.5, "state": made(), **changes})


def test_a_report_is_a_line():
    """A Report prints its epoch, both losses, the metrics, and the speed; lists are left out."""
    text = str(report({"loss": 0.25, "accuracy": 0.9}, {"loss": 0.5, "accuracy": 0.875, "confusion": [[1, 0], [0, 1]]}))
    assert text == "epoch  3/20  loss 0.2500  val loss 0.5000  accuracy 87.50 %  2,874 samples/s"
    assert str(report({"loss": 0.25}, {}, seconds=0.0)) == "epoch  3/20  loss 0.2500  0 samples/s"


@given(st.floats(-1e9, 1e9))
def test_a_metric_is_shown_to_four_digits(value):
    """A metric as text reads as its value: shares in percent, others with four decimals or four digits."""
    name, text = format_metric("mae", value).split()
    assert name == "mae"
    assert float(text) == pytest.approx(value, abs=5.1e-5, rel=5e-4)
    share, percent = format_metric("top5", value / 1e9).removeprefix("top5 ").split()
    assert (float(share), percent) == (pytest.approx(value / 1e7, abs=0.0051), "%")


@given(parameters())
def test_names_are_in_the_order_of_the_leaves(params):
    """A tree has as many names as leaves, in one order, so that it can be made again of them."""
    tree = {"params": params, "memory": [dict(params), (torch.zeros(2),)], "step": torch.tensor(3)}
    found = named(tree)
    assert all(a is b for a, b in zip(found.values(), pytree.tree_leaves(tree), strict=True))
    assert {"step", "memory/1/0", *(f"params/{name}" for name in params)} <= set(found)


def test_two_tensors_of_one_name_are_refused():
    """A name that two leaves would have tells neither."""
    with pytest.raises(StateError, match="two tensors are called a/b"):
        named({"a/b": torch.zeros(1), "a": {"b": torch.zeros(1)}})


@pytest.mark.parametrize(
    ("batch", "by", "count"),
    [
        ({"inputs": torch.zeros(4, 2), "targets": torch.zeros(4)}, None, 4),
        ({"deep": [{"x": torch.zeros(3, 2)}, torch.zeros(())], "at": torch.zeros(3)}, None, 3),
        ({"edges": torch.zeros(2, 9), "targets": torch.zeros(5)}, None, 5),
        ({"edges": torch.zeros(2, 9), "inputs": torch.zeros(5, 3)}, None, 5),
        ({"edges": torch.zeros(2, 9), "nodes": torch.zeros(5, 3)}, "nodes", 5),
        ({"scale": torch.zeros(())}, None, 1),
        (
            {"inputs": [torch.zeros(3, 8, 4), torch.zeros(3, 6, 6)], "targets": [{"box": torch.zeros(5, 4)}] * 2},
            None,
            2,
        ),
        ({"inputs": [torch.zeros(3, 2)] * 4, "scale": torch.zeros(())}, "inputs", 4),
        ({"inputs": [torch.zeros(3, 2), torch.zeros(3, 5)], "targets": torch.zeros(3)}, None, 3),
        ({"inputs": [torch.zeros(4, 2), torch.zeros(4, 5)], "targets": torch.zeros(2)}, None, 2),
        ({"inputs": [torch.zeros(3, 2), torch.zeros(3, 5)], "more": {"a": torch.zeros(3)}}, None, 3),
        ({"edges": torch.zeros(2, 9), "nodes": torch.zeros(7), "targets": [torch.zeros(1)] * 5}, None, 5),
        ({"words": ["a", "b"], "inputs": torch.zeros(3, 2)}, None, 3),
    ],
)
def test_a_batch_says_how_many_samples_it_has(batch, by, count):
    """It is the first dimension that all share, else that of the targets or the inputs, or of what was named; of lists
    alone their length."""
    assert samples(batch, by) == count


@pytest.mark.parametrize("by", [None, "scale"])
def test_a_batch_that_does_not_say_how_many_samples_it_has(by):
    """The message shows what there is, and what to write."""
    batch = {"edges": torch.zeros(2, 9), "nodes": torch.zeros(5, 3), "scale": torch.zeros(())}
    with pytest.raises(DataError, match=r"how many samples.*load.loader\(..., samples=...\)"):
        samples(batch, by)
