"""The runs of a sweep, their groups that share a program, and their chunks that train side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import evolve, frozen
from torch.utils import _pytree as pytree

from cli import build, goal, room, step_size, unused
from cli import config as settings
from cli.build import Job
from cli.config import TrainConfig
from cli.prepared import prepared
from cli.ranking import ranking
from cli.recipes.setting import flag, refusal
from cli.settled import settled
from pipeline import Pipeline, Sweep
from pipeline.log import Row
from pipeline.programs.hyper import hyper_numbers
from pipeline.programs.members import gathers
from pipeline.sources import Prepared
from pipeline.sweeps import Order

NUMBERS = ("lr", "rest_lr", "momentum", "weight_decay", "clip", "ema")
"""Settings that a step reads from State: members of one program may differ in them."""
WITHOUT = ("ensemble", "folds", "patience", "minutes", "save_steps", "log")
"""Settings of one run that a sweep does not have."""
FACTOR = 2
"""Successive halving: one member in FACTOR goes on, for FACTOR times the epochs."""
NARROWER = 4
"""Ratio of the widths of successive programs for a shrinking group."""
ON_CPU, ON_ACCELERATOR = 32, 128
"""Members side by side: few enough for their State to stay in the cache of a core, many enough to share the fixed cost
of a step. Measured widths are in benchmarks/LOG.md: 32 takes at most 1.1 times as long as the best of 8 to 128."""
MEMORY_SHARE, COPIES = 0.5, 4
"""Share of the free memory for members, and number of copies of a member's State during compilation and its check."""


@frozen(eq=False)
class Member:
    """A run of the sweep."""

    name: str
    config: TrainConfig
    chosen: Mapping[str, Any]
    """Its value on each axis."""
    job: Job
    hyper: Mapping[str, float]


Results = Mapping[str, Sequence[Row]]
"""The epochs of each run, by its name."""


@frozen(eq=False)
class Chunk:
    """Members that are trained together, from one epoch to another."""

    name: str
    members: tuple[Member, ...]
    runs: Sweep
    """The members; the last one is repeated to fill the width of the program."""
    job: Job
    begin: int
    end: int


def settle(base: TrainConfig, rows: Sequence[Mapping[str, Any]]) -> Iterator[TrainConfig]:
    """Settings of a run for the base and for each row, all on the split of the first row's seed. Raises ConfigError for
    a setting that a sweep does not have."""
    data: dict[str, Prepared | None] = {}
    if base.digest is not None:
        prepared(base)  # which warns if they have changed
    first = settings.make(base.given, rows[0])
    for row in ({}, *rows):
        config = _split_by(first, settings.make(base.given, row))
        check(config)
        key = _data(config)
        config, data[key] = settled(config, data.get(key))
        yield _split_by(first, config)


def _split_by(first: TrainConfig, config: TrainConfig) -> TrainConfig:
    """Settings with the split of others, unless they name one."""
    if config.run.split_seed is not None:
        return config
    return evolve(config, run=evolve(config.run, split_seed=first.run.splits_by))


def members(rows: Sequence[Mapping[str, Any]], configs: Sequence[TrainConfig], seeds: int) -> list[Member]:
    """Each setting with each seed."""
    result: list[Member] = []
    data: dict[str, Prepared] = {}
    for row, config in zip(rows, configs, strict=True):
        if (key := _data(config)) not in data and config.pipeline.name is None:
            data[key] = prepared(config)
        job = build.job(config, data.get(key))
        unused.check(config, job.fixed)
        result += [evolve(m, name=f"{len(result) + k:03d}") for k, m in enumerate(seeded(config, job, row, seeds))]
    return result


def _data(config: TrainConfig) -> str:
    """The data and their split in words."""
    return repr((config.data, config.run.split_seed))


def check(config: TrainConfig, what: str = "a sweep") -> None:
    """Raise ConfigError for a setting that members do not have."""
    for name in WITHOUT:
        if getattr(config.run, name):
            raise refusal(f"{flag(name)} does not apply to {what}; leave it out")


def seeded(config: TrainConfig, job: Job, chosen: Mapping[str, Any], seeds: int, what: str = "a sweep") -> list[Member]:
    """A setting with seeds from its own on, and one split for all."""
    load = job.stages.load
    if job.held_out is None or load is None:
        raise refusal(f"{what} needs held-out data, on which its runs are compared")
    hyper = hyper_numbers(job.stages.graph, build.steps(load, config), load.batches)
    config = _split_by(config, goal.settled(config, job, job.best))
    runs = [evolve(config.run, seed=config.run.seed + k, out=None) for k in range(seeds)]
    return [Member(f"{k:03d}", evolve(config, run=run), chosen, job, hyper) for k, run in enumerate(runs)]


def grouped(members: Sequence[Member]) -> list[list[Member]]:
    """Groups of members whose steps differ only in numbers."""
    groups: dict[str, list[Member]] = {}
    for m in members:
        other = {k: v for k, v in m.config.flat.items() if k not in (*NUMBERS, "seed")}
        names = [s.name for s in m.job.stages.stages]
        groups.setdefault(repr((sorted(other.items(), key=str), names, sorted(m.hyper))), []).append(m)
    return list(groups.values())


def width(group: Sequence[Member]) -> int:
    """Number of members of a group to train at once, at most as many as fit in half of the free memory."""
    device = group[0].job.stages.place.device
    fit = round(MEMORY_SHARE * room.free(device)) // memory_of(group[0])
    return max(min(fit, ON_CPU if device.type == "cpu" else ON_ACCELERATOR), 1)


def memory_of(member: Member) -> int:
    """Bytes of a member in training, roughly: its State, gradients, and a batch's activations."""
    state = member.job.pipe.init(0, steps=1)
    stored: int = sum(t.nbytes for t in pytree.tree_leaves(state.tree))
    return max(COPIES * stored + int(3 * step_size.measured(member.job, state).activations), 1)


def even(count: int, width: int) -> int:
    """The size of even chunks of `count` members, in as few chunks as `width` allows.

    >>> even(40, 32), even(3, 32)
    (20, 3)
    """
    return -(-count // -(-count // width))


def rungs(count: int, epochs: int, halving: bool) -> list[int]:
    """The epochs after which members are compared, in order; without halving, only the last epoch.

    Source: Jamieson and Talwalkar, Non-stochastic best arm identification and hyperparameter optimization (2016),
    algorithm 1, with a budget of all epochs for the last members.

    >>> rungs(64, 20, True), rungs(64, 20, False)
    ([1, 2, 5, 10, 20], [20])
    """
    ends = [epochs]
    while halving and count >= FACTOR ** len(ends) and epochs // FACTOR ** len(ends):
        ends.append(epochs // FACTOR ** len(ends))
    return ends[::-1]


def better(members: Sequence[Member], results: Results, metric: str) -> list[Member]:
    """The best of members, one in FACTOR, in their order. Runs that are not finite are dropped."""
    last = {m.name: results[m.name][-1] for m in members}
    finite = [
        m for m in members if None not in (last[m.name].get(f"validate/{metric}"), last[m.name].get("train/loss"))
    ]
    key = ranking(metric, [r for m in members for r in results[m.name][:1]])
    ranked = sorted(finite, key=lambda m: key(last[m.name]))
    kept = {m.name for m in ranked[: -(-len(members) // FACTOR)]}
    return [m for m in members if m.name in kept]


def chunks(
    name: str, job: Job, alive: Sequence[Member], size: int, epochs: tuple[int, int], seed: int
) -> Iterator[Chunk]:
    """The remaining members of a group, in chunks of `size`; a small remainder takes one program, narrower by a fixed
    ratio.

    `seed`: of the order of batches, if members share one, so that results do not depend on the chunks.
    """
    while -(-size // NARROWER) >= len(alive) and size > 1:
        size = -(-size // NARROWER)
    assert isinstance(job.pipe, Pipeline)
    order: Order = "own" if gathers(job.pipe) else "shared"
    for k in range(-(-len(alive) // size)):
        members = tuple(alive[k * size : (k + 1) * size])
        rows = [{"seed": m.config.run.seed, **m.hyper} for m in (*members, *members[-1:] * (size - len(members)))]
        yield Chunk(f"{name}-{k}", members, Sweep(job.pipe, tuple(rows), order, seed), job, *epochs)
