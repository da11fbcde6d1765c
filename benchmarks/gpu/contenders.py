"""Ours, plain torch and torch.compile as contenders, and JAX's from `jax_ways`: each of them on each job."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.gpu.jobs import CLIP, DECAY, DEVICE, JOBS, LR, Job
from benchmarks.harness import Contender, Done, MissingError, Work
from pipeline import Pipeline, backward, forward, load, loss, place, sweep, update

LOW = {"bf16": torch.bfloat16, "fp32": None}


def memory() -> int | None:
    """The most bytes that this process held on the GPU since the last question."""
    if DEVICE.type != "cuda":
        return None
    most: int = torch.cuda.max_memory_allocated(DEVICE)
    torch.cuda.reset_peak_memory_stats(DEVICE)
    return most


def pipeline(job: Job) -> Pipeline:
    return Pipeline(
        load.batches(job.data(), size=job.size, drop_last=True),
        place.on(DEVICE, precision=job.precision),
        forward.model(job.built),
        loss.cross_entropy(dim=job.dim),
        backward.gradients(),
        update.clip_norm(CLIP),
        update.adamw(lr=LR, weight_decay=DECAY),
    )


def ours(job: Job, *, fused: bool) -> Callable[[], Work]:
    """One step a call, or as many a call as the data have."""
    pipe = pipeline(job)
    if job.members > 1:
        pipe = sweep(pipe, seeds=job.members, order="shared")
    assert pipe.load is not None
    batches = pipe.load.batches or 0
    step = pipe.compile()
    state, done = pipe.init(seed=0), 0

    def work() -> Done:
        nonlocal state, done
        left = job.steps
        while left:
            epoch, k = divmod(done, batches)
            count = min(left, batches - k) if fused else 1
            if fused:
                state, _ = step.advance(state, epoch, k, count)
            else:
                state, _ = step(state)
            done, left = done + count, left - count
        mean = next(iter(pipe.results(state).values()))  # waits for the device
        state = step.restart_metrics(state)
        return Done(job.steps * job.members, float(mean if job.members == 1 else mean[0]), memory=memory())

    return lambda: work


def by_hand(job: Job, mode: str | None) -> Callable[[], Work]:
    """A loop over data on the device, AdamW by torch's fused kernel; model and loss by torch.compile, by a mode."""
    if job.members > 1:
        raise MissingError("torch trains members one after the other")
    inputs, targets = job.placed()
    net = job.built().to(DEVICE)
    params = list(net.parameters())
    optimizer = torch.optim.AdamW(params, lr=LR, weight_decay=DECAY, fused=DEVICE.type == "cuda")
    low = LOW[job.precision]

    def objective(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(DEVICE.type, dtype=low or torch.bfloat16, enabled=low is not None):
            return F.cross_entropy(net(x).movedim(job.dim, 1), y)

    measured = objective if mode is None else torch.compile(objective, mode=mode, dynamic=False)
    batches, done, rows = len(inputs) // job.size, 0, torch.arange(0)

    def work() -> Done:
        nonlocal done, rows
        total = torch.zeros((), device=DEVICE)
        for _ in range(job.steps):
            if done % batches == 0:
                rows = torch.randperm(len(inputs), device=DEVICE)
            at = rows[done % batches * job.size :][: job.size]
            optimizer.zero_grad()
            if mode is not None:
                torch.compiler.cudagraph_mark_step_begin()
            value = measured(inputs[at], targets[at])
            value.backward()
            nn.utils.clip_grad_norm_(params, CLIP)
            optimizer.step()
            total += value.detach()
            done += 1
        return Done(job.steps, total.item() / job.steps, memory=memory())

    return lambda: work


WAYS: dict[str, Callable[[Job], Callable[[], Work]]] = {
    "ours, many steps a call": functools.partial(ours, fused=True),
    "ours, one step a call": functools.partial(ours, fused=False),
    "torch": functools.partial(by_hand, mode=None),
    "torch.compile": functools.partial(by_hand, mode="default"),
    "torch.compile, reduce-overhead": functools.partial(by_hand, mode="reduce-overhead"),
    "torch.compile, max-autotune": functools.partial(by_hand, mode="max-autotune"),
}


def by_jax(job: str, way: str) -> Any:
    if importlib.util.find_spec("jax") is None or importlib.util.find_spec("optax") is None:
        raise MissingError("jax and optax are not installed")
    from benchmarks.gpu import jax_ways

    return jax_ways.contender(JOBS[job], job, way)


JAX = ("jit", "scan", "scan, WHILE in its graphs")
CONTENDERS: dict[str, Contender] = {
    **{f"{job}: {way}": functools.partial(make, JOBS[job]) for job in JOBS for way, make in WAYS.items()},
    **{f"{job}: JAX, {way}": functools.partial(by_jax, job, way) for job in JOBS for way in JAX},
}
