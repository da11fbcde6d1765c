import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipeline import Pipeline, Stage, backward, fit, forward, load, loss, schedules, stage, update
from pipeline.errors import ConfigError, StageError, WiringError
from tests.strategies import normals, shapes

names = st.lists(st.text("uvwxyz", min_size=3, max_size=6), min_size=1, max_size=5, unique=True)
numbers = st.one_of(st.integers(-9, 9), st.floats(-9, 9), st.just(schedules.constant(2.0)))
constants = st.one_of(st.booleans(), st.text(max_size=3), st.just(()), st.just(torch.float32))


def function(source, **values):
    """A function from its source: what a user writes, with names that were drawn."""
    return eval(f"lambda {source}", values)


# -- wiring


@given(names, st.data())
def test_parameter_names_are_the_wiring(words, data):
    """Without a default a parameter is read, None is optional, a number is a hyperparameter, the rest are constants."""
    kinds = [data.draw(st.sampled_from(["read", "optional", "number", "constant"])) for _ in words]
    draws = {"optional": st.none(), "number": numbers, "constant": constants}
    values = {f"_{w}": data.draw(draws[k]) for w, k in zip(words, kinds, strict=True) if k != "read"}
    made = stage(function(f"*, {', '.join(f'{w}=_{w}' if f'_{w}' in values else w for w in words)}: 0", **values))

    def of(kind):
        return tuple(w for w, k in zip(words, kinds, strict=True) if k == kind)

    assert (made.reads, made.optional, tuple(made.hyper)) == (of("read"), of("optional"), of("number"))
    assert all(made.hyper[w] is values[f"_{w}"] for w in of("number"))


@given(names)
def test_renaming_back_is_not_renaming(words):
    """A renamed stage reads and writes other names, gives its function the same values, and renames back."""
    made = stage(function(f"{', '.join(words)}: ({', '.join(words)})"), writes=tuple(f"{w}_out" for w in words))
    there = {n: n.upper() for n in (*made.reads, *made.writes)}
    renamed = made.rename(**there)
    assert renamed.reads == tuple(w.upper() for w in words)
    assert renamed.writes == tuple(there[w] for w in made.writes)
    values = {w: i for i, w in enumerate(words)}
    written, _ = renamed.run({w.upper(): i for w, i in values.items()}, {}, None)
    assert written == {f"{w}_out".upper(): i for w, i in values.items()}
    back = renamed.rename(**{new: old for old, new in there.items()})
    assert (back.reads, back.writes) == (made.reads, made.writes)


def test_a_stage_from_a_plain_function():
    """A decorated function is a stage with the function's name, and still the function when it is called."""

    @stage(writes="y")
    def double(x, factor=2.0):
        return x * factor

    assert isinstance(double, Stage)
    assert (double.name, double.reads, double.writes, double.hyper) == ("double", ("x",), ("y",), {"factor": 2.0})
    assert double(3) == 6.0
    assert double.run({"x": 3, "else": 4}, {"factor": 5.0}, None) == ({"y": 15.0}, None)
    assert stage(lambda x: None).name == "<lambda>"
    assert stage(name="mine")(lambda x: None).name == "mine"


def test_an_optional_value():
    """An optional value is given where there is one, and None where there is none."""
    made = stage(writes="y")(lambda x, mask=None: (x, mask))
    assert made.run({"x": 1}, {}, None)[0] == {"y": (1, None)}
    assert made.run({"x": 1, "mask": 2}, {}, None)[0] == {"y": (1, 2)}


def test_a_stage_that_remembers():
    """A stage with an init is given its memory, and returns the new one after what it writes."""
    made = stage(writes="mean", init=lambda params: params)(lambda x, memory: (memory + x, memory + x))
    assert made.remembers
    assert made.reads == ("x",)
    assert made.run({"x": 2}, {}, 5) == ({"mean": 7}, 7)


def test_a_renamed_update():
    """A rename goes through to all that a stage reads and writes."""
    critic = update.sgd(lr=0.1).rename(params="critic", grads="critic_grads")
    assert (critic.reads, critic.writes) == (("critic", "critic_grads"), ("critic",))


def test_other_stages_are_other_values():
    """`named`, `rename` and `with_hyper` give new stages and leave the one they came from."""
    sgd = update.sgd(lr=0.1)
    others = (sgd.named("slow"), sgd.rename(params="critic"), sgd.with_hyper(lr=0.5))
    assert (sgd.name, sgd.reads, sgd.hyper["lr"]) == ("update.sgd", ("params", "grads"), 0.1)
    assert (others[0].name, others[1].reads[0], others[2].hyper["lr"]) == ("slow", "critic", 0.5)
    with pytest.raises(AttributeError):
        sgd.name = "mine"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: stage(lambda *xs: 0), r"takes \*xs: parameter names are the wiring"),
        (lambda: stage(lambda x, **more: 0), r"takes \*more: parameter names are the wiring"),
        (lambda: update.sgd(0.1).rename(param="a"), "neither reads nor writes 'param'; did you mean 'params'"),
        (lambda: update.sgd(0.1).with_hyper(weight_decai=1.0), "'weight_decai'; did you mean 'weight_decay'"),
    ],
)
def test_wiring_that_can_not_be(build, message):
    """Parameters without names, and names that there are not, raise a WiringError when the stage is built."""
    with pytest.raises(WiringError, match=message):
        build()


# -- running


@given(names)
def test_results_may_be_named(words):
    """A function that returns a dict of what it writes may do so in any order."""
    made = stage(writes=tuple(words) if len(words) > 1 else (*words, "more"))(lambda: dict(results))
    results = [(w, i) for i, w in enumerate(reversed(made.writes))]
    assert made.run({}, {}, None)[0] == dict(results)


@pytest.mark.parametrize(
    ("writes", "result", "message"),
    [
        (("a", "b"), 1, "returned int, but it declares a, b"),
        (("a", "b"), (1,), "returned 1 values, but it declares a, b"),
        (("a", "b"), (1, 2, 3), "returned 3 values, but it declares a, b"),
        (("a", "b"), {"a": 1, "c": 2}, "returned a, c, but it declares a, b"),
        (("a", "b"), None, "returned NoneType, but it declares a, b"),
        (("a", "b"), (1, None), "returned None for 'b', but it declares a, b"),
        ("a", None, "returned None for 'a', but it declares a"),
        ((), 1, "returned 1 values, but it declares nothing"),
    ],
)
def test_what_was_not_declared_is_an_error(writes, result, message):
    """A result other than what a stage declares raises a StageError that shows both."""
    with pytest.raises(StageError, match=f"stage 'bad' {message}"):
        stage(writes=writes, name="bad")(lambda: result).run({}, {}, None)


@pytest.mark.parametrize("shape", [(), (3,)])
@pytest.mark.parametrize(
    ("first", "added"),
    [(torch.int64, 0.5), (torch.bool, 2), (torch.bfloat16, torch.ones(1)), (torch.float32, torch.ones(1).double())],
)
def test_memory_keeps_its_dtype(first, added, shape):
    """A graph writes it in place, and would cut a float to a whole number; a 0-d float is rounded, with and without."""

    @stage(writes="loss", init=lambda params: {"n": torch.zeros(shape, dtype=first)})
    def counted(loss, memory):
        return loss, {"n": memory["n"] + torch.as_tensor(added).expand(*shape, 1)[..., 0]}

    rows = load.batches({"inputs": torch.randn(6, 4), "targets": torch.arange(3).repeat(2)}, size=3)
    pipe = Pipeline(
        rows, forward.model(nn.Linear(4, 3)), loss.cross_entropy(), counted, backward.gradients(), update.sgd(0.1)
    )
    if shape == () and first.is_floating_point:
        assert pipe.step(pipe.init())[0].tree["memory"]["counted"]["n"].dtype == first
        return
    with pytest.raises(StageError, match=r"'counted' makes 'memory/counted/n' \w+ of \w+; return .to\(torch\."):
        list(fit(pipe, epochs=1))


def test_memory_that_was_not_returned_is_an_error():
    """A stage that forgets to return its memory raises a StageError that asks for it."""
    made = stage(writes="a", name="bad", init=lambda: 0)(lambda memory: 1)
    with pytest.raises(StageError, match="returned int, but it declares a, memory"):
        made.run({}, {}, 0)


@given(shapes, st.data())
def test_a_failure_shows_the_shapes(shape, data):
    """A stage that fails raises a StageError with its name, the shapes it was given and the first line of the
    reason."""
    made = stage(writes="y", name="bad")(lambda x: x @ torch.zeros(7, 7, 7, 7)[..., :6, :])
    with pytest.raises(StageError) as error:
        made.run({"x": data.draw(normals(shape))}, {}, None)
    assert str(error.value).startswith(f"stage 'bad' failed on x {shape} float32: ")
    assert "\n" not in str(error.value)
    assert error.value.__cause__ is not None


def test_errors_for_the_user_pass():
    """An error that is for the user already is not wrapped in another."""

    @stage
    def refuse():
        raise ConfigError("not this")

    with pytest.raises(ConfigError, match=r"^not this$"):
        refuse.run({}, {}, None)


def test_a_stage_may_not_mark_what_it_is_given():
    """Asking a batch for gradients would last beyond the step; the message has the way that does not."""

    @stage(writes="loss")
    def penalty(inputs):
        return inputs.requires_grad_().sum()

    batch = {"inputs": torch.ones(2)}
    pipe = Pipeline(penalty)
    with pytest.raises(StageError, match=r"sets requires_grad of 'inputs'.*detach\(\).requires_grad_\(\)"):
        pipe.step(pipe.init(0), batch)
    assert not batch["inputs"].requires_grad
