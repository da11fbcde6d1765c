"""Measure the speed of a run's steps, and the share of matrix products in their time."""

from __future__ import annotations

import math
import platform
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal

import torch
from attrs import asdict, frozen
from rich.table import Table

from cli import build, record, step_size
from cli.compilation import compiled
from cli.config import TrainConfig
from cli.measure import Floor, Timing, Way, clock, floor, race
from cli.output import written
from cli.processes import silent
from cli.progress import plain
from cli.settled import settled
from pipeline import Ensemble, Pipeline, State
from pipeline.compile import Compiled, CompileReport
from pipeline.errors import ConfigError
from pipeline.load import Load
from pipeline.mesh import Shard
from pipeline.profiling import profile as profiled
from pipeline.programs.data import ahead, epoch
from pipeline.programs.evaluate import step
from pipeline.programs.program import Program

EAGER, SINGLE, FUSED, PRODUCTS = "eager", "compiled, one step a call", "compiled, fused", "its matrix products alone"

WIDE = 1.5
"""A figure is doubtful above this ratio of the slowest round to the median."""


@frozen
class Figures:
    """The measurements."""

    batch: int
    ways: dict[str, Timing]
    floor: Floor
    memory: dict[str, int]
    compiled: CompileReport | None = None
    seconds: float = 0.0
    """Seconds to compile, or to load from the cache."""

    @property
    def best(self) -> str:
        """Name of the way that `pipe train` takes."""
        return [name for name in self.ways if name != PRODUCTS][-1]

    @property
    def share(self) -> float:
        """The share of matrix products in the time of the best way."""
        return self.ways[PRODUCTS].median / self.ways[self.best].median


def run(config: TrainConfig, *, seconds: float) -> dict[str, Any]:
    """Measure and print; returns the same figures."""
    if not 0 < seconds < math.inf:
        raise ConfigError(f"--seconds {seconds} is out of range: it must be above 0")
    config, job, state = _begun(config)
    say, device, number = plain(False), str(job.stages.place.device), torch.get_num_threads()
    figures = measure(job.pipe, state, seconds, compile=config.run.compile and config.run.backend)
    say.print(f"graphs  {_graphs(figures)}\n")
    say.print(_table(figures))
    work = f"{len(figures.floor.calls)} products, {figures.floor.operations / 1e6:,.1f} MFLOP a step"
    say.print(f"\nfloor   {figures.share:.0%} of the time of {figures.best!r} are its matrix products: {work}")
    memory = ", ".join(f"{size / 1e6:,.0f} MB of the {where}" for where, size in figures.memory.items())
    say.print(f"memory  at most {memory}")
    doubtful = [name for name, t in figures.ways.items() if t.spread > WIDE]
    if doubtful:
        say.print(f"note    rounds of {', '.join(doubtful)} differ widely: does something else run on this machine?")
    about = {"data": config.source, "model": job.model, "parameters": build.parameters(state.params),
             "device": device, "threads": number}  # fmt: skip
    versions = {**record.versions(), "system": platform.platform()}
    return {**about, **_plain(figures), "settings": config.flat, "versions": versions}


def profile(config: TrainConfig, *, steps: int, trace: str | None) -> dict[str, Any]:
    """Print the profile of a step, and write its trace; returns the profile."""
    if trace is not None:
        with written(Path(trace)):  # a file that can't be written is an error at once; torch writes by a path
            pass
    config, job, state = _begun(config)
    if isinstance(job.pipe, Ensemble):
        raise ConfigError("a profile is of one member: leave out --ensemble")
    with silent():
        found = profiled(job.pipe, state=state, steps=steps, compile=config.run.compile)
    plain(False).print(f"\n{found}", highlight=False, soft_wrap=True)
    if trace is not None:
        found.trace(trace)
    return {"trace": trace, **asdict(found, filter=lambda field, _: field.name != "events"), "advice": found.advice()}


def explain(config: TrainConfig) -> dict[str, Any]:
    """Print the story of the graphs of a run; returns what it is made from."""
    config, job, state = _begun(config)
    if not config.run.compile:
        plain(False).print("graphs  pipe train would run uncompiled; with --compile:")
    program = compiled(job.pipe, job.validation, config, state, plain(False))
    plain(False).print(f"\n{program.report.explain()}", highlight=False, soft_wrap=True)
    return {"compile": config.run.compile, **asdict(program.report)}


def _begun(config: TrainConfig) -> tuple[TrainConfig, build.Job, State]:
    """The settled config, its job and first State, said in a few lines; sets the threads."""
    config, data = settled(config)
    job = build.job(config, data)
    state = build.first(job, config)
    torch.set_num_threads(step_size.threads(job, step_size.measured(job, state), config.run.threads))
    number, say = torch.get_num_threads(), plain(False)
    say.print(f"data    {config.source}: {job.data}, batches of {job.stages.load.size if job.stages.load else 0}")
    say.print(f"model   {job.model}: {build.parameters(state.params):,} parameters")
    precision = "" if config.run.precision == "fp32" else f", {config.run.precision}"
    say.print(f"device  {job.stages.place.device}, {number} thread{'s' if number > 1 else ''}{precision}")
    return config, job, state


def measure(
    pipe: Pipeline | Ensemble, state: State, seconds: float, *, compile: str | Literal[False] = "auto"
) -> Figures:
    """Time each way to step for about so many seconds, on full batches of the pipeline's own data.

    `compile` is the backend, or False for none.
    """
    load, device = pipe.program.pipe.load, pipe.program.pipe.place.device
    assert load is not None
    batches = _batches(pipe.program, load, state)
    ways = {EAGER: _by_batch(partial(step, pipe.program), device, state, batches)}
    program, took = (pipe.compile(backend=compile, fallback="eager"), 0.0) if compile else (None, 0.0)
    if program is not None:
        own = state.clone()  # the compiled step overwrites it
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the fallback's warning is printed by _graphs
            report = program.prepare(own)
        took = time.perf_counter() - start
        if report.fallback is None and program.resident:
            ways[SINGLE], ways[FUSED] = _resident(program, load, own)
        elif report.fallback is None:
            ways[SINGLE] = _by_batch(program.step, device, own, batches)
    for way in ways.values():
        way(1)
    memory = _memory(device)  # before the floor, which keeps the operands of a step
    products = floor(pipe, state, next(batches))
    ways[PRODUCTS] = products.way(device)
    return Figures(load.size, race(ways, seconds), products, memory, program.report if program else None, took)


def _batches(program: Program, load: Load, state: State) -> Iterator[Shard]:
    """Full batches on the device, epoch after epoch."""
    full, seed = len(load.data) // load.size, program.seed(state.tree)
    shards = (shard for number in count() for shard in islice(epoch(program, load, seed, number), full))
    return ahead(program.pipe, shards)


def _by_batch(step: Callable[..., Any], device: torch.device, state: State, batches: Iterator[Shard]) -> Way:
    def run(steps: int) -> float:
        nonlocal state
        start = clock(device)
        for batch in islice(batches, steps):
            state, _ = step(state, batch)
        return clock(device) - start

    return run


def _resident(program: Compiled, load: Load, state: State) -> tuple[Way, Way]:
    """One step a call, and many; both bound to the memory of one State."""
    batches, full, done = load.batches or 0, len(load.data) // load.size, 0

    def single(epoch: int, at: int, steps: int) -> State:
        now = state
        for _ in range(steps):
            now, _ = program(now)
        return now

    def fused(epoch: int, at: int, steps: int) -> State:
        return program.advance(state, epoch, at, steps)[0]

    def timed(stretch: Callable[[int, int, int], State]) -> Way:
        def run(steps: int) -> float:
            nonlocal state, done
            seconds = 0.0
            while steps:
                epoch, at = divmod(done, batches)
                start = clock(program.pipe.place.device)
                count = min(steps, full - at) or 1
                state = stretch(epoch, at, count)
                done += count
                if at < full:  # the shorter last batch of an epoch is not timed
                    seconds += clock(program.pipe.place.device) - start
                    steps -= count
            return seconds

        return run

    return timed(single), timed(fused)


def _memory(device: torch.device) -> dict[str, int]:
    """Peak memory so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    memory = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.type == "cuda":
        memory["GPU"] = torch.cuda.max_memory_allocated(device)
    return memory


def _graphs(figures: Figures) -> str:
    report = figures.compiled
    if report is None:
        return "none: --no-compile"
    if report.fallback is not None:
        return f"none: {report.fallback}"
    loaded = sum(g.loaded for g in report.graphs)
    if loaded == len(report.graphs):
        return f"{loaded} loaded from the cache in {figures.seconds:.2f} s"
    cached = f", {loaded} loaded from the cache" if loaded else ""
    return f"{len(report.graphs) - loaded} compiled in {figures.seconds:.1f} s{cached}"


def _table(figures: Figures) -> Table:
    """The median of the rounds, the slowest and the fastest."""
    table = Table("way", "steps/s", "samples/s", "ms a step", "spread, steps/s", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, t in figures.ways.items():
        samples = "" if name == PRODUCTS else f"{figures.batch / t.median:,.0f}"
        spread = f"{_rate(max(t.rounds))} to {_rate(min(t.rounds))}"
        table.add_row(name, _rate(t.median), samples, f"{t.median * 1e3:.4f}", spread)
    return table


def _rate(seconds: float) -> str:
    return f"{1 / seconds:,.{0 if seconds < 0.01 else 2}f}"


def _plain(figures: Figures) -> dict[str, Any]:
    """The figures as plain values for JSON."""
    report = figures.compiled
    compiled = report and {
        "seconds": figures.seconds,
        "graphs": [asdict(g) for g in report.graphs],
        "fallback": report.fallback,
    }
    ways = {
        name: {
            "steps_per_second": 1 / t.median,
            "samples_per_second": None if name == PRODUCTS else figures.batch / t.median,
            "seconds_per_step": t.median,
            "rounds": list(t.rounds),
        }
        for name, t in figures.ways.items()
    }
    return {
        "batch_size": figures.batch,
        "compile": compiled,
        "ways": ways,
        "floor": {
            "of": figures.best,
            "share": figures.share,
            "products": len(figures.floor.calls),
            "operations": figures.floor.operations,
        },
        "peak_bytes": figures.memory,
    }
