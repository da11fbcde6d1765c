"""--precision auto: bf16 on a CPU that computes in it, if a few steps of the run are faster and lose nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from itertools import islice

import torch
from attrs import evolve, frozen
from rich.console import Console

from cli import build, step_size
from cli.config import TrainConfig
from cli.prepared import prepared
from pipeline import place
from pipeline.sources import Prepared

LARGE = 1e10
"""Floating-point operations of a step below which casts cost about what products gain."""
STEPS = 3
FASTER, CLOSE = 1.2, 1e-2
"""Times as fast that bf16 has to be, and the largest relative difference of a loss."""


@frozen
class Look:
    """Some steps in one precision: seconds of the fastest, and the loss of each."""

    seconds: float
    losses: Sequence[float]


def chosen(config: TrainConfig, data: Prepared | None, say: Console) -> tuple[TrainConfig, str]:
    """The settings with fp32 or bf16 in place of auto, and the reason in words; a run whose graphs were tried has no
    uncompiled steps."""
    name, why, tried = _chosen(config, data, say)
    eager_steps = 0 if tried and config.run.eager_steps is None else config.run.eager_steps
    return evolve(config, run=evolve(config.run, precision=name, eager_steps=eager_steps)), f"{name}: {why}"


def _chosen(config: TrainConfig, data: Prepared | None, say: Console) -> tuple[str, str, bool]:
    """The precision, its reason, and whether graphs of both were tried."""
    device = place.resolve(config.run.device)
    if device.type != "cpu":
        return "fp32", "auto chooses on a CPU alone; on a GPU name bf16", False
    if not place.fast_bf16(device):
        return "fp32", "this processor has no instructions for bf16", False
    exact = evolve(config, run=evolve(config.run, precision="fp32"))
    data = prepared(exact) if data is None and config.pipeline.name is None else data
    job = build.job(exact, data)
    state = build.first(job, exact)
    size = step_size.measured(job, state)
    if size.operations < LARGE:
        return "fp32", f"a step has {size.operations:.2g} operations, too few to gain by bf16", False
    say.print(f"trying {STEPS} steps in fp32 and in bf16")
    torch.set_num_threads(step_size.threads(job, size, config.run.threads))
    half = build.job(evolve(config, run=evolve(config.run, precision="bf16")), data)
    return *decided(*_looks([job, half], exact)), config.run.compile


def decided(exact: Look, half: Look) -> tuple[str, str]:
    """The precision by the same steps in fp32 and in bf16, and the reason in words.

    >>> decided(Look(1.2, [2.0]), Look(0.5, [2.001]))
    ('bf16', 'its steps are 2.4 x as fast here, the losses within 0.05 %')
    """
    pairs = list(zip(exact.losses, half.losses, strict=True))
    off = max(abs(h - e) / max(abs(e), 1e-9) if math.isfinite(h - e) else math.inf for e, h in pairs)
    if off > CLOSE:
        return "fp32", f"the losses of bf16 are off by {100 * off:.2g} %"
    gain = exact.seconds / half.seconds
    if gain < FASTER:
        return "fp32", f"steps in bf16 are only {gain:.2g} x as fast here"
    return "bf16", f"its steps are {gain:.2g} x as fast here, the losses within {100 * off:.2g} %"


def _looks(jobs: Sequence[build.Job], config: TrainConfig) -> list[Look]:
    """Steps of each job as the run will take them, in turn, after one that may compile."""
    run = config.run
    programs = [j.pipe.compile(backend=run.backend, fallback="eager") if run.compile else None for j in jobs]
    states, load = [build.first(job, config) for job in jobs], jobs[0].stages.load
    seconds, losses = [list[float]() for _ in jobs], [list[float]() for _ in jobs]
    assert load is not None
    for batch in islice(load.epoch(run.seed, 0), 1 + STEPS):
        for k, (job, program) in enumerate(zip(jobs, programs, strict=True)):
            began = time.perf_counter()
            if program is None:
                states[k], metrics = job.pipe.step(states[k], batch)
            else:  # the run's own program, if it gathers its batches
                states[k], metrics = program.step(states[k], None if program.resident else batch)
            losses[k].append(float(metrics["loss"]))
            seconds[k].append(time.perf_counter() - began)
    return [Look(min(s[1:] or s), each) for s, each in zip(seconds, losses, strict=True)]
