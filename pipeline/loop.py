"""fit: the only training loop. A generator of Reports: it prints nothing, and whoever wants to log, plot or stop does
so in the `for` loop over it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

from pipeline.compiled import Compiled, Fallback
from pipeline.compose import Pipeline
from pipeline.errors import ConfigError, WiringError
from pipeline.state import Report, State


def fit(
    pipe: Pipeline,
    *,
    epochs: int,
    validate: Any = None,
    seed: int = 0,
    state: State | None = None,
    compile: bool | Compiled = True,
    fallback: Fallback = "error",
    interval: float | None = None,
) -> Iterator[Report]:
    """Train for `epochs` passes over the pipeline's data, yielding a Report after each.

    - `validate`: data to evaluate on after each epoch.
    - `seed`: of the first weights, the order and dropout; a run is a function of it.
    - `state`: go on from this State (it is copied, and keeps its own seed) instead of a new one.
    - `compile`: True, False, or a step that `pipe.compile()` made, to use its graphs again.
    - `fallback`: as in `Pipeline.compile`.
    - `interval`: also yield a Report about every so many seconds inside an epoch; it has no validation.

    Everything that can be checked is checked here, before the first step.
    """
    if not isinstance(epochs, int) or epochs < 1:
        raise ConfigError(f"epochs={epochs} is not a positive whole number")
    if pipe.load is None:
        raise WiringError("fit() needs batches: put load.batches(...) or load.loader(...) first in the pipeline")
    if isinstance(compile, Compiled) and compile.pipe is not pipe:
        raise ConfigError("compile= was made by another pipeline; use pipe.compile() of this one")
    if state is None:
        batches = pipe.load.batches
        state = pipe.init(seed, steps=None if batches is None else batches * epochs)
    else:
        pipe.check_state(state)
        state = state.clone()
    for data in (None, validate) if validate is not None else (None,):
        pipe.check(state, data)
    program = compile if isinstance(compile, Compiled) else pipe.compile(fallback=fallback) if compile else None
    if program is not None:
        program.prepare(state, validate)
    return _epochs(pipe, program or pipe, state, epochs, validate, math.inf if interval is None else interval)


def _epochs(
    pipe: Pipeline, program: Compiled | Pipeline, state: State, epochs: int, validate: Any, interval: float
) -> Iterator[Report]:
    assert pipe.load is not None
    step = program.step
    done = int(state.step)  # the one value read from the device before training: from here on it is counted
    seed = int(state["seed"])
    batches = pipe.load.batches
    for epoch in range(1, epochs + 1):
        state = pipe.restart_metrics(state)
        seconds, samples, k, compiling = 0.0, 0, 0, _compile_seconds(program)
        start = time.perf_counter()
        for k, batch in enumerate(
            pipe.place.ahead(pipe.prepared(b, True) for b in pipe.load.epoch(seed, epoch - 1)), 1
        ):
            state, _ = step(state, batch)
            samples += len(next(iter(batch.values())))
            if time.perf_counter() - start > interval:
                metrics = pipe.results(state)
                seconds += time.perf_counter() - start
                spent = seconds - (_compile_seconds(program) - compiling)
                yield Report(epoch, epochs, done + k, k, batches, False, metrics, {}, spent, samples, state)
                start = time.perf_counter()
        metrics = pipe.results(state)  # waits for the device: the epoch ends here
        seconds += time.perf_counter() - start - (_compile_seconds(program) - compiling)
        done += k
        results = {} if validate is None else program.evaluate(state, validate)
        yield Report(epoch, epochs, done, k, batches, True, metrics, results, seconds, samples, state)


def _compile_seconds(program: Compiled | Pipeline) -> float:
    """Loaders do not tell their shapes before they are read: their graphs are made inside the first epoch."""
    return program.report.seconds if isinstance(program, Compiled) else 0.0
