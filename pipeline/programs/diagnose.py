"""Diagnose: find the first non-finite number of a step, by running it again, uncompiled, with a check after each stage.

A step is a pure function of State and batch, so a failure of a compiled step can be reproduced.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pipeline.backward import Gradients
from pipeline.element import Element
from pipeline.errors import NonFiniteError, PipeError
from pipeline.mesh import Shard
from pipeline.programs import data
from pipeline.programs.evaluate import results
from pipeline.programs.operations import Operations
from pipeline.programs.program import Program
from pipeline.stage import Stage
from pipeline.state import State
from pipeline.tree import named


def first_nonfinite(program: Program, state: State, shard: Shard) -> str | None:
    """The first tensor of a step with NaN or infinity, in words: of the batch, of State, or of a stage's outputs.

    None if all are finite, as after another order of rounding. The operation that made it is named if it is known.

    >>> import torch
    >>> from pipeline import Pipeline, forward, loss, models, backward, update
    >>> model = forward.model(lambda: models.mlp(2, 2))
    >>> pipe = Pipeline(model, loss.cross_entropy(), backward.gradients(), update.sgd(0.1))
    >>> batch = {"inputs": torch.tensor([[1.0, float("nan")]]), "targets": torch.tensor([0])}
    >>> first_nonfinite(pipe.program, pipe.init(0), Shard(batch))
    "the batch's 'inputs' has NaN"
    """
    placed = Shard(program.pipe.place.batch(shard.values), shard.rows)
    found = [*_bad("the batch's", placed.values)]
    for name, kept in state.tree.items():
        found += _bad(f"State's {name}", kept if isinstance(kept, Mapping) else {name: kept})
    with Operations() as operations:
        program.of(_watched(program, found, operations)).train(dict(state.tree), placed)
    return next((words for certain, words in found if certain), found[0][1] if found else None)


Fault: TypeAlias = tuple[bool, str]
"""Whether it is certain (minus infinity may be meant: it masks attention), and its words."""


def _watched(program: Program, found: list[Fault], operations: Operations) -> list[Element]:
    """The stages, each followed by one that looks at its outputs and notes faults."""

    def behind(s: Stage) -> Stage:
        made = f"stage {s.name!r} made"

        def look(**written: Any) -> None:
            by = operations.taken()
            if isinstance(s, Gradients):
                found.extend(_bad("the gradient of", written[s.grads]))
            else:
                found.extend((certain, f"{words} by {by}" if by else words) for certain, words in _bad(made, written))

        return Stage(f"behind {s.name}", look, names={name: name for name in s.values_written}, when=s.when)

    pipe = program.pipe
    return [
        t for s in pipe.stages
        for t in ((s, behind(s)) if isinstance(s, Stage) and s in pipe.graph and s.values_written else (s,))
    ]  # fmt: skip


def _bad(whose: str, values: Any) -> Iterator[Fault]:
    for name, value in named(values).items():
        if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
            certain = bool((value.isnan() | value.isposinf()).any())
            yield certain, f"{whose} {name!r} has {'NaN' if value.isnan().any() else 'infinity'}"


def stopped(program: Program, state: State) -> tuple[Program, State, int] | None:
    """The run that update.finite() stopped: its program, its State, and its number.

    In a sweep, stopped members keep their State and have NaN as metrics; the other members go on.
    """
    names = [s.name for s in program.pipe.finite if s.stops]
    if program.runs is not None or not names:
        return None
    for i in range(program.members):
        stops = [state.memory[name]["stopped"] for name in names]
        if any(int(stop if program.single is program else stop[i]) for stop in stops):
            return program.single, program.member(state, i), i
    return None


def warn_nonfinite(program: Program, metrics: Mapping[str, Any], step: int) -> bool:
    """Warn that a loss is not finite, unless a stage checks it."""
    if any(s.stops for s in program.pipe.finite):
        return False
    for s in program.pipe.backwards:
        means = np.atleast_1d(metrics.get(s.of, 0.0))
        if not np.isfinite(means).any():  # if one member fails, the others go on
            instead = f"put update.finite() after {s.name!r}, which says the step and the tensor that it came from"
            warnings.warn(f"the mean of {s.of!r} is {means[0]} up to step {step}; {instead}", stacklevel=3)
            return True
    return False


def results_so_far(program: Program, state: State, epoch: int, done: int, behind: int = 0) -> dict[str, Any]:
    """The metrics so far. Raises NonFiniteError if State was stopped, with the cause in that step. `behind`: epochs of
    the order before the run's first one."""
    found = stopped(program, state)
    if found is None:
        return results(program, state)
    single, own, i = found
    load, step = program.pipe.load, int(own.step)
    assert load is not None
    own, state, k = unstopped(single, own), unstopped(program, state), step - done
    why = None
    if load.known:
        seed = program.seed(state.tree)
        shard = next(data.epoch(single, load, seed[i] if isinstance(seed, tuple) else seed, behind + epoch - 1, k))
        with suppress(PipeError, RuntimeError):  # such as too little memory for an uncompiled step
            why = first_nonfinite(single, own, shard)
        why = next(filter(None, program.pipe.place.everyone(why)), None)
    where = f"step {step + 1} (epoch {epoch}, batch {k + 1}{'' if single is program else f', member {i}'})"
    raised = f"{where} is not finite: {why or 'its loss or a gradient'}; State is as it was before it"
    raise NonFiniteError(f"{raised}: lower the learning rate, clip, or skip such steps", state, epoch - 1, k)


def unstopped(program: Program, state: State) -> State:
    """The same State, free to advance."""
    names = [s.name for s in program.pipe.finite if s.stops]
    if not names:
        return state
    free = {name: {"stopped": torch.zeros_like(state.memory[name]["stopped"])} for name in names}
    return state.replace(memory={**state.memory, **free})
