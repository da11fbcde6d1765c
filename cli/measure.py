"""Timing of steps: several ways to run them, in turns, and a step's matrix products alone."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, TypeAlias

import torch
from attrs import frozen
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from cli.config import TrainConfig
from pipeline import Batch, Ensemble, Pipeline, State, files, fit
from pipeline.compile import Compiled, cache, key
from pipeline.mesh import Shard
from pipeline.pipe import Trainable
from pipeline.programs.evaluate import step

Way: TypeAlias = Callable[[int], float]
"""Runs a number of steps, and returns the seconds they took."""

ROUNDS = 10
SECONDS = 0.5
"""Length of a training for measurement alone."""
MOST = 1 << 20
"""Largest file of measurements, in bytes."""
MEASURED = ("data", "model", "finetune", "optimizer", "loss", "evaluate", "pipeline")
"""Tables of settings that affect the time of a step."""


@frozen
class Timing:
    """Seconds of a step in each round."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def spread(self) -> float:
        """The slowest round over the median."""
        return max(self.rounds) / self.median


def race(ways: Mapping[str, Way], seconds: float) -> dict[str, Timing]:
    """Time each way for about so many seconds, in rounds, so that other load on the machine affects all of them.

    A way has at least three rounds, even if one step takes longer than a round.
    """
    share = seconds / ROUNDS
    steps = {name: _warm(way, share) for name, way in ways.items()}
    rounds: dict[str, list[float]] = {name: [] for name in ways}
    spent = dict.fromkeys(ways, 0.0)
    while running := [name for name in ways if spent[name] < seconds or len(rounds[name]) < 3]:
        for name in running:
            took = ways[name](steps[name])
            spent[name] += took
            rounds[name].append(took / steps[name])
            steps[name] = _more(steps[name], took, share)
    return {name: Timing(tuple(r)) for name, r in rounds.items()}


def _warm(way: Way, seconds: float) -> int:
    """Approximate number of steps in `seconds`, after a warm-up."""
    way(1)
    steps = 1
    while (took := way(steps)) < seconds / 2:
        steps = _more(steps, took, seconds)
    return steps


def _more(steps: int, took: float, seconds: float) -> int:
    """Number of steps in `seconds`, at most ten times `steps`: one short time is a poor estimate."""
    return math.ceil(steps * min(seconds / max(took, 1e-9), 10))


def clock(device: torch.device) -> float:
    """The time when the device has finished its queue."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def step_seconds(pipe: Trainable, program: Compiled, state: State) -> float:
    """Seconds of a step in a training: the fastest stretch."""
    best, done, before = float("inf"), 0, 0.0
    began = time.perf_counter()
    for r in fit(pipe, epochs=1 << 20, state=state, compile=program, interval=SECONDS / 5):
        best = min(best, (r.seconds - before) / (r.batch - done))
        done, before = (0, 0.0) if r.complete else (r.batch, r.seconds)
        if time.perf_counter() - began > SECONDS:
            break
    return best


def identity(config: TrainConfig) -> str:
    """Key of a measurement: this machine, and the settings that affect the time of a step."""
    about: dict[str, Any] = {"machine": dict(key.machine()), "threads": torch.get_num_threads()}
    tables = {name: config.tables.get(name) for name in MEASURED}
    run = {name: getattr(config.run, name) for name in ("batch_size", "accumulate", "precision", "device", "backend")}
    return files.checksum({**about, **json.loads(json.dumps(tables, default=str)), "run": run})[:32]


def known() -> dict[str, str]:
    """Measurements stored on this machine."""
    try:
        path = cache.folder() / cache.MEASURED
        stored = {} if cache.refusal() else json.loads(files.read(path, most=MOST, links=False))
    except (OSError, ValueError, RecursionError):
        return {}
    return {k: v for k, v in stored.items() if isinstance(v, str)} if isinstance(stored, dict) else {}


def keep(name: str, value: str) -> None:
    """Store a measurement."""
    with suppress(OSError):  # then it is measured again
        if cache.usable():
            text = json.dumps({**known(), name: value}, indent=1)
            files.replace(cache.folder() / cache.MEASURED, text.encode())


@frozen
class Floor:
    """The matrix products of a step alone, ready to be called."""

    calls: tuple[Callable[[], Any], ...]
    operations: int
    """Floating-point operations in all of them."""

    def way(self, device: torch.device) -> Way:
        def run(steps: int) -> float:
            with torch.no_grad():
                start = clock(device)
                for _ in range(steps):
                    for call in self.calls:
                        call()
                return clock(device) - start

        return run


def floor(pipe: Pipeline | Ensemble, state: State, batch: Batch | Shard) -> Floor:
    """The products of one eager step, on its own operands with their layout in memory.

    Matrix products have no bias and write into existing memory; convolutions and attention are called as torch does.
    """
    with FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter, _Products() as seen:
        step(pipe.program, state, batch)
    return Floor(tuple(seen.calls), counter.get_total_flops())


def _attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> Any:
    return sdpa_flop_count(q, k, v)  # type: ignore[no-untyped-call]  # torch has no types there


def _attention_backward(grad: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> Any:
    return sdpa_backward_flop_count(grad, q, k, v)  # type: ignore[no-untyped-call]  # as above


_ATTENTION = {  # attention on a CPU: torch's counter knows only the GPU's
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types there
    """Records each product that is called."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.calls: list[Callable[[], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm"):
            self.calls.append(partial(torch.mm, *args[-2:], out=torch.empty_like(result)))
        elif name in ("bmm", "baddbmm"):
            self.calls.append(partial(torch.bmm, *args[-2:], out=torch.empty_like(result)))
        elif name.startswith(("convolution", "_scaled_dot_product")):
            self.calls.append(partial(func, *args, **kwargs))
        return result
