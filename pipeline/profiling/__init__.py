"""Profiling: the time and the memory of a step, by stage and submodule."""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.modules import module as hooks
from torch.profiler import ProfilerActivity, record_function

from pipeline.compile.tracing import watched
from pipeline.errors import ConfigError
from pipeline.pipe import Pipeline
from pipeline.place import fast_bf16
from pipeline.profiling.result import Profile, Row
from pipeline.programs import data
from pipeline.programs.evaluate import step
from pipeline.state import Batch, State

STEP, LOAD, STAGE, MODULE = "pipe: step", "pipe: load", "pipe: stage ", "pipe: module "
"""Names of ranges in a trace."""
BACKWARD = "autograd::engine::evaluate_function: "
PRODUCTS = frozenset(
    "aten::" + name for name in (
        "mm", "addmm", "bmm", "baddbmm", "mkldnn_convolution", "_slow_conv2d_forward", "cudnn_convolution",
        "convolution_backward", "_scaled_dot_product_flash_attention_for_cpu", "mkldnn_linear",
        "_scaled_dot_product_flash_attention_for_cpu_backward", "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
    )
)  # fmt: skip
"""Operations that multiply matrices."""
SIDE, WARM = 1024, 3
"""Side of the matrices by which a machine's peak is measured, and steps before those that are looked at."""
Home: TypeAlias = tuple[str, str]
"""A stage, and a submodule or nothing."""


def profile(
    pipe: Pipeline, batch: Batch | None = None, *, state: State | None = None, steps: int = 10, compile: bool = False
) -> Profile:
    """Profile uncompiled steps: time and memory by stage and submodule, by torch.profiler.

    `batch`: for each step; by default the batches of the pipeline's own data. `compile`: time a compiled step too.

    >>> from pipeline import Pipeline, forward, loss, models, backward, update
    >>> model = forward.model(lambda: models.mlp(8, 16, 3))
    >>> pipe = Pipeline(model, loss.cross_entropy(), backward.gradients(), update.sgd(0.1))
    >>> found = profile(pipe, {"inputs": torch.randn(4, 8), "targets": torch.tensor([0, 1, 2, 0])}, steps=2)
    >>> [row.module for row in found.rows if row.stage == "forward.model"]
    ['', '0', '1', '2', '3']
    >>> abs(sum(row.seconds for row in found.rows) / found.total - 1) < 1e-6
    True
    """
    if not isinstance(pipe, Pipeline):
        raise ConfigError(f"profile() takes a Pipeline, not a {type(pipe).__name__}: profile that of one member")
    if batch is None and pipe.load is None:
        raise ConfigError("the pipeline has no load stage: pass a batch")
    first = state or pipe.init(batch=batch)
    with _ranges(pipe) as looked_at:
        took, now = _timed(pipe, pipe, first, batch, steps)
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if _cuda(pipe) else [])]
        with torch.profiler.profile(activities=activities, profile_memory=True, with_flops=True) as events:
            _run(looked_at, pipe, now, batch, steps)
    compiled = None
    if compile:
        own = pipe.compile()
        compiled = _timed(own, pipe, first.clone(), batch, steps)[0]
    return _read(pipe, events, steps, took, compiled)


def _cuda(pipe: Pipeline) -> bool:
    return pipe.place.device.type == "cuda"


def _batches(pipe: Pipeline, state: State, batch: Batch | None) -> Iterator[Any]:
    while True:
        if batch is not None:
            yield batch
        else:
            assert pipe.load is not None
            yield from data.epoch(pipe.program, pipe.load, pipe.program.seed(state.tree), 0)


def _run(step_of: Callable[..., Any], pipe: Pipeline, state: State, batch: Batch | None, steps: int) -> State:
    batches = _batches(pipe, state, batch)
    for _ in range(steps):
        with record_function(STEP):
            with record_function(LOAD):
                given = next(batches)
            state, _ = step_of(state, given)
    if _cuda(pipe):
        torch.cuda.synchronize(pipe.place.device)
    return state


def _timed(step_of: Any, pipe: Pipeline, state: State, batch: Batch | None, steps: int) -> tuple[float, State]:
    """Seconds of a step, after some to warm up."""
    call = functools.partial(step, pipe.program) if step_of is pipe else step_of.step
    state = _run(call, pipe, state, batch, WARM)
    began = time.perf_counter()
    state = _run(call, pipe, state, batch, steps)
    return (time.perf_counter() - began) / steps, state


@contextmanager
def _ranges(pipe: Pipeline) -> Iterator[Callable[..., Any]]:
    """A step that records ranges of stages and submodules."""
    open_ranges: list[ExitStack] = []
    names: dict[nn.Module, str] = {}

    def enter(module: nn.Module, args: Any) -> None:
        if not open_ranges:
            names.clear()
            names.update({m: name for name, m in module.named_modules()})
        open_ranges.append(ExitStack())
        if names.get(module):
            open_ranges[-1].enter_context(record_function(MODULE + names[module]))

    def leave(module: nn.Module, args: Any, outputs: Any) -> None:
        open_ranges.pop().close()

    program = watched(pipe.program, lambda name: record_function(STAGE + name))
    before = hooks.register_module_forward_pre_hook(enter)
    after = hooks.register_module_forward_hook(leave, always_call=True)
    try:
        yield functools.partial(step, program)
    finally:
        before.remove()
        after.remove()


def _read(pipe: Pipeline, events: Any, steps: int, alone: float, compiled: float | None) -> Profile:
    """Each event's own time, by the range it is in; an operation of the backward is in that of its forward."""
    spent: dict[Home, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    operations: dict[str, float] = defaultdict(float)
    flops = products = 0.0
    found = [e for e in events.events() if str(e.device_type).endswith("CPU")]
    homes = {e.sequence_nr: _range(e) for e in found if e.sequence_nr >= 0 and not _backward(e)}
    rest = next((s.name for s in pipe.backwards), STEP), ""
    for e in (e for e in found if _within(e, STEP) is not None):
        seconds, node = e.self_cpu_time_total / 1e6 / steps, _backward(e)
        row = spent[(homes.get(node.sequence_nr) if node is not None else _range(e)) or rest]
        row[node is not None] += seconds
        row[2] += 0 if node is not None else e.self_cpu_memory_usage / steps
        if "::" in e.name:
            operations[e.name] += seconds
        if e.name in PRODUCTS:
            flops, products = flops + e.flops / steps, products + seconds
    named = [(m.name, name) for m in pipe.models for name, _ in m.module.skeleton().module.named_modules()]
    order = {home: i for i, home in enumerate([("load", ""), *((s.name, "") for s in pipe.graph)])}
    rows = tuple(
        Row(*home, forward, backward, int(kept))
        for home, (forward, backward, kept) in sorted(
            spent.items(), key=lambda x: (order.get((x[0][0], ""), -1), named.index(x[0]) if x[0] in named else -1)
        )
    )
    longest = dict(sorted(operations.items(), key=lambda x: -x[1]))
    total, rate = sum(r.seconds for r in rows), flops / products if products else 0.0
    return Profile(rows, longest, total, alone, compiled, products, rate, _peak(pipe), events, _low(pipe))


def _backward(event: Any) -> Any:
    """The node of the backward that an event is in; None outside of it."""
    return next((e for e in _up(event) if e.name.startswith(BACKWARD)), None)


def _within(event: Any, name: str) -> Any:
    return next((e for e in _up(event) if e.name == name), None)


def _range(event: Any) -> Home | None:
    """Stage and submodule of an event."""
    stage = next((e.name.removeprefix(STAGE) for e in _up(event) if e.name.startswith(STAGE)), None)
    if stage is None:
        return ("load", "") if _within(event, LOAD) is not None else None
    return stage, next((e.name.removeprefix(MODULE) for e in _up(event) if e.name.startswith(MODULE)), "")


def _up(event: Any) -> Iterator[Any]:
    while event is not None:
        yield event
        event = event.cpu_parent


def _low(pipe: Pipeline) -> bool:
    return pipe.place.precision == "fp32" and fast_bf16(pipe.place.device)


def _peak(pipe: Pipeline) -> float:
    """Floating-point operations a second of a large matrix product, in float32."""
    x = torch.randn(SIDE, SIDE, device=pipe.place.device)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        y = x @ x
        y[0, 0].item()
        best = min(best, time.perf_counter() - began)
    return 2.0 * SIDE**3 / best
