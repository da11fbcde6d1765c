"""Width: how many members of a sweep are trained side by side, where nobody says it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from attrs import frozen
from rich.console import Console
from torch.utils import _pytree as pytree

from cli import measure, room
from cli.build import size, steps
from cli.commands.train import compiled
from cli.config import TrainConfig
from cli.sweep.groups import Member, chunks, parted
from pipeline.compile import Compiled

USUAL, OTHERS = 32, (8, 128)
"""Members side by side: few enough for what they hold to stay near a core, many enough to share what a step costs by
itself; and what else is measured, where it may pay."""
PAYS = 20
"""A width that is better by a tenth is worth being looked for where training takes so many times the compiling."""
COLD = 10.0
"""Seconds that compiling takes about, where the first width is kept already."""
SHARE = 0.5
"""Of the free memory, at most so much is for members."""
COPIES = 4
"""Times that what a member holds is there while its program is made and checked."""


@frozen
class Width:
    """How many members at once, and in words, why."""

    members: int
    why: str


def chosen(group: Sequence[Member], config: TrainConfig, programs: list[Compiled], say: Console) -> Width:
    """What is fastest of a few widths for a group, as it was measured once on this machine; or the usual one, where
    there are not so many members, or where they would be trained before anything is measured. Programs that were made
    are put into `programs`."""
    fit_in = round(SHARE * room.free(group[0].made.stages.place.device)) // held(group[0])
    if fit_in < min(len(group), USUAL):
        return Width(max(fit_in, 1), "as fit in memory")
    usual = Width(min(USUAL, len(group)), "")
    if not config.run.compile:
        return usual
    name = measure.identity(group[0].config)
    if isinstance(kept := measure.known().get(name), int):
        return Width(min(kept, fit_in, len(group)), "the fastest, measured before")
    if len(group) <= USUAL:
        return usual
    first = _measured(group, config, USUAL, say)
    load = group[0].made.stages.load
    assert load is not None
    steps = (load.batches or 0) * config.run.epochs * len(group)
    if first is None:
        return usual
    if first.each * steps < PAYS * max(first.compiling, COLD):
        programs.append(first.program)
        return usual
    found = {USUAL: first}
    for width in OTHERS:
        if width <= min(fit_in, len(group)) and (more := _measured(group, config, width, say)) is not None:
            found[width] = more
    best = min(found, key=lambda width: found[width].each)
    programs.append(found[best].program)
    measure.keep(name, best)
    told = ", ".join(f"{width}: {1e6 * found[width].each:.3g} us" for width in sorted(found))
    return Width(best, f"the fastest, a step of each takes with {told}")


@frozen
class Measured:
    """Seconds of a step of one member, and of compiling."""

    each: float
    compiling: float
    program: Compiled


def _measured(group: Sequence[Member], config: TrainConfig, width: int, say: Console) -> Measured | None:
    """A width, by training that is thrown away; None where it does not compile."""
    chunk = next(chunks("", group[0].made, group, parted(len(group), width), (0, 1), config.run.seed))
    runs = chunk.runs
    state = runs.init(steps=steps(chunk.made.stages.load, config))
    began = time.perf_counter()
    program = compiled(runs, chunk.made.held_out, config, state, say, False)
    if program.report.fallback is not None:
        return None
    compiling = time.perf_counter() - began
    return Measured(measure.step_seconds(runs, program, state) / runs.members, compiling, program)


def held(member: Member) -> int:
    """Bytes that a member holds while it is trained, about: its State, gradients, and a batch's activations."""
    pipe = member.made.pipe
    state = pipe.init(0, steps=1)
    kept: int = sum(t.nbytes for t in pytree.tree_leaves(state.tree))
    return max(COPIES * kept + int(3 * size(member.made, state)[1]), 1)
