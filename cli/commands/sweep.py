"""`pipe sweep`: many runs at once, in groups that share a program, and each group in chunks of members."""

from __future__ import annotations

import csv
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from attrs import asdict, evolve, frozen
from rich.console import Console

from cli import config as settings
from cli import folder as folders
from cli.build import MANY
from cli.build import begin as begun
from cli.config import PLAN, TrainConfig
from cli.progress import interrupts, plain, warn
from cli.ranking import ranking
from cli.recipes.setting import refusal
from cli.seal import Seal
from cli.sweep import autotune as width
from cli.sweep import groups as plans
from cli.sweep import picture as landscape
from cli.sweep import train as work
from cli.sweep.grid import Axis, combinations
from cli.sweep.groups import Chunk, Member, Results
from cli.sweep.live import watched
from cli.sweep.train import MEMBERS
from pipeline import files, log, plot
from pipeline.compile import Compiled
from pipeline.errors import ConfigError
from pipeline.state import format_metric
from pipeline.text import quoted

CSV, PICTURE, BEST = "sweep.csv", "sweep.svg", "best"


@frozen
class Plan:
    """What a sweep is, besides its config."""

    axes: tuple[Axis, ...]
    rows: tuple[Mapping[str, Any], ...]
    seeds: int
    halving: bool
    at_once: int | None
    widths: tuple[int, ...] = ()
    """Of each group; none before they are known."""

    @classmethod
    def read(cls, folder: Path) -> Plan:
        try:
            found = settings.document(folder / PLAN)
            axes = tuple(Axis(**{**a, "values": tuple(a["values"])}) for a in found.pop("axes"))
            return cls(axes, tuple(found.pop("rows")), widths=tuple(found.pop("widths")), **found)
        except (TypeError, KeyError, ValueError):
            raise refusal(f"{folder / PLAN} is not what a sweep writes") from None

    @property
    def text(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()


def run(
    base: TrainConfig, axes: Sequence[Axis], *, seeds: int, draws: int | None, at_once: int | None, halving: bool,
    quiet: bool,
) -> None:  # fmt: skip
    """Train all combinations of the axes, with each of the seeds."""
    if draws is not None and not axes:
        raise refusal("--random has nothing to draw: give a setting several values, such as --lr 0.001..1:log")
    plan = Plan(tuple(axes), tuple(combinations(axes, draws, base.run.seed, seeds)), seeds, halving, at_once)
    with folders.new(base, f"sweep-{base.title}") as seal:
        # The config, last, makes the folder one to go on with.
        folders.write(seal, {PLAN: plan.text, settings.CONFIG: folders.config_text(base, {}, seal)})
        _sweep(seal, base, plan, quiet)


def resume(folder: Path, *, quiet: bool) -> None:
    """Go on with a sweep: members that are done stay as they are."""
    settings.check_run(folder)
    layer = settings.read(folder / settings.CONFIG)
    plan = Plan.read(folder)
    with folders.gone_on(folder) as seal:
        _sweep(seal, settings.make(layer), plan, quiet)


def _sweep(seal: Seal, base: TrainConfig, plan: Plan, quiet: bool) -> None:
    say, folder = plain(quiet), seal.folder
    members = plans.members(base, plan.rows, plan.seeds)
    groups = plans.grouped(members)
    cores = torch.get_num_threads()
    first, _ = begun(members[0].config)
    alone = torch.get_num_threads()
    torch.set_num_threads(base.run.threads or (cores if len(members) >= MANY else alone))
    metric = base.run.best or first.best or "loss"
    say.print(f"data    {base.source}: {first.data}")
    say.print(
        f"sweep   {len(members)} runs of {first.model}: {len(plan.rows)} settings x {plan.seeds} seeds, in "
        f"{len(groups)} group{'s' * (len(groups) > 1)}"
    )
    programs: list[Compiled] = []
    if not plan.widths:
        plan = evolve(plan, widths=tuple(_widths(groups, base, programs, plan.at_once, say)))
        folders.write(seal, {PLAN: plan.text})
    ends = plans.rungs(len(members), base.run.epochs, plan.halving)
    if len(ends) > 1:
        say.print(f"halving after epoch {', '.join(map(str, ends[:-1]))}: the better half goes on")
    caught: list[int] = []
    results: dict[str, list[log.Row]] = {}
    began = time.perf_counter()
    with interrupts(caught), watched(say, plan.axes, members, results, metric) as show:
        for chunk in _chunks(plan, groups, ends, results, metric, base.run.seed):
            if not plan.halving:  # those of groups before are done with
                programs[:] = [p for p in programs if p.pipe.models == chunk.runs.pipe.models]
            if not work.trained(chunk, base, seal, say, programs, caught, partial(show, chunk), alone):
                break
            results |= {m.name: work.rows_of(folder, m, chunk.end) for m in chunk.members}
    if caught:
        warn(f"stopped by a signal; go on with: pipe sweep --resume {folder}")
        sys.exit(128 + caught[0])
    seconds = time.perf_counter() - began
    _end(folder, plan.axes, members, results, metric)
    result = plain(False)
    points = [(m.chosen, results[m.name]) for m in members]
    result.print(landscape.table([a.name for a in plan.axes], points, metric))
    best = _best(members, results, metric)
    value = format_metric(metric, results[best.name][-1][f"validate/{metric}"])
    result.print(f"best    {value}: {landscape.words(best.chosen) or 'the defaults'}, seed {best.config.run.seed}")
    result.print(f"time    {seconds:.1f} s for {len(members)} runs")
    result.print(
        f"sweep   {folder} ({CSV}, {PICTURE}; go on with the best: pipe train --resume {folder / BEST} --epochs N)"
    )


def _widths(
    groups: Iterable[Sequence[Member]], base: TrainConfig, programs: list[Compiled], at_once: int | None, say: Console
) -> Iterator[int]:
    """How many members of each group are trained at once."""
    for i, group in enumerate(groups):
        found = width.Width(at_once, "") if at_once is not None else width.chosen(group, base, programs, say)
        size = plans.parted(len(group), found.members)
        why = f" ({found.why})" if found.why else ""
        say.print(f"width   {size} at once{f' in group {i + 1}' if i else ''}{why}")
        yield size


def _chunks(
    plan: Plan, groups: Sequence[Sequence[Member]], ends: Sequence[int], results: Results, metric: str, seed: int
) -> Iterator[Chunk]:
    """What is trained, one after the other; after each rung, by what `results` then has."""
    alive = [m for group in groups for m in group]
    for rung, end in enumerate(ends):
        begin = ends[rung - 1] if rung else 0
        if rung:
            alive = plans.better(alive, results, metric)
        for i, group in enumerate(groups):
            left = [m for m in group if m in alive]
            if left:
                yield from plans.chunks(f"{rung}-{i}", group[0].made, left, plan.widths[i], (begin, end), seed)


def _end(
    folder: Path, axes: Sequence[Axis], members: Sequence[Member], results: Mapping[str, Sequence[log.Row]], metric: str
) -> None:
    """The table as CSV, the picture, and the best member."""
    text = StringIO()
    ends = {
        m.name: {k: v for k, v in results[m.name][-1].items() if isinstance(v, int | float | None)} for m in members
    }
    names = list(dict.fromkeys(k for end in ends.values() for k in end if "/" in k))
    writer = csv.writer(text)
    writer.writerow(["run", *(a.name for a in axes), "seed", "epochs", *names])
    for m in members:
        end = ends[m.name]
        chosen = [quoted(v) if isinstance(v := m.chosen[a.name], str) else v for a in axes]
        writer.writerow([f"{MEMBERS}/{m.name}", *chosen, m.config.run.seed, end["epoch"], *(end.get(n) for n in names)])
    folders.replace(folder / CSV, text.getvalue().encode())
    if axes:
        points = [(m.chosen, results[m.name]) for m in members]
        folders.replace(folder / PICTURE, plot.svg(landscape.picture([a.name for a in axes], points, metric)).encode())
    best = Path(MEMBERS, _best(members, results, metric).name)
    files.remove(folder / BEST)
    os.symlink(best, folder / BEST)


def _best(members: Sequence[Member], results: Mapping[str, Sequence[log.Row]], metric: str) -> Member:
    """The member with the best last epoch, of those that did most."""
    most = max(rows[-1]["epoch"] for rows in results.values())
    ends = {m.name: results[m.name][-1] for m in members if results[m.name][-1]["epoch"] == most}
    finite = [m for m in members if ends.get(m.name, {}).get(f"validate/{metric}") is not None]
    if not finite:
        raise ConfigError(f"no run of the sweep ended with a finite {metric}; try lower learning rates")
    key = ranking(metric, [r for rows in results.values() for r in rows[:1]])
    return min(finite, key=lambda m: key(ends[m.name]))
