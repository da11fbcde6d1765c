"""fit: the only training loop. A generator of Reports: it prints nothing, and whoever wants to log, plot or stop does
so in the `for` loop over it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, TypeAlias

from pipeline.compiled import Compiled, Fallback, Steps
from pipeline.compose import Pipeline
from pipeline.errors import ConfigError, WiringError
from pipeline.stage import is_count
from pipeline.state import Report, State

CALL = 0.1
"""Seconds that a call of many steps takes, about, where nobody says how many."""


def fit(
    pipe: Pipeline,
    *,
    epochs: int,
    validate: Any = None,
    seed: int = 0,
    state: State | None = None,
    compile: bool | Compiled = True,
    steps_per_call: Steps | None = None,
    fallback: Fallback = "error",
    interval: float | None = None,
) -> Iterator[Report]:
    """Train for `epochs` passes over the pipeline's data, yielding a Report after each.

    - `validate`: data to evaluate on after each epoch.
    - `seed`: of the first weights, the order and dropout; a run is a function of it.
    - `state`: go on from this State (it is copied, and keeps its own seed) instead of a new one.
    - `compile`: True, False, or a step that `pipe.compile()` made, to use its graphs again.
    - `steps_per_call`: how many steps the compiled program does at once: a number or "epoch". By default as many as take about a tenth
      of a second, where the data set is in memory and fits on the device, else one. The result is the same.
    - `fallback`: as in `Pipeline.compile`.
    - `interval`: also yield a Report about every so many seconds inside an epoch; it has no validation.

    Everything that can be checked is checked here, before the first step.
    """
    if not is_count(epochs):
        raise ConfigError(f"epochs={epochs} is not a positive whole number")
    if pipe.load is None:
        raise WiringError("fit() needs batches: put load.batches(...) or load.loader(...) first in the pipeline")
    if isinstance(compile, Compiled) and compile.pipe is not pipe:
        raise ConfigError("compile= was made by another pipeline; use pipe.compile() of this one")
    if steps_per_call not in (None, 1):
        if not compile:
            raise ConfigError(f"steps_per_call={steps_per_call!r} needs a compiled step; leave out compile=False")
        pipe.compile(steps=steps_per_call)  # raises where that can't be
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
    steps = _fused if program is not None and program.resident and program.report.fallback is None else _single
    return _epochs(pipe, program or pipe, steps, state, epochs, validate, steps_per_call, interval)


def _epochs(
    pipe: Pipeline, program: Compiled | Pipeline, steps: Any, state: State, epochs: int, validate: Any,
    per_call: Steps | None, interval: float | None,
) -> Iterator[Report]:  # fmt: skip
    assert pipe.load is not None
    done = int(state.step)  # the one value read from the device before training: from here on it is counted
    seed = int(state["seed"])
    batches = pipe.load.batches
    for epoch in range(1, epochs + 1):
        state = program.restart_metrics(state)
        seconds, samples, k, compiling = 0.0, 0, 0, _compile_seconds(program)
        start = time.perf_counter()
        for after, k, samples in steps(program, state, seed, epoch - 1, per_call):
            state = after
            if interval is not None and time.perf_counter() - start > interval and k != batches:
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


Progress: TypeAlias = Iterator[tuple[State, int, int]]
"""The State after some steps of an epoch, with the numbers of batches and samples so far."""


def _single(program: Compiled | Pipeline, state: State, seed: int, epoch: int, per_call: Steps | None) -> Progress:
    """An epoch, a batch from the host at a time."""
    pipe = program if isinstance(program, Pipeline) else program.pipe
    assert pipe.load is not None
    samples = 0
    for k, batch in enumerate(pipe.place.ahead(pipe.prepared(b, True) for b in pipe.load.epoch(seed, epoch)), 1):
        state, _ = program.step(state, batch)
        samples += len(next(iter(batch.values())))
        yield state, k, samples


def _fused(program: Compiled, state: State, seed: int, epoch: int, per_call: Steps | None) -> Progress:
    """An epoch, many steps a call, on data that is on the device."""
    load = program.pipe.load
    assert load is not None
    assert load.batches is not None
    k, count, all_samples = 0, 1, load.batches * load.size if load.drop_last else len(load.data)
    while k < load.batches:
        # The first call tells how long a step takes; so a call is never long, and a signal is never long unheard.
        wanted = count if per_call is None else load.batches if per_call == "epoch" else per_call
        steps = min(wanted, load.batches - k)
        start = time.perf_counter()
        state, _ = program.advance(state, epoch, k, steps)
        k += steps
        spent = max(time.perf_counter() - start, 1e-9)
        count = max(int(min(steps * CALL / spent, 2**20)), 1)
        yield state, k, min(k * load.size, all_samples)


def _compile_seconds(program: Compiled | Pipeline) -> float:
    """Loaders do not tell their shapes before they are read: their graphs are made inside the first epoch."""
    return program.report.seconds if isinstance(program, Compiled) else 0.0
