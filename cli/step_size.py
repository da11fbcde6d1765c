"""The size of a step, and what follows from it alone, so that a run is reproducible: threads, and steps to run
uncompiled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from cli import processes, room
from cli.recipes.run import Run
from pipeline import State, memory
from pipeline.errors import ConfigError
from pipeline.programs.check import check

if TYPE_CHECKING:
    from cli.build import Job

SMALL = 1e9
"""Floating-point operations of a step below which threads cost more than they gain."""
TIGHT = 4
"""Largest estimate of activations, as a multiple of the free memory: the estimate is rough."""
MANY = 4
"""Members side by side that keep all cores busy, even if one alone is too small for that."""
EAGER = 5.0
"""Seconds that uncompiled steps may cost a run whose graph is in the cache."""
CALL, TENSOR, RATE = 2e-3, 2.5e-4, 1.7e11
"""Estimate of what a graph saves: seconds of a step, seconds for each tensor of weights, and operations a second: of
large ones about a third of the time."""


@frozen
class Size:
    operations: float
    """Floating-point operations of a step."""
    activations: float
    """Their bytes, in a part of a batch."""


def threads(job: Job, size: Size, wanted: int | None) -> int:
    """The number of CPU threads: `wanted`, or a function of the step's size.

    Raises a PipeError if the activations of a step are much larger than the free memory.
    """
    load, free = job.stages.load, room.free(job.stages.place.device)
    assert load is not None
    samples = min(load.size, len(job.train)) if load.known else load.size
    nbytes = size.activations / processes.count()
    if nbytes > TIGHT * free:
        raise ConfigError(
            f"a step of {samples:,} samples needs {memory.size(nbytes)} for its activations, and {memory.size(free)} "
            "are free; use a smaller --batch-size, or --accumulate"
        )
    if wanted is not None:
        return wanted
    small = size.operations < SMALL and job.pipe.program.members < MANY
    return 1 if small else max(torch.get_num_threads(), 1)


def eager_steps(job: Job, state: State, size: Size, run: Run) -> int:
    """Steps to run uncompiled, while another process compiles: as the settings say, or as many as lose about EAGER
    seconds on a CPU; none if a setting of the compiled program is given, or if the memory of both may be large."""
    if run.eager_steps is not None:
        return run.eager_steps
    if run.backend != "auto" or run.steps_per_call != "auto":
        return 0
    if job.pipe.program.members > 1 or job.stages.place.mesh is not None or job.stages.place.device.type != "cpu":
        return 0
    if sum(t.nbytes for t in tree_leaves(state.tree)) > memory.LARGE:
        return 0
    return int(EAGER / (CALL + TENSOR * len(state.params) + size.operations / RATE))


def measured(job: Job, state: State) -> Size:
    """The size of a step, estimated by a trial of the pipeline on its data. Raises a PipeError if they do not fit."""
    sizes: dict[int, tuple[int, int]] = {}

    def hooked(i: int, root: nn.Module) -> list[Any]:
        """Sizes of the last call of a model: the trial may call it on other parts first."""

        def begin(module: nn.Module, _: Any) -> None:
            sizes[i] = 0, 0

        def count(module: nn.Module, _: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                return
            operations, nbytes = sizes[i]
            for weight in module.parameters(recurse=False) if not isinstance(module, nn.Embedding) else ():
                if weight.ndim > 1:  # an output channel is a product with one of its rows
                    operations += 2 * weight.numel() * output.numel() // len(weight)
            sizes[i] = operations, nbytes + output.nbytes

        return [root.register_forward_pre_hook(begin), *(m.register_forward_hook(count) for m in root.modules())]

    roots = [m.module.skeleton(training=True).module for m in job.stages.models]
    hooks = [hook for i, root in enumerate(roots) for hook in hooked(i, root)]
    try:
        check(job.pipe.program, state)  # a forward; a backward costs twice as much
    finally:
        for hook in hooks:
            hook.remove()
    parts = max((g.accumulate for g in job.stages.backwards), default=1)  # the trial takes one
    return Size(3.0 * parts * sum(o for o, _ in sizes.values()), float(sum(n for _, n in sizes.values())))
