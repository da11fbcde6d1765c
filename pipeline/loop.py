"""fit: the only training loop. A generator of Reports: it prints nothing; log, plot and stop in the `for` loop over
it."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve, frozen
from torch.utils.data import DataLoader, Dataset

from pipeline.compile import Backend, Compiled, Fallback, Steps
from pipeline.description import Description
from pipeline.direction import directions
from pipeline.element import counts, is_count
from pipeline.errors import ConfigError, StateError, WiringError
from pipeline.load import Load
from pipeline.pipe import Trainable
from pipeline.programs import check
from pipeline.programs import evaluate as run
from pipeline.programs.diagnose import results_so_far, unstopped, warn_nonfinite
from pipeline.programs.program import Program
from pipeline.programs.selfcheck import check_mesh
from pipeline.programs.stepping import Clock, Epoch, fused, next_step, one_by_one, stacked
from pipeline.sources import Source
from pipeline.state import Report, State

if TYPE_CHECKING:
    from pipeline.progress import Follow


@frozen(kw_only=True)
class _Ends:
    """Steps at which a run ends or yields a Report. Absent numbers are sys.maxsize."""

    epochs: int | None
    max_steps: int
    validate_every: int
    every: int


def fit(
    pipe: Trainable,
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
    eager_steps: int = 0,
    interval: float | None = None,
    every: int | None = None,
    start: tuple[int, int] = (0, 0),
    progress: bool = False,
) -> Generator[Report, State | None, None]:
    """Train for `epochs` passes over the pipeline's data, yielding a Report after each.

    - `max_steps`: end after this number of steps, with validation, also inside an epoch; then `epochs` may be left out.
    - `validate`: data to evaluate on after each epoch; averages of weights in the pipeline, such as update.ema(), are
      evaluated as well, as "ema.loss" and the like. Batches have the training's size, unless given as
      `load.batches(test, size=512)`; they are not shuffled. Several data sets by name, {"test": (x, y), "shifted":
      source}, give "test.loss", "shifted.loss", "test.ema.loss": the names by which Saver(best=...) and schedules know
      them.
    - `validate_every`: also validate if `State.step` is a multiple of this, and yield a Report; schedules that read
      metrics, such as reduce_on_plateau, see these too.
    - `seed`: of the first weights, the order and dropout; a run is a function of it.
    - `state`: go on from this State (it is copied, and keeps its own seed) instead of a new one.
    - `compile`: True, False, or a step that `pipe.compile()` made, to use its graphs again.
    - `steps_per_call`: steps in one call of the compiled program: a number or "epoch". By default as many as take about
      a tenth of a second, if the data set is in memory and fits on the device, else one; with a number, that many
      batches of any other Source are stacked for a call. The result is the same.
    - `backend`, `fallback`, `eager_steps`: as in `Pipeline.compile`. With `eager_steps=1000`, training begins at once:
      the first 1,000 steps run uncompiled, and a shorter run compiles nothing.
    - `interval`: also yield a Report about every so many seconds inside an epoch; it has no validation.
    - `every`: also yield one if `State.step` is a multiple of this. Its metrics are means since the epoch began.
    - `start`: with `state`, its position in the order: epochs done, and batches of the next one. The run then goes on
      as if it had not been stopped, and these count among `max_steps`.
    - `progress`: print a line for each epoch and validation (fewer in a long run) and, on a terminal or in a notebook,
      show the graph being compiled, and a bar with the time left.

    A Report's State is spent as soon as `fit` goes on: keep `report.state.clone()`, such as of the best epoch. To go on
    from another State, send it; `send` returns the same Report again, and the loop continues with the next:

        reports = fit(pipe, epochs=20)
        for report in reports:
            if report.epoch == 10:
                reports.send(report.state.with_hyper(lr=0.01))

    All checks run when `fit` is called, before the first step. If the pipeline has `update.finite()`, raises
    NonFiniteError, before the next Report, after a step with a loss or gradients that are not finite; else warns once
    of such a loss.
    """
    program, own = pipe.program, pipe.program.pipe
    ends = _ends(program, epochs, max_steps, validate, validate_every, every)
    _check_start(program, ends, start, state)
    if isinstance(compile, Compiled) and not program.same(compile.program):
        raise ConfigError("compile= was made by another pipeline; use pipe.compile() of this one")
    if isinstance(compile, Compiled) and eager_steps:
        raise ConfigError(f"compile= was made already: write pipe.compile(eager_steps={eager_steps})")
    assert own.load is not None
    if steps_per_call not in (None, 1):
        if not compile:
            raise ConfigError(f"steps_per_call={steps_per_call!r} needs a compiled step; leave out compile=False")
        if not (own.load.known and is_count(steps_per_call)):
            Compiled(program, steps=steps_per_call)  # raises for these steps
    sets = _sets(program, validate)
    batches = own.load.batches
    lengths = [max_steps, batches * ends.epochs if batches and ends.epochs else None]
    length = min(filter(None, lengths), default=None)
    if state is None:
        state = program.init(seed, steps=length)
    else:
        run.check_state(program, state)
        run.check_copies(program, state)
        state = unstopped(program, state.clone())
    for of in (None, *sets.values()):
        check.check(program, state, of)
    check_mesh(program, state)
    check.check_watched(program, state, sets)
    compiled = compile if isinstance(compile, Compiled) else None
    if compile and compiled is None:
        compiled = pipe.compile(backend=backend, fallback=fallback, eager_steps=eager_steps)
    step = int(state.step)
    past = step if start[0] and batches is None else start[0] * (batches or 0) + start[1]
    last = step + length - past if length else None
    check.warn_of_order(program, state, last)
    follow = _follow(own, compiled) if progress else None
    if compiled is not None:
        with follow.compiling() if follow is not None else nullcontext():
            compiled.prepare(state, *sets.values(), steps=last)
    if follow is None:
        return _epochs(program, compiled, state, sets, steps_per_call, interval, ends, start)
    reports = _epochs(program, compiled, state, sets, steps_per_call, interval or follow.INTERVAL, ends, start)

    def inside(r: Report) -> bool:
        """Whether a Report would not be there without the bar."""
        return interval is None and not (r.complete or r.validate or r.step % ends.every == 0 or r.step == last)

    return follow.reports(reports, inside)


def _follow(pipe: Description, compiled: Compiled | None) -> Follow:
    from pipeline.progress import Follow  # rich takes long to import

    mesh = pipe.place.mesh
    return Follow(mesh is not None and mesh.rank > 0, lambda: "" if compiled is None else compiled.doing)


def _ends(
    program: Program, epochs: int | None, max_steps: int | None, validate: Any, validate_every: int | None,
    every: int | None,
) -> _Ends:  # fmt: skip
    """Checked ends of a run."""
    if epochs is None and max_steps is None:
        raise ConfigError("fit() needs to know when to end: pass epochs=, max_steps= or both")
    given = {"epochs": epochs, "max_steps": max_steps, "validate_every": validate_every, "every": every}
    counts("", **{name: count for name, count in given.items() if count is not None})
    if validate_every is not None and validate is None:
        raise ConfigError(f"validate_every={validate_every} needs data: pass validate=")
    load = program.pipe.load
    if load is None:
        raise WiringError("fit() needs batches: put load.batches(...) or load.loader(...) first in the pipeline")
    if epochs is None and load.batches:
        epochs = -(-(max_steps or 0) // load.batches)
    rest = {name: given[name] or sys.maxsize for name in ("max_steps", "validate_every", "every")}
    return _Ends(epochs=epochs, **rest)


def _check_start(program: Program, ends: _Ends, start: tuple[int, int], state: State | None) -> None:
    (epoch, batch), load = start, program.pipe.load
    batches = load.batches if load is not None else None
    if not 0 <= epoch <= (ends.epochs or sys.maxsize):
        raise ConfigError(f"start={start} begins after {epoch} epochs, but the run has {ends.epochs}")
    if batch < 0 or (batches is not None and batch >= batches):
        raise ConfigError(f"start={start} begins after {batch} batches, but an epoch has {batches}")
    if start != (0, 0) and state is None:
        raise ConfigError(f"start={start} needs the State of that place: pass state=")


def _epochs(
    program: Program, compiled: Compiled | None, state: State, sets: Mapping[str, Any], per_call: Steps | None,
    interval: float | None, ends: _Ends, start: tuple[int, int],
) -> Generator[Report, State | None, None]:  # fmt: skip
    pipe, (first, k) = program.pipe, start
    assert pipe.load is not None
    # The device is read here, before training: from here on steps are counted.
    done, seed = int(state.step) - k, program.seed(state.tree)
    batches, warned, better = pipe.load.batches, False, run.better(program, state)
    past = done if first and batches is None else first * (batches or 0)  # steps of this run before the epoch
    # A State goes on in the order of its own steps, also where a run that began with it goes on.
    behind = max(done // batches - first, 0) if batches else 0

    def left(k: int) -> int:
        """Steps from batch k on until a call has to end."""
        due = (n - (done + k) % n for n in (ends.validate_every, ends.every))
        return int(min(ends.max_steps - past - k, *due))

    numbers = itertools.count(first + 1) if ends.epochs is None else range(first + 1, ends.epochs + 1)
    for epoch in numbers:
        if left(k) <= 0:
            return
        if k == 0:
            state = run.restart_metrics(program, state) if compiled is None else compiled.restart_metrics(state)
        seconds, seen, clock = 0.0, 0, Clock(pipe.place, interval)
        began, compiling = time.perf_counter(), _compile_seconds(compiled)
        order = Epoch(seed, behind + epoch - 1, k, per_call, left)
        progress, sent, over = _steps(program, compiled, state, order), None, False
        while not over:
            reached = next_step(progress, sent)
            state, k, seen = reached or (state, k, seen)
            whole = reached is None or k == batches
            over = reached is None or past + k == ends.max_steps
            validates = reached is None or (done + k) % ends.validate_every == 0
            due = reached is not None and clock.due(time.perf_counter() - began, k)
            due, sent = due or validates or (done + k) % ends.every == 0, state
            if not over and (whole or not due):
                continue
            metrics = results_so_far(program, state, epoch, done, behind)  # waits for the device
            warned = warned or warn_nonfinite(program, metrics, done + k)
            seconds += time.perf_counter() - began - (_compile_seconds(compiled) - compiling)
            results = validated(program, compiled, state, sets) if over or validates else {}
            if whole or validates:  # after an end inside an epoch, the run can go on as if uninterrupted
                state = run.observed(program, state, {**metrics, **results})
            said = directions(better, {**metrics, **results})
            report = Report(
                epoch, ends.epochs, done + k, k, batches, whole, metrics, results, seconds, seen, state, program.runs,
                said,
            )  # fmt: skip
            state = sent = yield from _reported(program, report)
            done = done if state is report.state else int(state.step) - k
            began, compiling = time.perf_counter(), _compile_seconds(compiled)
        progress.close()
        done, past, k = done + k, past + k, 0


def _steps(program: Program, compiled: Compiled | None, state: State, epoch: Epoch) -> Any:
    """The way to step through an epoch."""
    pipe = program.pipe
    if compiled is None or compiled.report.fallback is not None:
        return one_by_one(program, compiled, state, epoch)
    if compiled.resident:
        return fused(compiled, state, epoch)
    others = pipe.load.others if pipe.load is not None else ()
    if is_count(epoch.per_call) and not (pipe.host or pipe.place.mesh or others):
        return stacked(compiled, state, epoch)
    return one_by_one(program, compiled, state, epoch)


def _sets(program: Program, validate: Any) -> dict[str, Any]:
    """Validation sets by name; a single one is named ""."""
    pipe = program.pipe
    assert pipe.load is not None
    values = {*pipe.load.writes, *pipe.load.fields, *(v for s in (*pipe.host, *pipe.graph) for v in s.values_read)}
    kinds: Any = (Load, Source, Mapping, tuple, Dataset, DataLoader)
    if isinstance(validate, Mapping) and validate and not values & {*validate}:
        return dict(validate) if all(isinstance(of, kinds) for of in validate.values()) else {"": validate}
    return {} if validate is None else {"": validate}


def validated(program: Program, compiled: Compiled | None, state: State, sets: Mapping[str, Any]) -> dict[str, Any]:
    """Results of a State on data sets by name, "test.loss", and of its averages of weights, "test.ema.loss", by the
    same program. The name may be empty."""
    views = {"": state, **(run.averaged(program, state) if sets else {})}
    results: dict[str, Any] = {}
    for name, of in sets.items():
        for view, seen in views.items():
            found = run.evaluate(program, seen, of) if compiled is None else compiled.evaluate(seen, of)
            results |= {".".join(filter(None, (name, view, metric))): value for metric, value in found.items()}
    return results


def _reported(program: Program, report: Report) -> Generator[Report, State | None, State]:
    """Yield a Report, and go on with its State, or with a sent one."""
    state = report.state
    while (sent := (yield report)) is not None:
        run.check_state(program, sent)
        if not torch.equal(sent["seed"], report.state["seed"]):
            raise StateError("a State that is sent has to have the seed of the run: the order of its samples goes on")
        # A State made from the Report's shares its tensors; any other stays the user's own.
        state = unstopped(program, sent if sent.lease is report.state.lease else sent.clone())
        report = evolve(report, state=state)
    return state


def _compile_seconds(compiled: Compiled | None) -> float:
    """The shapes of loaders are unknown before reading, so their graphs are compiled inside the first epoch."""
    return compiled.seconds if compiled is not None else 0.0
