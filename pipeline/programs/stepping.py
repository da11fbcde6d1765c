"""Stepping: ways through an epoch, as generators of the State after some steps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator
from functools import partial
from typing import TypeAlias

from attrs import frozen

from pipeline.compile import Compiled, Steps
from pipeline.mesh import Shard
from pipeline.pace import Pace
from pipeline.place import Place
from pipeline.programs import data
from pipeline.programs.evaluate import step
from pipeline.programs.program import Program, Seed
from pipeline.state import State, samples

CALL = 0.1
"""Approximate seconds of a call of many steps, unless the user sets their number."""

Progress: TypeAlias = Generator[tuple[State, int, int], State, None]
"""Yields the State after some steps, the number of batches in the epoch so far, and the number of samples since batch
`start`. Takes the State to go on with."""


@frozen
class Epoch:
    """An epoch, from batch `start` on."""

    seed: Seed
    number: int
    start: int
    per_call: Steps | None
    left: Callable[[int], int]
    """Maximum number of steps in a call, from a batch of the epoch on."""


class Clock:
    """Decides if a Report inside an epoch is due. On a mesh the first process decides, a few times in an interval."""

    def __init__(self, place: Place, interval: float | None) -> None:
        self.place, self.interval, self.next, self.asked = place, interval, 0, (0, 0.0)

    def due(self, seconds: float, k: int) -> bool:
        if self.interval is None:
            return False
        if self.place.mesh is None:
            return seconds > self.interval
        if k < self.next:
            return False
        done, took = k - self.asked[0], seconds - self.asked[1]
        steps = int(done * self.interval / (4 * took)) if done > 0 and took > 0 else 1
        due, steps = self.place.agreed((seconds > self.interval, max(steps, 1)))
        self.next, self.asked = k + steps, (k, 0.0 if due else seconds)
        return bool(due)


def next_step(progress: Progress, state: State | None) -> tuple[State, int, int] | None:
    """Go on with a State; None at the end of the epoch."""
    try:
        return next(progress) if state is None else progress.send(state)
    except StopIteration:
        return None


def one_by_one(program: Program, compiled: Compiled | None, state: State, epoch: Epoch) -> Progress:
    """A batch from the host at a time."""
    pipe, seen, k = program.pipe, 0, epoch.start
    assert pipe.load is not None
    advance = partial(step, program) if compiled is None else compiled.step
    for shard in data.ahead(pipe, data.epoch(program, pipe.load, epoch.seed, epoch.number, k)):
        state, _ = advance(state, shard)
        seen, k = seen + data.size(program, shard), k + 1
        state = yield state, k, seen


def stacked(compiled: Compiled, state: State, epoch: Epoch) -> Progress:
    """Batches from the host, `per_call` of one size stacked in a call."""
    pipe, program, k = compiled.pipe, compiled.program, epoch.start
    assert pipe.load is not None
    assert isinstance(epoch.per_call, int)
    seen, waiting, limit = 0, list[Shard](), epoch.per_call
    shards = data.ahead(pipe, data.epoch(program, pipe.load, epoch.seed, epoch.number, k))

    def size(shard: Shard) -> int:
        return samples(shard.values, pipe.samples)

    for shard in itertools.chain(shards, (None,)):
        ended = bool(waiting) and (shard is None or size(shard) != size(waiting[0]))
        if waiting and (ended or len(waiting) == limit):
            state = compiled.step_each(state, [s.values for s in waiting])
            seen, k = seen + sum(map(size, waiting)), k + len(waiting)
            state = yield state, k, seen
            waiting = []
        if shard is not None:
            waiting = [*waiting, shard]
            limit = min(epoch.per_call, epoch.left(k))


def fused(compiled: Compiled, state: State, epoch: Epoch) -> Progress:
    """Many steps a call, on data on the device."""
    pipe, k = compiled.pipe, epoch.start
    load = pipe.load
    assert load is not None
    batches = load.batches
    assert batches is not None
    count, pace = 1, Pace(pipe.place.device, CALL)
    while k < batches:
        wanted = count if epoch.per_call is None else batches if epoch.per_call == "epoch" else epoch.per_call
        steps = min(wanted, batches - k, epoch.left(k))
        state, _ = pace.run(partial(compiled.advance, state, epoch.number, k, steps), steps)
        k += steps
        count = pipe.place.agreed(pace.steps)
        end = load.order.n if k == batches and not load.drop_last else k * load.size
        state = yield state, k, end - epoch.start * load.size
