"""Laws of stages and pipelines, as functions that raise AssertionError, for stages of your own.

from pipeline import testing

testing.pure(my_stage, outputs, targets)
testing.lawful(my_pipeline, state, batch)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pipeline.compile import Compiled
from pipeline.pipe import Pipeline
from pipeline.programs import data
from pipeline.programs import evaluate as run
from pipeline.state import Batch, State
from pipeline.testing.by_hand import like_by_hand as like_by_hand
from pipeline.tree import named


def same(a: Any, b: Any, tolerance: float = 0.0) -> None:
    """Two pytrees have one structure, and their tensors are equal: bit for bit, or within `tolerance`.

    >>> same({"x": torch.ones(2)}, {"x": torch.ones(2) + 1e-7}, tolerance=1e-6)
    """
    leaves_a, spec_a = pytree.tree_flatten(a)
    leaves_b, spec_b = pytree.tree_flatten(b)
    assert spec_a == spec_b, f"structures differ:\n{spec_a}\n{spec_b}"
    for x, y in zip(leaves_a, leaves_b, strict=True):
        if isinstance(x, Tensor):
            torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance, equal_nan=True)
        else:
            assert x == y, f"{x!r} != {y!r}"


def differences(a: Any, b: Any) -> list[str]:
    """The names of tensors that differ in any bit between two trees. NaNs with equal bits are equal.

    >>> differences({"x": torch.zeros(2), "y": torch.ones(1)}, {"x": torch.zeros(2), "y": torch.ones(1) + 1e-7})
    ['y']
    """
    if pytree.tree_structure(a) != pytree.tree_structure(b):
        return ["their structure"]
    pairs = zip(named(a).items(), named(b).values(), strict=True)
    return [n for (n, x), y in pairs if (x.shape, x.dtype) != (y.shape, y.dtype) or not torch.equal(_bits(x), _bits(y))]


def _bits(x: Tensor) -> Tensor:
    return x.new_empty(x.numel()).copy_(x.reshape(-1)).view(torch.uint8)


def pure(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A call changes no argument and not torch's global generator, and repeats bit for bit. Returns the result."""
    inputs = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    before = [x.clone() for x in inputs]
    versions = [x._version for x in inputs]
    generator = torch.random.get_rng_state()
    result = function(*args, **kwargs)
    same(inputs, before)
    assert [x._version for x in inputs] == versions, "an argument was written into"
    assert torch.equal(generator, torch.random.get_rng_state()), "torch's global generator was used"
    same(result, function(*args, **kwargs))
    return result


def keeps_shapes(pipe: Pipeline, state: State, batch: Batch) -> None:
    """A step keeps the State's structure, shapes, dtypes and devices."""
    after, _ = pipe.step(state, batch)
    old, spec = pytree.tree_flatten(state.tree)
    new, new_spec = pytree.tree_flatten(after.tree)
    assert spec == new_spec, "the structure of State changed"
    for a, b in zip(old, new, strict=True):
        assert (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)


def evaluation_changes_nothing(pipe: Pipeline, state: State, batch: Batch) -> None:
    """Measuring is pure."""
    pure(pipe.program.measure, state.tree, pipe.program.zeros(), data.placed(pipe.program, state.tree, batch, False))


def vmaps(pipe: Pipeline, state: State, batch: Batch, tolerance: float = 1e-5) -> None:
    """A step mapped over two stacked States equals a step on each."""
    placed = data.placed(pipe.program, state.tree, batch)
    other = state.replace(seed=state["seed"] + 1)
    stacked = State(pytree.tree_map(lambda *xs: torch.stack(xs), state.tree, other.tree))
    mapped, _ = torch.func.vmap(lambda s: run.step(pipe.program, s, placed))(stacked)
    for i, alone in enumerate((state, other)):
        expected, _ = run.step(pipe.program, alone, placed)
        same(pytree.tree_map(lambda x, i=i: x[i], mapped.tree), expected.tree, tolerance)


def compiled_equals_eager(compiled: Compiled, state: State, batches: Iterable[Batch], tolerance: float = 1e-5) -> None:
    """Compiled steps return the metrics and State of the plain functions, including running sums."""
    donated, plain = state.clone(), state
    for batch in batches:
        plain, expected = run.step(compiled.program, plain, batch)
        donated, metrics = compiled(donated, batch)
        same(metrics, expected, tolerance)
    same(donated.tree, plain.tree, 2 * tolerance)


def lawful(pipe: Pipeline, state: State, batch: Batch) -> None:
    """All laws except compiling, which takes seconds: purity, shapes, evaluation, vmap."""
    pure(pipe.step, state, batch)
    keeps_shapes(pipe, state, batch)
    evaluation_changes_nothing(pipe, state, batch)
    vmaps(pipe, state, batch)
