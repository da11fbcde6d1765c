"""Device: which one a small model trains faster on, where there is an accelerator and nobody says it."""

from __future__ import annotations

import warnings
from contextlib import suppress

import torch
from attrs import evolve
from rich.console import Console

from cli import measure, processes
from cli.build import SMALL, first, job, size, threads
from cli.config import TrainConfig
from pipeline import place
from pipeline.errors import PipeError

MEMBERS = 8
"""From so many members side by side on, an accelerator has enough to do."""


def chosen(config: TrainConfig, say: Console) -> tuple[TrainConfig, str]:
    """The settings with "cpu" in the place of "auto" where that is faster, and why it is that device, in words.

    It is measured where a step is small: a kernel of an accelerator takes a microsecond, however little it computes.
    Where it is the accelerator, "auto" stays: the run may be evaluated on a machine that has none.
    """
    run, there = config.run, str(place.resolve("auto"))
    if processes.count() > 1 or config.pipeline.name is not None or run.precision == "tf32":
        return config, ""
    if (run.ensemble or 1) >= MEMBERS:
        return config, f"{run.ensemble} members at once"
    host = evolve(config, run=evolve(run, device="cpu"))
    made = job(host)
    state = first(made, host)
    operations = size(made, state)[0]
    if operations >= SMALL or not run.compile:
        return config, f"a step has {operations:.2g} operations"
    torch.set_num_threads(threads(made, state, run.threads))
    name = f"device {measure.identity(config)}"
    kept = measure.known().get(name)
    if kept in ("cpu", there):
        return host if kept == "cpu" else config, "the faster one, measured before"
    say.print(f"device  measuring once which is faster, cpu or {there}; --device says it")
    ways = {"cpu": host, there: config}
    times = {device: seconds for device, way in ways.items() if (seconds := _measured(way)) is not None}
    if not times:
        return config, "neither was measured"
    best = min(times, key=times.__getitem__)
    measure.keep(name, best)
    told = " and ".join(f"{1e6 * seconds:.3g} us on {device}" for device, seconds in times.items())
    return ways[best], f"the faster one: a step takes {told}"


def _measured(config: TrainConfig) -> float | None:
    """Seconds of a step, by training that is thrown away; None where it does not compile."""
    # The run itself will report the error, and what a warning says.
    with suppress(PipeError, RuntimeError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = job(config)
        state = first(made, config)
        program = made.pipe.compile(backend=config.run.backend)
        program.prepare(state)
        return measure.step_seconds(made.pipe, program, state)
    return None
