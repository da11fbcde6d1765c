"""Compare two settings: pairs of runs with the same seeds, trained side by side, and the test of their differences."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from attrs import asdict, evolve, fields, frozen
from rich.console import Console

from cli import config as settings
from cli import folder as folders
from cli import goal, processes, ranking, record, results, resuming
from cli.build import Job, begin
from cli.config import TrainConfig
from cli.paired import paired, picture, sentences
from cli.prepared import digest, prepared, tensors
from cli.progress import interrupts, plain, warn
from cli.recipes import flag_name
from cli.recipes.metric import result
from cli.recipes.setting import flag, refusal
from cli.seal import STATUS, Seal
from cli.settled import settled
from cli.sweep import groups, live
from cli.sweep.grid import Axis, check_memory
from cli.sweep.groups import Member, Results
from cli.sweep.picture import table, words
from cli.sweep.train import MEMBERS, Trainer, rows_of
from cli.training import train
from pipeline import plot
from pipeline.errors import ConfigError, StageError, first_line
from pipeline.log import Row
from pipeline.programs.members import gathers
from pipeline.sources import Prepared

FILE, PICTURE, SEEDS, WHAT = "compare.json", "compare.svg", 16, "a comparison"
AXIS = Axis("setting", ("A", "B"))
HOW = ("compile", "backend", "threads", "save_minutes", "keep", "timeout", "out")
"""Settings of how a run is trained and kept, not of what it learns: A's hold for both."""
ALONE = {"eager_steps": None, "steps_per_call": "auto"}
"""Settings of a run alone, which the folder of one may bring."""


@frozen(eq=False)
class Side:
    """One of the two settings."""

    name: str
    config: TrainConfig
    job: Job
    data: Prepared | None
    metric: str
    facts: Mapping[str, Any]

    @property
    def learned(self) -> dict[str, Any]:
        """Its settings that affect a result, as JSON has them."""
        flat: dict[str, Any] = json.loads(json.dumps(self.config.flat))
        return {name: value for name, value in flat.items() if name not in (*HOW, *ALONE, "best")}


def run(
    a: TrainConfig, b: TrainConfig, *, seeds: int | None, metric: str | None, out: str | None,
    how: Mapping[str, Any], quiet: bool, accept: bool,
) -> dict[str, Any]:  # fmt: skip
    """Train the runs that a comparison lacks; print, write and return its result.

    `how` are settings of A as given here.
    """
    if processes.count() > 1:
        raise refusal("a comparison trains its runs side by side in one process; start it alone")
    say, cores = plain(quiet), torch.get_num_threads()
    first = _side("A", a, {**ALONE, **how, "out": out}, metric)
    alone = torch.get_num_threads()
    torch.set_num_threads(cores)
    alike = {name: getattr(first.config.run, name) for name in HOW}
    sides = first, _side("B", b, {**ALONE, **alike}, metric, first)
    torch.set_num_threads(first.config.run.threads or cores)
    differ = _differing(*sides)
    _check_comparable(*sides, differ)
    with _folder(first.config, out, accept) as (seal, plan):
        done = _done(seal.folder, plan, sides)
        if (count := seeds or done or SEEDS) < done:
            raise refusal(f"{seal.folder} has {done} seeds already: --seeds {done} or more")
        check_memory(2 * count)
        pairs = zip(*(groups.seeded(s.config, s.job, {"setting": s.name}, count, WHAT) for s in sides), strict=True)
        members = [evolve(m, name=f"{m.chosen['setting'].lower()}-{m.name}") for pair in pairs for m in pair]
        plan = {
            "settings": {s.name: s.learned for s in sides},
            "facts": {s.name: s.facts for s in sides},
            "count": count,
        }
        folders.write(seal, {FILE: json.dumps(plan, indent=1).encode()})
        for s in sides:
            shown = {name: _word(s.learned[name]) for name in differ if name in s.learned}
            say.print(f"{s.name}       {s.config.source}, {s.job.model}: {words(shown)}")
        base, split = first.config.run.seed, first.config.run.split_seed
        say.print(f"seeds   {base} to {base + count - 1} in both, all on the split of seed {split}")
        for s in sides:
            if s.config.run.patience:
                say.print(f"epochs  {s.name}: of the best one, until none was better for {s.config.run.patience}")
        found = _trained(seal, members, first.metric, alone, say)
        return _finish(seal, plan, members, found, sides)


def _side(
    name: str, config: TrainConfig, how: Mapping[str, Any], metric: str | None, other: Side | None = None
) -> Side:
    """A setting with its job; the `other` one's data are shared if they are the same."""
    groups.check(evolve(config, run=evolve(config.run, patience=None)), WHAT)
    split = config.run.splits_by
    alike = other is not None and (other.config.data, other.config.run.split_seed) == (config.data, split)
    config, data = settled(config, other.data if other is not None and alike else None)
    config = evolve(config, run=evolve(config.run, split_seed=split, **how))
    data = prepared(config) if data is None and config.pipeline.name is None else data
    job, state = begin(config, data)
    if metric is not None:
        goal.check_best(metric := result(metric), job, state, "--metric")
    metric = metric or results.best_metric(job, config, state) or "loss"
    if job.prepared is not None:
        config = evolve(config, run=evolve(config.run, best=metric))
    return Side(name, config, job, data, metric, record.facts(job, state))


def _differing(a: Side, b: Side) -> list[str]:
    """Names of the settings in which A and B differ. Raises ConfigError if they differ in none, or in the seeds."""
    mine, other = a.learned, b.learned
    differ = [name for name in {**mine, **other} if mine.get(name) != other.get(name)]
    seeds = [name for name in ("seed", "split_seed") if name in differ]
    if len(differ) == len(seeds):
        but = ", but for the seed" if seeds else ""
        raise refusal(f"A and B are the same settings{but}; change one, such as by --set lr=0.02")
    if unseen := [name for name in ("threshold", "calibrate") if name in differ]:
        raise refusal(f"{flag(unseen[0])} changes no metric of a comparison; give it to both, or leave it out")
    for name in seeds:
        raise refusal(
            f"{flag(name)} is {mine[name]} in A and {other[name]} in B; to pair them, add --set {name}={mine[name]}"
        )
    return differ


def _word(value: Any) -> Any:
    return "default" if value is None else value


def _check_comparable(a: Side, b: Side, differ: Sequence[str]) -> None:
    """Raise ConfigError if no metric compares A and B."""
    tasks = [s.job.prepared.task if s.job.prepared is not None else "a pipeline of your own" for s in (a, b)]
    if tasks[0] != tasks[1]:
        raise refusal(f"A is {tasks[0]}, and B is {tasks[1]}; compare settings of one task, on the same data")
    if _held_out(a.job) != _held_out(b.job):
        data = [name for f in fields(type(a.config.data)) if (name := flag_name("data", f.name)) in differ]
        add = " ".join(quote(f"--set={name}={a.learned[name]}") for name in data)
        raise refusal(f"A and B hold out different samples; {f'add {add}' if add else 'give both the same data'}")
    if a.metric != b.metric:
        raise refusal(f"the best epoch of A is by {a.metric}, and of B by {b.metric}; add --metric {quote(a.metric)}")
    if a.metric.rpartition(".")[2] == "loss" and a.config.loss != b.config.loss:
        raise refusal("the losses of A and B are different ones; choose another --metric, such as accuracy")


def _held_out(job: Job) -> str:
    """A checksum of the held-out targets."""
    return digest({k: t for k, t in tensors(job.held_out).items() if k in ("length", "targets")})


@contextmanager
def _folder(config: TrainConfig, out: str | None, accept: bool) -> Iterator[tuple[Seal, dict[str, Any]]]:
    """The folder of a comparison, and the plan in it."""
    if out is None or not os.path.lexists(Path(out, FILE)):
        with folders.new(config, f"compare-{config.title}") as seal:
            yield seal, {}
        return
    if accept:
        folders.accepted(Path(out))
    with folders.gone_on(Path(out)) as seal:
        yield seal, settings.document(Path(out, FILE))


def _done(folder: Path, plan: Mapping[str, Any], sides: Sequence[Side]) -> int:
    """The seeds of an earlier comparison. Raises ConfigError if its settings or its data have changed."""
    try:
        earlier = [(plan["settings"][s.name], plan["facts"][s.name]) for s in sides if plan]
        count = int(plan["count"]) if plan else 0
    except (TypeError, KeyError, ValueError):
        raise refusal(f"{folder / FILE} is no comparison; choose another --out") from None
    for side, (old, facts) in zip(sides, earlier, strict=bool(plan)):
        now = side.learned
        for name in [name for name in {**old, **now} if old.get(name) != now.get(name)]:
            was = f"{flag(name)} of {side.name} is {_word(now.get(name))}, and was {_word(old.get(name))} in {folder}"
            raise refusal(f"{was}; choose another --out")
        for difference in record.differences(facts, side.facts):
            warn(f"{difference}: its last bits may differ")
    return count


def _trained(seal: Seal, members: Sequence[Member], metric: str, alone: int, say: Console) -> Results:
    """The epochs of all runs; unfinished ones are trained first. Exits at a signal."""
    over = [m for m in members if _is_done(seal.folder / MEMBERS / m.name / STATUS)]
    found = {m.name: rows_of(seal.folder, m, m.config.run.epochs) for m in over}
    if over:
        say.print(f"done    {len(over)} of {len(members)} runs")
    caught: list[int] = []
    grouped = groups.grouped([m for m in members if m not in over])
    with interrupts(caught), live.shown(say, [AXIS], members, found, metric) as show:
        for i, group in enumerate(grouped):
            config, job = group[0].config, group[0].job
            width = groups.even(len(group), groups.width(group))
            whose = {m.chosen["setting"] for m in group}
            shared = "" if gathers(job.stages) else ", in one order of batches"
            say.print(f"runs    {len(group)} of {' and '.join(sorted(whose))} as one program, {width} at once{shared}")
            trainer = Trainer(config, seal, say, caught, alone, [])
            name = f"{i}-{group[0].name}-{len(group)}-{width}"  # a chunk is that of an earlier call, or a new one
            try:
                for chunk in groups.chunks(name, job, group, width, (0, config.run.epochs), members[0].config.run.seed):
                    if not caught and trainer.train(chunk, partial(show, chunk)):
                        found |= {m.name: rows_of(seal.folder, m, chunk.end) for m in chunk.members}
            except StageError as e:  # such as a model that only the tape differentiates
                say.print(f"runs    one by one: {first_line(e)}")
                for m in group:
                    if not caught and _train_alone(m, seal.folder / MEMBERS / m.name, caught):
                        found[m.name] = rows_of(seal.folder, m, config.run.epochs)
                        say.print(f"trained {m.chosen['setting']} with seed {m.config.run.seed}")
    if caught:
        done = f"stopped by a signal, with {len(found)} of {len(members)} runs"
        warn(f"{done}; go on with the same command and --out {seal.folder}")
        sys.exit(128 + caught[0])
    return found


def _is_done(status: Path) -> bool:
    return os.path.lexists(status) and settings.document(status).get("state") == "done"


def _train_alone(member: Member, folder: Path, caught: list[int]) -> bool:
    """Train a member as `pipe train` does, or go on with it; False if a signal was caught before the end."""
    try:
        with redirect_stdout(StringIO()):
            if os.path.lexists(folder / settings.CONFIG):
                resuming.resume(folder, *resuming.resumed(folder), quiet=True)
            else:
                run = evolve(member.config.run, out=str(folder), patience=None)  # _end looks after it
                train(evolve(member.config, run=run), quiet=True)
    except SystemExit as e:
        caught.append(int(e.code or 0) - 128)
    return not caught


def _end(rows: Sequence[Row], metric: str, patience: int | None) -> Row:
    """The epoch that `pipe train` would keep the weights of: the last, or the best one until the patience ends."""
    if patience is None:
        return rows[-1]
    key = ranking.ranking(metric, rows[:1])
    best, least, since = rows[0], math.inf, 0
    for i, row in enumerate(rows, 1):
        best = row if key(row) <= key(best) else best
        if key(row)[0] < least:
            least, since = key(row)[0], i
        if i - since >= patience:
            break
    return best


def _finish(
    seal: Seal, plan: Mapping[str, Any], members: Sequence[Member], found: Results, sides: tuple[Side, Side]
) -> dict[str, Any]:
    """Write, print and return the result."""
    metric, key, say = sides[0].metric, f"validate/{sides[0].metric}", plain(False)
    ends: dict[str, Any] = {m.name: _end(found[m.name], metric, m.config.run.patience) for m in members}
    found = {name: [*rows[:-1], {**ends[name], "epoch": rows[-1]["epoch"]}] for name, rows in found.items()}
    for lost in [m for m in members if None in (ends[m.name].get(key), ends[m.name].get("train/loss"))]:
        whose = f"{lost.chosen['setting']} with seed {lost.config.run.seed}"
        raise ConfigError(f"the run of {whose} did not end with a finite {metric} and loss; try a lower learning rate")
    a, b = ([ends[m.name][key] for m in members if m.chosen["setting"] == s.name] for s in sides)
    better = ranking.direction_of(metric, found[members[0].name][:1])
    test = paired([y - x for x, y in zip(a, b, strict=True)])
    values = {"seeds": [m.config.run.seed for m in members[::2]], "metric": metric, "better": better, "A": a, "B": b}
    whole = {**plan, "result": {**values, **asdict(test)}}
    folders.write(seal, {FILE: json.dumps(whole, indent=1).encode()})
    folders.replace(seal.folder / PICTURE, plot.svg(picture(a, b, test, metric)).encode())
    say.print(table([AXIS.name], [(m.chosen, found[m.name]) for m in members], metric))
    for line in sentences(test, metric, better):
        say.print(line)
    say.print(f"folder  {seal.folder} ({FILE}, {PICTURE}; for more seeds: --seeds {2 * len(a)} --out {seal.folder})")
    return {"folder": str(seal.folder), **whole}
