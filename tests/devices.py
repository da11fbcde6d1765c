"""The accelerator that tests marked `gpu` run on: a GPU where there is one, else the one of tests/sim."""

import contextlib

import torch

from pipeline import place
from tests import pipes, sim

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if GPU else sim.load()
BACKEND = "auto" if GPU else "aot_eager"
"""What makes its programs."""
CLOSE = 1e-4 if GPU else 1e-5
"""How far apart two ways of computing one step may be."""
torch.backends.cudnn.allow_tf32 = False  # torch's default, which is 1,000 times as far off
RECORDS = GPU or hasattr(torch.accelerator, "Graph")


def placed(pipe, **options):
    """A pipeline on the accelerator."""
    there = place.on(DEVICE, **options)
    if any(isinstance(s, place.Place) for s in pipe.stages):
        return pipe.replace("place.on", there)
    return pipe.insert(there, after="load.batches")


def pipe(name, **options):
    """One of the pipelines that tests share, there."""
    return placed(pipes.ALL[name](), **options)


@contextlib.contextmanager
def hurried():
    """Within it, what waits for the accelerator is an error."""
    if not GPU:
        with sim.hurried():
            yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextlib.contextmanager
def little_memory(size):
    """Within it, only so many bytes more can be allocated there."""
    if not GPU:
        with sim.limited(size):
            yield
        return
    torch.cuda.empty_cache()
    used = torch.cuda.memory_reserved() + size
    torch.cuda.set_per_process_memory_fraction(used / torch.cuda.get_device_properties(DEVICE).total_memory)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@contextlib.contextmanager
def chosen():
    """Within it, the accelerator is what "auto" means."""
    with contextlib.nullcontext() if GPU else sim.chosen():
        yield
