"""fit: the only training loop. A generator of Reports: it prints nothing, and whoever wants to log, plot or stop does
so in the `for` loop over it."""

from __future__ import annotations

import itertools
import sys
import time
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from attrs import evolve
from torch.utils.data import DataLoader, Dataset

from pipeline.compile import Backend, Compiled, Fallback, Steps
from pipeline.compose import Composition
from pipeline.diagnose import first_nonfinite
from pipeline.direction import directions
from pipeline.errors import ConfigError, NonFiniteError, PipeError, StateError, WiringError
from pipeline.load import Load
from pipeline.pace import Pace
from pipeline.pipe import Pipeline
from pipeline.place import Place
from pipeline.sources import Source
from pipeline.stage import is_count
from pipeline.state import Batch, Report, State, samples

CALL = 0.1
"""Seconds that a call of many steps takes, about, where nobody says how many."""


def fit(
    pipe: Pipeline,
    *,
    epochs: int | None = None,
    max_steps: int | None = None,
    validate: Any = None,
    validate_every: int | None = None,
    seed: int = 0,
    state: State | None = None,
    compile: bool | Compiled = True,
    steps_per_call: Steps | None = None,
    backend: Backend = "auto",
    fallback: Fallback = "error",
    interval: float | None = None,
    every: int | None = None,
    start: tuple[int, int] = (0, 0),
) -> Generator[Report, State | None, None]:
    """Train for `epochs` passes over the pipeline's data, yielding a Report after each.

    - `max_steps`: end after so many steps, with validation, also inside an epoch; then `epochs` may be left out.
    - `validate`: data to evaluate on after each epoch; averages of weights in the pipeline, such as update.ema(), are
      evaluated as well, as "ema.loss" and the like. Batches have the training's size, those of a `load.batches(test,
      size=512)` its own; they are not shuffled. Several data sets by name, {"test": (x, y), "shifted": source}, give
      "test.loss", "shifted.loss", "test.ema.loss": the names by which Saver(best=...) and schedules know them.
    - `validate_every`: also validate where `State.step` is a multiple of this, and yield a Report; schedules that read
      metrics, such as reduce_on_plateau, see these too.
    - `seed`: of the first weights, the order and dropout; a run is a function of it.
    - `state`: go on from this State (it is copied, and keeps its own seed) instead of a new one.
    - `compile`: True, False, or a step that `pipe.compile()` made, to use its graphs again.
    - `steps_per_call`: how many steps the compiled program does at once: a number or "epoch". By default as many as
      take about a tenth of a second, where the data set is in memory and fits on the device, else one; with a number,
      so many batches of any other Source are stacked for a call. The result is the same.
    - `backend`, `fallback`: as in `Pipeline.compile`.
    - `interval`: also yield a Report about every so many seconds inside an epoch; it has no validation.
    - `every`: also yield one where `State.step` is a multiple of this.
    - `start`: with `state`, where that is in the order: epochs done, and batches of the next one. The run then goes on
      as if it had not been stopped, and these count among `max_steps`.

    A Report's State is spent as soon as `fit` goes on: keep `report.state.clone()`, such as of the best epoch. To go on
    from another one, send it; what comes back is the same Report again, and the loop goes on with the next:

        reports = fit(pipe, epochs=20)
        for report in reports:
            if report.epoch == 10:
                reports.send(report.state.with_hyper(lr=0.01))

    Everything that can be checked is checked here, before the first step. Where the pipeline has `update.finite()`,
    raises NonFiniteError, before the next Report, after a step whose loss or gradients are not finite; else it
    warns once where a loss is not.
    """
    if epochs is None and max_steps is None:
        raise ConfigError("fit() needs to know when to end: pass epochs=, max_steps= or both")
    counts = {"epochs": epochs, "max_steps": max_steps, "validate_every": validate_every, "every": every}
    for name, count in counts.items():
        if count is not None and not is_count(count):
            raise ConfigError(f"{name}={count!r} is not a positive whole number")
    if validate_every is not None and validate is None:
        raise ConfigError(f"validate_every={validate_every} needs data: pass validate=")
    if pipe.load is None:
        raise WiringError("fit() needs batches: put load.batches(...) or load.loader(...) first in the pipeline")
    batches, sets = pipe.load.batches, _sets(pipe, validate)
    if epochs is None and batches:
        epochs = -(-(max_steps or 0) // batches)
    epoch, batch = start
    if not 0 <= epoch <= (epochs or sys.maxsize):
        raise ConfigError(f"start={start} begins after {epoch} epochs, but the run has {epochs}")
    if batch < 0 or (batches is not None and batch >= batches):
        raise ConfigError(f"start={start} begins after {batch} batches, but an epoch has {batches}")
    if start != (0, 0) and state is None:
        raise ConfigError(f"start={start} needs the State of that place: pass state=")
    if isinstance(compile, Compiled) and not pipe.alike(compile.pipe):
        raise ConfigError("compile= was made by another pipeline; use pipe.compile() of this one")
    if steps_per_call not in (None, 1):
        if not compile:
            raise ConfigError(f"steps_per_call={steps_per_call!r} needs a compiled step; leave out compile=False")
        if not (pipe.load.known and is_count(steps_per_call)):
            pipe.compile(steps=steps_per_call)  # raises where that can't be
    if state is None:
        lengths = [max_steps, batches * epochs if batches and epochs else None]
        state = pipe.init(seed, steps=min(filter(None, lengths), default=None))
    else:
        pipe.check_state(state)
        state = _unstopped(pipe, state.clone())
    for data in (None, *sets.values()):
        pipe.check(state, data)
    pipe.check_mesh(state)
    pipe.check_watched(state, sets)
    program = compile if isinstance(compile, Compiled) else None
    if compile and program is None:
        program = pipe.compile(backend=backend, fallback=fallback)
    if program is not None:
        program.prepare(state, *sets.values())
    steps: Any = _single
    if program is not None and program.report.fallback is None:
        stacks = is_count(steps_per_call) and not (pipe.host or pipe.place.mesh or pipe.load.others)
        steps = _fused if program.resident else _stacked if stacks else _single
    ends = epochs, *(count or sys.maxsize for count in (max_steps, validate_every, every))
    return _epochs(pipe, program or pipe, steps, state, sets, steps_per_call, interval, ends, start)


def _epochs(
    pipe: Pipeline, program: Compiled | Pipeline, steps: Any, state: State, sets: Mapping[str, Any],
    per_call: Steps | None, interval: float | None, ends: Any, start: tuple[int, int],
) -> Generator[Report, State | None, None]:  # fmt: skip
    assert pipe.load is not None
    (first, k), (epochs, last, validate_every, every) = start, ends
    # The values read from the device before training: from here on they are counted.
    done, seed = int(state.step) - k, pipe.shuffled_by(state.tree)
    batches, warned, better = pipe.load.batches, False, pipe.better(state)
    past = done if first and batches is None else first * (batches or 0)  # steps of this run before the epoch

    def left(k: int) -> int:
        """Steps from batch k on until a call has to end."""
        return int(min(last - past - k, *(n - (done + k) % n for n in (validate_every, every))))

    for epoch in itertools.count(first + 1) if epochs is None else range(first + 1, epochs + 1):
        if left(k) <= 0:
            return
        if k == 0:
            state = program.restart_metrics(state)
        seconds, seen, clock = 0.0, 0, _Clock(pipe.place, interval)
        began, compiling = time.perf_counter(), _compile_seconds(program)
        progress, sent, over = steps(program, state, seed, epoch - 1, k, per_call, left), None, False
        while not over:
            reached = _next(progress, sent)
            state, k, seen = reached or (state, k, seen)
            whole = reached is None or k == batches
            over = reached is None or past + k == last
            validates = reached is None or (done + k) % validate_every == 0
            due = reached is not None and clock.due(time.perf_counter() - began, k)
            due, sent = due or validates or (done + k) % every == 0, state
            if not over and (whole or not due):
                continue
            metrics = _results(pipe, state, epoch, done)  # waits for the device
            warned = warned or _warned(pipe, metrics, done + k)
            seconds += time.perf_counter() - began - (_compile_seconds(program) - compiling)
            results = validated(pipe, program, state, sets) if over or validates else {}
            if whole or validates:  # where a run ends inside an epoch, it can go on as if it had not
                state = pipe.observed(state, {**metrics, **results})
            said = directions(better, {**metrics, **results})
            report = Report(
                epoch, epochs, done + k, k, batches, whole, metrics, results, seconds, seen, state, pipe.runs, said
            )
            state = sent = yield from _reported(pipe, report)
            done = done if state is report.state else int(state.step) - k
            began, compiling = time.perf_counter(), _compile_seconds(program)
        progress.close()
        done, past, k = done + k, past + k, 0


def _sets(pipe: Pipeline, validate: Any) -> dict[str, Any]:
    """What to validate on, by names: "" for one data set."""
    assert pipe.load is not None
    values = {*pipe.load.writes, *pipe.load.fields, *(v for s in (*pipe.host, *pipe.graph) for v in s.values_read)}
    kinds: Any = (Load, Source, Mapping, tuple, Dataset, DataLoader)
    if isinstance(validate, Mapping) and validate and not values & {*validate}:
        return dict(validate) if all(isinstance(data, kinds) for data in validate.values()) else {"": validate}
    return {} if validate is None else {"": validate}


def validated(pipe: Pipeline, program: Compiled | Pipeline, state: State, sets: Mapping[str, Any]) -> dict[str, Any]:
    """The results of a State over data sets by their names, "test.loss", and those of its averages of weights:
    "test.ema.loss", by the same program. The name may be empty."""
    views = {"": state, **(pipe.averaged(state) if sets else {})}
    return {
        ".".join(filter(None, (of, view, name))): value
        for of, data in sets.items()
        for view, seen in views.items()
        for name, value in program.evaluate(seen, data).items()
    }


def _reported(pipe: Pipeline, report: Report) -> Generator[Report, State | None, State]:
    """Give a Report out, and go on with its State, or with the one that was sent for it."""
    state = report.state
    while (sent := (yield report)) is not None:
        pipe.check_state(sent)
        if not torch.equal(sent["seed"], report.state["seed"]):
            raise StateError("a State that is sent has to have the seed of the run: the order of its samples goes on")
        # One that was made from the Report's shares its tensors; any other stays the user's own.
        state = _unstopped(pipe, sent if sent.lease is report.state.lease else sent.clone())
        report = evolve(report, state=state)
    return state


def _warned(pipe: Pipeline, metrics: Mapping[str, Any], step: int) -> bool:
    """Say that a loss is not finite, where nothing in the pipeline looks at that."""
    if pipe.stops:
        return False
    for s in pipe.backwards:
        means = np.atleast_1d(metrics.get(s.of, 0.0))
        if not np.isfinite(means).any():  # one member may fail where others go on
            instead = f"put update.finite() after {s.name!r}, which says the step and the tensor that it came from"
            warnings.warn(f"the mean of {s.of!r} is {means[0]} up to step {step}; {instead}", stacklevel=3)
            return True
    return False


def _results(pipe: Pipeline, state: State, epoch: int, done: int) -> dict[str, Any]:
    """The metrics so far. Raises NonFiniteError where State was stopped, saying what was wrong in the step that did
    it."""
    stopped = pipe.stopped(state)
    if stopped is None:
        return pipe.results(state)
    assert pipe.load is not None
    run, own, i = stopped
    step = int(own.step)
    own, state, k = _unstopped(run, own), _unstopped(pipe, state), step - done
    why = None
    if pipe.load.known:
        seed = pipe.shuffled_by(state.tree)
        batch = next(run.epoch(pipe.load, seed[i] if isinstance(seed, tuple) else seed, epoch - 1, k))
        with suppress(PipeError, RuntimeError):  # as without the memory for an uncompiled step
            why = first_nonfinite(run, own, run.prepared(batch, True))
        why = next(filter(None, pipe.place.everyone(why)), None)
    where = f"step {step + 1} (epoch {epoch}, batch {k + 1}{'' if run is pipe else f', member {i}'})"
    raised = f"{where} is not finite: {why or 'its loss or a gradient'}; State is as it was before it"
    raise NonFiniteError(f"{raised}: lower the learning rate, clip, or skip such steps", state, epoch - 1, k)


def _unstopped(pipe: Composition, state: State) -> State:
    """The same State, free to advance."""
    if not pipe.stops:
        return state
    free = {name: {"stopped": torch.zeros_like(state.memory[name]["stopped"])} for name in pipe.stops}
    return state.replace(memory={**state.memory, **free})


class _Clock:
    """When a Report inside an epoch is due. On a mesh the first process says so, a few times in an interval."""

    def __init__(self, place: Place, interval: float | None) -> None:
        self.place, self.interval, self.next, self.asked = place, interval, 0, (0, 0.0)

    def due(self, seconds: float, k: int) -> bool:
        if self.interval is None:
            return False
        if self.place.mesh is None:
            return seconds > self.interval
        if k < self.next:
            return False
        done, took = k - self.asked[0], seconds - self.asked[1]
        steps = int(done * self.interval / (4 * took)) if done > 0 and took > 0 else 1
        due, steps = self.place.agreed((seconds > self.interval, max(steps, 1)))
        self.next, self.asked = k + steps, (k, 0.0 if due else seconds)
        return bool(due)


Progress: TypeAlias = Generator[tuple[State, int, int], State, None]
"""The State after some steps of an epoch, with the number of its batches so far, and of samples since the first of
them. What is sent is the State to go on with."""


def _next(progress: Progress, state: State | None) -> tuple[State, int, int] | None:
    """Let the steps go on with a State; None where the epoch has ended."""
    try:
        return next(progress) if state is None else progress.send(state)
    except StopIteration:
        return None


Left: TypeAlias = Callable[[int], int]
"""Steps from a batch of the epoch on that a call may do at most."""


def _single(
    program: Compiled | Pipeline, state: State, seed: int, epoch: int, k: int, per_call: Steps | None, left: Left
) -> Progress:
    """An epoch from batch k on, a batch from the host at a time."""
    pipe = program if isinstance(program, Pipeline) else program.pipe
    assert pipe.load is not None
    seen, batches = 0, pipe.epoch(pipe.load, seed, epoch, k)
    for batch in pipe.place.ahead(pipe.prepared(b, True) for b in batches):
        state, _ = program.step(state, batch)
        seen, k = seen + pipe.counted(batch), k + 1
        state = yield state, k, seen


def _stacked(
    program: Compiled, state: State, seed: int, epoch: int, k: int, per_call: Steps | None, left: Left
) -> Progress:
    """An epoch from batch k on, batches from the host, so many of one size in a call."""
    pipe = program.pipe
    assert pipe.load is not None
    assert isinstance(per_call, int)
    seen, waiting, limit = 0, list[Batch](), per_call
    batches = pipe.place.ahead(pipe.prepared(b, True) for b in pipe.load.epoch(seed, epoch, k))
    for batch in itertools.chain(batches, (None,)):
        ended = batch is None or samples(batch, pipe.samples) != samples(waiting[0], pipe.samples) if waiting else False
        if waiting and (ended or len(waiting) == limit):
            state = program.step_each(state, waiting)
            seen, k = seen + sum(samples(b, pipe.samples) for b in waiting), k + len(waiting)
            state = yield state, k, seen
            waiting = []
        if batch is not None:
            waiting = [*waiting, batch]
            limit = min(per_call, left(k))


def _fused(
    program: Compiled, state: State, seed: int, epoch: int, k: int, per_call: Steps | None, left: Left
) -> Progress:
    """An epoch from batch k on, many steps a call, on data that is on the device."""
    load = program.pipe.load
    assert load is not None
    batches = load.batches
    assert batches is not None
    first, count, pace = k, 1, Pace(program.pipe.place.device, CALL)
    while k < batches:
        wanted = count if per_call is None else batches if per_call == "epoch" else per_call
        steps = min(wanted, batches - k, left(k))
        state, _ = pace.run(partial(program.advance, state, epoch, k, steps), steps)
        k += steps
        count = program.pipe.place.agreed(pace.steps)
        end = load.order.n if k == batches and not load.drop_last else k * load.size
        state = yield state, k, end - first * load.size


def _compile_seconds(program: Compiled | Pipeline) -> float:
    """Loaders do not tell their shapes before they are read: their graphs are made inside the first epoch."""
    return program.seconds if isinstance(program, Compiled) else 0.0
