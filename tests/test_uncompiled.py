"""Uncompiled steps at the beginning of a run: they end at a step, at which the graphs of the others are ready."""

import os
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from pipeline import Pipeline, beside, fit, load, stage, testing
from pipeline.errors import ConfigError
from pipeline.programs.evaluate import restart_metrics
from tests import forked, pipes

BATCHES, STEPS = 23, 55
SMALL = pipes.small()
EARLY = (0, 1, BATCHES - 1, BATCHES, 30, 2 * BATCHES, STEPS, 99)


class Counting:
    """A backend that runs a graph as it was traced, and counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, graph, inputs):
        def run(*args):
            self.calls += 1
            return graph.forward(*args)

        return run


def counted(pipe, eager_steps):
    """A compiled step, and the counter of its calls."""
    counting = Counting()
    return pipe.compile(backend=counting, eager_steps=eager_steps), counting


@cache
def small(eager_steps):
    return counted(SMALL, eager_steps)


def trained(compiled, counting, **options):
    """The last Report of a run of two epochs and a part, and the number of compiled steps in it."""
    calls = counting.calls - len(compiled.report.graphs)  # a graph's check is a call, too
    run = {"epochs": 3, "max_steps": STEPS, "seed": 1, "compile": compiled, **options}
    *_, last = fit(compiled.pipe, **run)
    return last, counting.calls - len(compiled.report.graphs) - calls


@cache
def pure(eager_steps):
    """The last State of a run, from its uncompiled steps and its compiled ones."""
    early = min(eager_steps, STEPS)
    expected = SMALL.init(1, steps=STEPS)
    for at in range(early):
        expected = restart_metrics(SMALL.program, expected) if at % BATCHES == 0 else expected
        expected, _ = SMALL.step(expected)
    if early < STEPS:
        expected = trained(*small(0), state=expected, start=divmod(early, BATCHES))[0].state
    return expected.clone()


@pytest.mark.parametrize("eager_steps", EARLY)
def test_a_run_is_uncompiled_up_to_a_step(eager_steps):
    """And compiled from there on, to the last bit."""
    last, compiled = trained(*small(eager_steps))
    assert compiled == max(STEPS - eager_steps, 0)
    testing.same(last.state.tree, pure(eager_steps).tree)


@given(st.sampled_from(EARLY), st.integers(1, STEPS - 1))
def test_it_goes_on_from_any_step(eager_steps, stop):
    """Stopped before, at or after that step and resumed, it ends as if it had not been."""
    first, _ = trained(*small(eager_steps), max_steps=stop)
    last, compiled = trained(*small(eager_steps), state=first.state, start=divmod(stop, BATCHES))
    assert compiled == STEPS - max(min(eager_steps, STEPS), stop)
    testing.same(last.state.tree, pure(eager_steps).tree)


class Items(Dataset):
    """The same samples, one at a time."""

    def __len__(self):
        return BATCHES * 62

    def __getitem__(self, i):
        return {name: values[i] for name, values in pipes.DIGITS.tensors.items()}


@pytest.mark.parametrize(
    ("data", "options"),
    [
        (load.loader(DataLoader(Items(), batch_size=62)), {}),
        (load.batches(Items(), size=62), {"steps_per_call": 4}),
        (load.batches(Items(), size=62), {}),
    ],
    ids=["a DataLoader", "stacked batches", "one by one"],
)
def test_each_way_through_an_epoch_goes_over_at_the_step(data, options):
    """Whatever brings the batches."""
    pipe = SMALL.replace("load.batches", data)
    last, compiled = trained(*counted(pipe, 30), epochs=2, **options)
    assert last.step == 2 * BATCHES
    assert compiled in (2 * BATCHES - 30, -(-(2 * BATCHES - 30) // 4))  # a call of four steps counts once


def test_calls_of_many_steps_pass_the_step():
    """With the metrics of each step; an earlier State is stepped uncompiled again."""
    state = SMALL.init(0, steps=20)
    compiled = SMALL.compile(backend=Counting(), steps=8, eager_steps=5)
    after, metrics = compiled(state.clone())
    plain, losses = state, []
    for _ in range(5):
        plain, seen = SMALL.step(plain)
        losses.append(seen["loss"])
    assert metrics["loss"].shape == (8,)
    assert torch.equal(metrics["loss"][:5], torch.stack(losses))
    assert len(compiled.report.graphs) == 1
    testing.same(compiled.step(state.clone())[0].tree, SMALL.step(state)[0].tree)
    assert int(compiled(after)[0].step) == 16


def test_states_of_uncompiled_steps_stay_as_they_are():
    """A graph writes into its State in place; what uncompiled steps left as it was is no longer shared then."""
    compiled = SMALL.compile(backend=Counting(), eager_steps=3)
    kept = [SMALL.init(0, steps=40)]
    for _ in range(3):
        kept.append(compiled.step(kept[-1])[0])
    copies, state = [s.clone() for s in kept], compiled.step(kept[-1])[0]
    compiled.step(state.with_hyper(lr=0.5))
    for before, after in zip(copies[:-1], kept[:-1], strict=True):
        testing.same(after.tree, before.tree)


def test_an_early_state_leaves_the_place_of_another():
    """Two runs by one compiled step, in turn: each goes on with its own batches."""
    state = SMALL.init(0, steps=40)
    turns, alone = (SMALL.compile(backend=Counting(), steps=2, eager_steps=5) for _ in range(2))
    for _ in range(4):
        state, _ = turns(state)
    kept = state.clone()
    turns(SMALL.init(1, steps=40))
    testing.same(turns(state)[0].tree, alone(kept)[0].tree)


def test_an_evaluation_is_compiled_if_the_last_step_was():
    """And is that of the pipeline before: a run that ends with the uncompiled steps compiles nothing."""
    compiled = SMALL.compile(backend=Counting(), eager_steps=1)
    state = SMALL.init(0, steps=20)
    for _ in range(2):
        assert compiled.evaluate(state, pipes.TEST) == SMALL.evaluate(state, pipes.TEST)
        assert not compiled.report.graphs
        state, _ = compiled.step(state)
    compiled.evaluate(state, pipes.TEST)
    assert {g.program for g in compiled.report.graphs} == {"train step", "evaluation"}


@pytest.mark.parametrize(
    "form", [lambda p: p, lambda p: (p + 0).t().contiguous().t()], ids=["aliased", "other strides"]
)
def test_a_state_of_any_form_goes_over_to_a_graph(form):
    """Also if two of its tensors share storage, or have other strides than in the first State."""

    def follow(params, memory):
        return params, {k: form(p) for k, p in params.items()}

    shadow = stage(writes="params", name="shadow", init=lambda params: {k: p.clone() for k, p in params.items()})
    pipe = Pipeline(*SMALL.stages, shadow(follow))
    last, compiled = trained(*counted(pipe, 9), epochs=1)
    assert compiled == BATCHES - 9
    *_, plain = fit(pipe, epochs=1, max_steps=STEPS, seed=1, compile=False)
    testing.same(last.state.tree, plain.state.tree, 1e-5)


def test_a_compiled_step_has_its_own_number():
    with pytest.raises(ConfigError, match=r"write pipe\.compile\(eager_steps=5\)"):
        fit(SMALL, epochs=1, compile=small(0)[0], eager_steps=5)


@pytest.mark.parametrize("steps", [-1, 1.5, True, "9"])
def test_a_number_of_steps_that_is_none_is_refused(steps):
    with pytest.raises(ConfigError, match=r"eager_steps=.* is neither a positive whole number nor 0"):
        SMALL.compile(eager_steps=steps)


ANOTHER = """
from pipeline import beside, fit, testing
from pipeline.compile import uncompiled
from tests import pipes

small, begun = pipes.small(), []
compiled = small.compile(eager_steps=23)
*_, last = fit(small, epochs=2, compile=compiled)
assert [(g.backend, g.loaded) for g in compiled.report.graphs] == [("native", True)], compiled.report
assert last.seconds < compiled.seconds
uncompiled.Beside = lambda work: begun.append(work) or beside.Beside(lambda: 1 / 0)
*_, again = fit(small, epochs=2, eager_steps=23)
testing.same(again.state.tree, last.state.tree)
assert len(begun) == 1
list(fit(small, epochs=2, eager_steps=46))
assert len(begun) == 1
"""


@pytest.mark.skipif(not beside.possible(), reason="needs Linux")
def test_another_process_compiles(tmp_path):
    """Its graphs come from the cache, and what it took to wait for them is no time of steps. If it dies, this process
    compiles; if the run ends before, none is begun.

    It is forked from a new process: from one that has used autograd on another device than the CPU, as tests of a
    simulated one do, it can't train, and dies.
    """
    done = forked.run(code=ANOTHER, env={**os.environ, "PIPE_CACHE": str(tmp_path)})
    assert (done.returncode, done.stderr) == (0, "")
