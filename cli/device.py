"""--device auto on a machine with an accelerator: the device that trains a small model faster, measured once."""

from __future__ import annotations

import warnings
from contextlib import suppress

import torch
from attrs import evolve
from rich.console import Console

from cli import build, measure, processes, step_size
from cli.config import TrainConfig
from pipeline import place
from pipeline.errors import PipeError

MEMBERS = 8
"""Members side by side that keep an accelerator busy."""


def chosen(config: TrainConfig, say: Console) -> tuple[TrainConfig, str]:
    """The settings, with device "cpu" if that is faster, and the reason for the device in words.

    Only small steps are measured: a kernel of an accelerator takes a microsecond, however little it computes. If the
    accelerator is faster, "auto" stays, because the run may be evaluated on a machine without one.
    """
    run, accelerator = config.run, str(place.resolve("auto"))
    if processes.count() > 1 or config.pipeline.name is not None or run.precision == "tf32":
        return config, ""
    if (run.ensemble or 1) >= MEMBERS:
        return config, f"{run.ensemble} members at once"
    host = evolve(config, run=evolve(run, device="cpu"))
    job = build.job(host)
    state = build.first(job, host)
    size = step_size.measured(job, state)
    if size.operations >= step_size.SMALL or not run.compile:
        return config, f"a step has {size.operations:.2g} operations"
    torch.set_num_threads(step_size.threads(job, size, run.threads))
    name = f"device {measure.identity(config)}"
    known = measure.known().get(name)
    if known in ("cpu", accelerator):
        return host if known == "cpu" else config, "the faster one, measured before"
    say.print(f"device  measuring once which is faster, cpu or {accelerator}; --device names one")
    ways = {"cpu": host, accelerator: config}
    times = {device: seconds for device, way in ways.items() if (seconds := _step_seconds(way)) is not None}
    if not times:
        return config, "neither was measured"
    best = min(times, key=times.__getitem__)
    measure.keep(name, best)
    figures = " and ".join(f"{1e6 * seconds:.3g} us on {device}" for device, seconds in times.items())
    return ways[best], f"the faster one: a step takes {figures}"


def _step_seconds(config: TrainConfig) -> float | None:
    """Seconds of a step, from a short training; None if it does not compile."""
    with suppress(PipeError, RuntimeError), warnings.catch_warnings():  # the run itself will report them
        warnings.simplefilter("ignore")
        job = build.job(config)
        state = build.first(job, config)
        program = job.pipe.compile(backend=config.run.backend)
        program.prepare(state)
        return measure.step_seconds(job.pipe, program, state)
    return None
