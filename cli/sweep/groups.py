"""Plan: which runs a sweep has, which of them share a program, and which are trained side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import evolve, frozen

from cli import config as settings
from cli.build import Job, job, prepared, steps
from cli.config import TrainConfig
from cli.ranking import ranking
from cli.recipes.setting import flag, refusal
from pipeline import Pipeline, Sweep
from pipeline.log import Row
from pipeline.programs.hyper import hyper_numbers
from pipeline.programs.members import gathers
from pipeline.sweeps import Order

NUMBERS = ("lr", "rest_lr", "momentum", "weight_decay", "clip", "ema")
"""Settings that a step reads from State: those of one program may differ in them."""
WITHOUT = ("ensemble", "folds", "patience", "minutes", "save_steps", "log")
"""Settings of one run that a sweep does not have."""
FACTOR = 2
"""In successive halving, one in so many goes on, for so many times the epochs."""
NARROWER = 4
"""By how much the next narrower program is narrower."""


@frozen(eq=False)
class Member:
    """A run of the sweep."""

    name: str
    config: TrainConfig
    chosen: Mapping[str, Any]
    """Its values of the axes."""
    made: Job
    hyper: Mapping[str, float]


Results = Mapping[str, Sequence[Row]]
"""The epochs of each run, by its name."""


@frozen(eq=False)
class Chunk:
    """Members that are trained together, from one epoch to another."""

    name: str
    members: tuple[Member, ...]
    runs: Sweep
    """These, and the last of them again, as often as the program is wider."""
    made: Job
    begin: int
    end: int


def members(base: TrainConfig, rows: Sequence[Mapping[str, Any]], seeds: int) -> list[Member]:
    """Each setting with each seed. Raises ConfigError for what a sweep does not have."""
    found: list[Member] = []
    data: dict[str, Any] = {}
    for row in rows:
        config = settings.make(base.tables, row)
        for name in WITHOUT:
            if getattr(config.run, name):
                raise refusal(f"{flag(name)} has no say in a sweep; leave it out")
        if (key := repr((config.data, config.run.split_seed))) not in data and config.pipeline.name is None:
            data[key] = prepared(config)
        made = job(config, data.get(key))
        load = made.stages.load
        if made.held_out is None or load is None:
            raise refusal("a sweep needs held-out data, on which its runs are compared")
        hyper = hyper_numbers(made.stages.graph, steps(load, config), load.batches)
        split = config.run.seed if config.run.split_seed is None else config.run.split_seed
        for k in range(seeds):
            own = evolve(config.run, seed=config.run.seed + k, split_seed=split, out=None)
            found.append(Member(f"{len(found):03d}", evolve(config, run=own), row, made, hyper))
    return found


def grouped(members: Sequence[Member]) -> list[list[Member]]:
    """Members whose steps differ in numbers alone."""
    groups: dict[str, list[Member]] = {}
    for m in members:
        other = {k: v for k, v in m.config.flat.items() if k not in (*NUMBERS, "seed")}
        names = [s.name for s in m.made.stages.stages]
        groups.setdefault(repr((sorted(other.items(), key=str), names, sorted(m.hyper))), []).append(m)
    return list(groups.values())


def rungs(count: int, epochs: int, halving: bool) -> list[int]:
    """The epochs after which members are compared, the last one last; without halving, that alone.

    Source: Jamieson and Talwalkar, Non-stochastic best arm identification and hyperparameter optimization (2016),
    algorithm 1, with a budget for the last ones of all epochs.

    >>> rungs(64, 20, True), rungs(64, 20, False)
    ([1, 2, 5, 10, 20], [20])
    """
    ends = [epochs]
    while halving and count >= FACTOR ** len(ends) and epochs // FACTOR ** len(ends):
        ends.append(epochs // FACTOR ** len(ends))
    return ends[::-1]


def better(members: Sequence[Member], results: Results, metric: str) -> list[Member]:
    """The best of members, one in FACTOR, in their order; a run that was not finite does not go on."""
    last = {m.name: results[m.name][-1] for m in members}
    finite = [
        m for m in members if None not in (last[m.name].get(f"validate/{metric}"), last[m.name].get("train/loss"))
    ]
    key = ranking(metric, [r for m in members for r in results[m.name][:1]])
    ranked = sorted(finite, key=lambda m: key(last[m.name]))
    kept = {m.name for m in ranked[: -(-len(members) // FACTOR)]}
    return [m for m in members if m.name in kept]


def chunks(
    name: str, made: Job, alive: Sequence[Member], size: int, epochs: tuple[int, int], seed: int
) -> Iterator[Chunk]:
    """What is left of a group, in parts of `size`; where it is less, in one of a program a few times narrower.

    `made` is what the group shares, and `seed` of the order that members share, where they have none of their own,
    however they are parted.
    """
    while -(-size // NARROWER) >= len(alive) and size > 1:
        size = -(-size // NARROWER)
    assert isinstance(made.pipe, Pipeline)
    order: Order = "own" if gathers(made.pipe) else "shared"
    for k in range(-(-len(alive) // size)):
        members = tuple(alive[k * size : (k + 1) * size])
        rows = [{"seed": m.config.run.seed, **m.hyper} for m in (*members, *members[-1:] * (size - len(members)))]
        yield Chunk(f"{name}-{k}", members, Sweep(made.pipe, tuple(rows), order, seed), made, *epochs)


def parted(count: int, width: int) -> int:
    """So many members in as few parts of one size as there are with at most `width`.

    >>> parted(40, 32), parted(3, 32)
    (20, 3)
    """
    return -(-count // -(-count // width))
