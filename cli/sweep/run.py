"""Run a sweep: many runs at once, in groups that share a program, and each group in chunks of members."""

from __future__ import annotations

import csv
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from attrs import asdict, evolve, frozen
from rich.console import Console

from cli import config as settings
from cli import folder as folders
from cli import step_size
from cli.build import begin
from cli.config import PLAN, TrainConfig
from cli.progress import interrupts, plain, warn
from cli.ranking import ranking
from cli.recipes.metric import ALWAYS, result
from cli.recipes.setting import refusal
from cli.seal import Seal
from cli.sweep import groups, live, picture
from cli.sweep.grid import Axis, combinations
from cli.sweep.groups import Chunk, Member, Results
from cli.sweep.train import MEMBERS, Trainer, rows_of
from pipeline import files, log, plot
from pipeline.errors import ConfigError
from pipeline.state import format_metric
from pipeline.text import quoted

CSV, PICTURE, BEST = "sweep.csv", "sweep.svg", "best"


@frozen
class Plan:
    """The plan of a sweep, apart from its config."""

    axes: tuple[Axis, ...]
    rows: tuple[Mapping[str, Any], ...]
    settings: tuple[Mapping[str, Any], ...]
    """All settings of each row, as tables."""
    seeds: int
    halving: bool
    at_once: int | None
    widths: tuple[int, ...] = ()
    """Members of each group that are trained at once; empty before a sweep begins."""

    @classmethod
    def read(cls, folder: Path) -> Plan:
        try:
            plan = settings.document(folder / PLAN)
            axes = tuple(Axis(**{**a, "values": tuple(a["values"])}) for a in plan.pop("axes"))
            rows, every, widths = (tuple(plan.pop(name)) for name in ("rows", "settings", "widths"))
            return cls(axes, rows, every, widths=widths, **plan)
        except (TypeError, KeyError, ValueError):
            raise refusal(f"{folder / PLAN} is no plan of a sweep") from None

    @property
    def text(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()


def run(
    base: TrainConfig, axes: Sequence[Axis], *, seeds: int, draws: int | None, at_once: int | None, halving: bool,
    quiet: bool,
) -> dict[str, Any]:  # fmt: skip
    """Train all combinations of the axes, or random ones, with each of the seeds; returns the result."""
    if draws is not None and not axes:
        raise refusal("--random has nothing to draw: give a setting several values, such as --lr 0.001..1:log")
    rows = tuple(combinations(axes, draws, base.run.seed, seeds))
    settled = [*groups.settle(base, rows)]
    base, *configs = (evolve(c, run=evolve(c.run, patience=None)) for c in settled)
    if len(epochs := dict.fromkeys(c.run.epochs for c in configs)) > 1:
        raise refusal(f"a sweep has one number of epochs, not {' and '.join(map(str, epochs))}: add --epochs "
                      f"{max(epochs)}")  # fmt: skip
    if any(c.run.patience for c in settled[1:]):
        plain(quiet).print(f"epochs  {max(epochs)} of each run: the model's patience does not apply to a sweep")
    plan = Plan(tuple(axes), rows, tuple(c.tables for c in configs), seeds, halving, at_once)
    members = groups.members(rows, configs, seeds)
    by = {m.config.run.best or m.job.best or "loss": m.job.prepared for m in members}
    if len(by) > 1 and (data := next(iter(by.values()))) is not None:
        usual = result(ALWAYS[data.task][-1])
        raise refusal(f"the losses of the runs have different metrics, {' and '.join(by)}; add --best {usual}")
    with folders.new(base, f"sweep-{base.title}") as seal:
        # A folder with a config can be resumed, so the config is last.
        folders.write(seal, {PLAN: plan.text, settings.CONFIG: folders.config_text(base, {}, seal)})
        return _sweep(seal, base, plan, members, quiet)


def resume(folder: Path, *, quiet: bool) -> dict[str, Any]:
    """Go on with a sweep. Finished members stay unchanged."""
    settings.check_run(folder)
    layer = settings.read(folder / settings.CONFIG)
    plan = Plan.read(folder)
    given: dict[str, Any] = {settings.RECORDED: {}}  # nobody writes settings now
    configs = [evolve(settings.make(tables), settled=True, given=given) for tables in plan.settings]
    with folders.gone_on(folder) as seal:
        return _sweep(seal, settings.make(layer), plan, groups.members(plan.rows, configs, plan.seeds), quiet)


def _sweep(seal: Seal, base: TrainConfig, plan: Plan, members: Sequence[Member], quiet: bool) -> dict[str, Any]:
    say, folder = plain(quiet), seal.folder
    grouped = groups.grouped(members)
    cores = torch.get_num_threads()
    first, _ = begin(members[0].config)
    alone = torch.get_num_threads()
    torch.set_num_threads(base.run.threads or (cores if len(members) >= step_size.MANY else alone))
    metric = base.run.best or first.best or "loss"
    say.print(f"data    {base.source}: {first.data}")
    say.print(
        f"sweep   {len(members)} runs of {first.model}: {len(plan.rows)} settings x {plan.seeds} seeds, in "
        f"{len(grouped)} group{'s' * (len(grouped) > 1)}"
    )
    plan = _with_widths(plan, grouped, seal, say)
    ends = groups.rungs(len(members), members[0].config.run.epochs, plan.halving)
    if len(ends) > 1:
        say.print(f"halving after epoch {', '.join(map(str, ends[:-1]))}: the better half goes on")
    trainer = Trainer(base, seal, say, [], alone, [])
    results: dict[str, list[log.Row]] = {}
    began = time.perf_counter()
    with interrupts(trainer.caught), live.shown(say, plan.axes, members, results, metric) as show:
        for chunk in _chunks(plan, grouped, ends, results, metric, base.run.seed):
            if not plan.halving:  # earlier groups are finished
                trainer.programs = [p for p in trainer.programs if p.pipe.models == chunk.runs.pipe.models]
            if not trainer.train(chunk, partial(show, chunk)):
                break
            results |= {m.name: rows_of(folder, m, chunk.end) for m in chunk.members}
    if trainer.caught:
        warn(f"stopped by a signal; go on with: pipe sweep --resume {folder}")
        sys.exit(128 + trainer.caught[0])
    _write_results(folder, plan.axes, members, results, metric)
    return _print_results(folder, plan.axes, members, results, metric, time.perf_counter() - began)


def _with_widths(plan: Plan, grouped: Sequence[Sequence[Member]], seal: Seal, say: Console) -> Plan:
    """The plan with the width of each group, which a resumed sweep has already."""
    if plan.widths:
        return plan
    widths = [groups.even(len(group), plan.at_once or groups.width(group)) for group in grouped]
    plan = evolve(plan, widths=tuple(widths))
    folders.write(seal, {PLAN: plan.text})
    say.print(f"width   {', '.join(map(str, dict.fromkeys(widths)))} at once")
    return plan


def _chunks(
    plan: Plan, grouped: Sequence[Sequence[Member]], ends: Sequence[int], results: Results, metric: str, seed: int
) -> Iterator[Chunk]:
    """The chunks to train, one after the other; chunks after a rung depend on the `results` so far."""
    alive = [m for group in grouped for m in group]
    for rung, end in enumerate(ends):
        begin = ends[rung - 1] if rung else 0
        if rung:
            alive = groups.better(alive, results, metric)
        for i, group in enumerate(grouped):
            left = [m for m in group if m in alive]
            if left:
                yield from groups.chunks(f"{rung}-{i}", group[0].job, left, plan.widths[i], (begin, end), seed)


def _write_results(
    folder: Path, axes: Sequence[Axis], members: Sequence[Member], results: Mapping[str, Sequence[log.Row]], metric: str
) -> None:
    """Write the table as CSV, the picture, and a link to the best member."""
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
        figure = picture.picture([a.name for a in axes], points, metric, "\n".join(picture.edges(axes, points, metric)))
        folders.replace(folder / PICTURE, plot.svg(figure).encode())
    files.remove(folder / BEST)
    os.symlink(Path(MEMBERS, _best(members, results, metric).name), folder / BEST)


def _print_results(
    folder: Path, axes: Sequence[Axis], members: Sequence[Member], results: Mapping[str, Sequence[log.Row]],
    metric: str, seconds: float,
) -> dict[str, Any]:  # fmt: skip
    """Print and return the result."""
    say = plain(False)
    points = [(m.chosen, results[m.name]) for m in members]
    say.print(picture.table([a.name for a in axes], points, metric))
    best = _best(members, results, metric)
    value = format_metric(metric, results[best.name][-1][f"validate/{metric}"])
    say.print(f"best    {value}: {picture.words(best.chosen) or 'the defaults'}, seed {best.config.run.seed}")
    for edge in picture.edges(axes, points, metric):
        say.print(f"        {edge}; try beyond it")
    say.print(f"time    {seconds:.1f} s for {len(members)} runs")
    say.print(
        f"sweep   {folder} ({CSV}, {PICTURE}; go on with the best: pipe train --resume {folder / BEST} --epochs N)"
    )
    runs = [{"run": str(folder / MEMBERS / m.name), "chosen": m.chosen, "seed": m.config.run.seed,
             "last": results[m.name][-1]} for m in members]  # fmt: skip
    return {"sweep": str(folder), "metric": metric, "best": str(folder / MEMBERS / best.name), "seconds": seconds,
            "runs": runs}  # fmt: skip


def _best(members: Sequence[Member], results: Mapping[str, Sequence[log.Row]], metric: str) -> Member:
    """The member with the best last epoch, among the longest runs."""
    longest = max(rows[-1]["epoch"] for rows in results.values())
    ends = {m.name: results[m.name][-1] for m in members if results[m.name][-1]["epoch"] == longest}
    finite = [m for m in members if ends.get(m.name, {}).get(f"validate/{metric}") is not None]
    if not finite:
        raise ConfigError(f"no run of the sweep ended with a finite {metric}; try lower learning rates")
    key = ranking(metric, [r for rows in results.values() for r in rows[:1]])
    return min(finite, key=lambda m: key(ends[m.name]))
