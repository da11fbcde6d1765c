"""`pipe sweep`: many runs at once, in groups that share a program, and each group in chunks of members."""

from __future__ import annotations

import csv
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from attrs import asdict, evolve, frozen
from rich.console import Console
from rich.live import Live
from rich.table import Table

from cli import config as settings
from cli import folder as folders
from cli import landscape, record
from cli.axes import Axis, combinations
from cli.build import MANY, Job, begin, job, prepared
from cli.config import TrainConfig
from cli.progress import interrupts, plain, warn
from cli.recipes.setting import flag, refusal
from cli.train import compiled
from pipeline import Sweep, checkpoint, fit, log, plot
from pipeline.checkpoint import Saver
from pipeline.errors import ConfigError
from pipeline.hyper import hyper_numbers
from pipeline.members import Order, gathers
from pipeline.state import format_metric, is_better

NUMBERS = ("lr", "momentum", "weight_decay", "clip", "ema")
"""Settings that a step reads from State: those of one program may differ in them."""
WITHOUT = ("ensemble", "folds", "patience", "minutes", "save_steps", "tensorboard")
"""Settings of one run that a sweep does not have."""
SHOWN = 8
"""Rows of the table of the best settings, while it goes."""
PLAN, MEMBERS, CHUNKS, CSV, PICTURE, BEST, DONE = (
    "sweep.json", "members", "chunks", "sweep.csv", "sweep.svg", "best", "done",
)  # fmt: skip


@frozen(eq=False)
class Member:
    """A run of the sweep."""

    name: str
    config: TrainConfig
    chosen: Mapping[str, Any]
    """Its values of the axes."""
    made: Job
    hyper: Mapping[str, float]


@frozen(eq=False)
class Chunk:
    """Members that are trained together; the last ones may stand there twice, to be as many as in others."""

    name: str
    members: tuple[Member, ...]
    runs: Sweep
    made: Job


def run(base: TrainConfig, axes: Sequence[Axis], *, seeds: int, draws: int | None, width: int, quiet: bool) -> None:
    """Train all combinations of the axes, with each of the seeds."""
    if draws is not None and not axes:
        raise refusal("--random has nothing to draw: give a setting several values, such as --lr 0.001..1:log")
    rows = combinations(axes, draws, base.run.seed)
    with folders.new(base, f"sweep-{base.title}") as folder:
        plan = {"axes": [asdict(a) for a in axes], "settings": rows, "seeds": seeds, "width": width}
        folders.write_config(folder, base, {})
        folders.replace(folder / PLAN, json.dumps(plan, indent=1).encode())
        _sweep(folder, base, axes, rows, seeds, width, quiet)


def resume(folder: Path, *, quiet: bool) -> None:
    """Go on with a sweep: members that are done stay as they are."""
    settings.check_run(folder)
    layer = settings.read(folder / settings.CONFIG)
    try:
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        axes = [Axis(**{**a, "values": tuple(a["values"])}) for a in plan["axes"]]
        rows, seeds, width = plan["settings"], int(plan["seeds"]), int(plan["width"])
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise refusal(f"{folder} holds no sweep: can't read {PLAN}: {getattr(e, 'strerror', None) or e}") from None
    with folders.locked(folder):
        _sweep(folder, settings.make(layer), axes, rows, seeds, width, quiet)


def _sweep(
    folder: Path, base: TrainConfig, axes: Sequence[Axis], rows: Sequence[Mapping[str, Any]], seeds: int, width: int,
    quiet: bool,
) -> None:  # fmt: skip
    say = plain(quiet)
    members = _members(base, rows, seeds)
    groups = _grouped(members)
    chunks = [chunk for i, group in enumerate(groups) for chunk in _chunks(i, group, base, width)]
    cores = torch.get_num_threads()
    first, _ = begin(members[0].config)
    own = torch.get_num_threads()
    torch.set_num_threads(base.run.threads or (cores if len(members) >= MANY else own))
    metric = base.run.best or first.best or "loss"
    say.print(f"data    {base.source}: {first.data}")
    say.print(
        f"sweep   {len(members)} runs of {first.model}: {len(rows)} settings x {seeds} seeds, in {len(groups)} "
        f"group{'s' * (len(groups) > 1)}, {chunks[0].runs.members} at once"
    )
    caught: list[int] = []
    results: dict[str, list[log.Row]] = {}
    programs: list[Any] = []
    began = time.perf_counter()
    with interrupts(caught), _table(say, axes, members, results, metric) as show:
        for chunk in chunks:
            where = folder / CHUNKS / chunk.name

            def shown(rows: Sequence[log.Row], chunk: Chunk = chunk) -> None:
                show(chunk, rows)

            if not (where / DONE).exists():
                _train(chunk, base, where, say, programs, caught, shown)
                if caught:
                    break
                _write_members(chunk, where, folder, own)
                folders.replace(where / DONE, b"")
            for j, member in enumerate(chunk.members):
                results[member.name] = [_row(r, j) for r in log.read(where / folders.METRICS)]
    if caught:
        warn(f"stopped by a signal; go on with: pipe sweep --resume {folder}")
        sys.exit(128 + caught[0])
    seconds = time.perf_counter() - began
    _end(folder, axes, members, results, metric)
    result = plain(False)
    result.print(landscape.table([a.name for a in axes], [(m.chosen, results[m.name]) for m in members], metric))
    best = _best(members, results, metric)
    value = format_metric(metric, results[best.name][-1][f"validate/{metric}"])
    result.print(f"best    {value}: {landscape.words(best.chosen) or 'the defaults'}, seed {best.config.run.seed}")
    result.print(f"time    {seconds:.1f} s for {len(members)} runs")
    result.print(
        f"sweep   {folder} ({CSV}, {PICTURE}; go on with the best: pipe train --resume {folder / BEST} --epochs N)"
    )


def _members(base: TrainConfig, rows: Sequence[Mapping[str, Any]], seeds: int) -> list[Member]:
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
        load = made.pipe.load
        if made.held_out is None or load is None:
            raise refusal("a sweep needs held-out data, on which its runs are compared")
        steps = None if load.batches is None else load.batches * config.run.epochs
        hyper = hyper_numbers(made.pipe.graph, steps, load.batches)
        split = config.run.seed if config.run.split_seed is None else config.run.split_seed
        for k in range(seeds):
            own = evolve(config.run, seed=config.run.seed + k, split_seed=split, out=None)
            found.append(Member(f"{len(found):03d}", evolve(config, run=own), row, made, hyper))
    return found


def _grouped(members: Sequence[Member]) -> list[list[Member]]:
    """Members whose steps differ in numbers alone."""
    groups: dict[str, list[Member]] = {}
    for m in members:
        other = {k: v for k, v in m.config.flat.items() if k not in (*NUMBERS, "seed")}
        names = [s.name for s in m.made.pipe.stages]
        groups.setdefault(repr((sorted(other.items(), key=str), names, sorted(m.hyper))), []).append(m)
    return list(groups.values())


def _chunks(i: int, group: Sequence[Member], base: TrainConfig, width: int) -> Iterator[Chunk]:
    """A group in parts of one width, so that they share a program."""
    made, count = group[0].made, -(-len(group) // width)
    size = -(-len(group) // count)
    for k in range(count):
        members = tuple(group[k * size : (k + 1) * size])
        rows = [{"seed": m.config.run.seed, **m.hyper} for m in (*members, *members[-1:] * (size - len(members)))]
        order: Order = "own" if gathers(made.pipe) else "shared"
        yield Chunk(f"{i}-{k}", members, Sweep(made.pipe, rows, order, base.run.seed), made)


def _train(
    chunk: Chunk, base: TrainConfig, where: Path, say: Console, programs: list[Any], caught: list[int],
    show: Callable[[Sequence[log.Row]], None],
) -> None:  # fmt: skip
    """Train the members of a chunk, from their last checkpoint on, until all epochs are done or a signal is caught."""
    where.mkdir(parents=True, exist_ok=True)
    runs, made, run = chunk.runs, chunk.made, base.run
    epochs = chunk.members[0].config.run.epochs
    found = checkpoint.newest(where / folders.CHECKPOINTS)
    for fault in found.faults:
        warn(f"{fault}; it is passed over")
    saved, load = found.saved, made.pipe.load
    assert load is not None
    steps = None if load.batches is None else load.batches * epochs
    state = runs.init(steps=steps) if saved is None else saved.restore(runs)
    program: Any = False
    if run.compile:
        program = next((p for p in programs if runs.alike(p.pipe)), None)
        if program is None:
            program = compiled(runs, made.held_out, base, state, say, False)
            programs[:] = [program]  # those of groups before are done with
    with (
        folders.Log(where, saved.step if saved else 0) as lines,
        Saver(where / folders.CHECKPOINTS, keep=1, minutes=run.save_minutes, saved=saved) as saver,
    ):
        rows = list(log.read(lines.path))
        for r in fit(
            runs, epochs=epochs, validate=made.held_out, state=state, compile=program, interval=0.1,
            start=saved.start if saved else (0, 0),
        ):  # fmt: skip
            if r.complete:
                lines.write(r)
                rows.append(log.row(r))
                show(rows)
            saver.offer(r, now=bool(caught) or (r.complete and r.epoch == epochs))
            if caught:
                break


def _row(row: Mapping[str, Any], j: int) -> log.Row:
    """A member's own numbers of a chunk's row."""
    return {k: v[j] if isinstance(v, list) else v for k, v in row.items()}


def _write_members(chunk: Chunk, where: Path, folder: Path, threads: int) -> None:
    """Each member as the run that it is, which takes so many threads alone."""
    saved = checkpoint.newest(where / folders.CHECKPOINTS).saved
    if saved is None:
        raise ConfigError(f"{where} has lost its checkpoints; remove the folder, and resume the sweep")
    runs, rows = chunk.runs, log.read(where / folders.METRICS)
    state, made = saved.restore(runs), chunk.made
    facts: dict[str, Any] | None = None
    for j, m in enumerate(chunk.members):
        own, path = runs.member(state, j), folder / MEMBERS / m.name
        path.mkdir(parents=True, exist_ok=True)
        facts = facts or record.facts(made, own)  # the data are hashed once
        numbers = {"threads": threads, "hyper": {name: value.item() for name, value in own.hyper.items()}}
        folders.write_config(path, m.config, {**facts, "facts": {**facts["facts"], **numbers}})
        folders.write_data(path, made)
        content = "".join(json.dumps(_row(r, j)) + "\n" for r in rows)
        folders.replace(path / folders.METRICS, content.encode())
        with Saver(path / folders.CHECKPOINTS) as saver:
            saver.save(own, saved.epoch, saved.batch)
        about = {"weights": "last", "epoch": saved.epoch, "step": int(own.step)}
        folders.write_weights(path / folders.WEIGHTS, made.pipe.weights(own), about)
        folders.write_status(path, "done", why="")


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
        chosen = [m.chosen[a.name] for a in axes]
        writer.writerow([f"{MEMBERS}/{m.name}", *chosen, m.config.run.seed, end["epoch"], *(end.get(n) for n in names)])
    folders.replace(folder / CSV, text.getvalue().encode())
    if axes:
        points = [(m.chosen, results[m.name]) for m in members]
        folders.replace(folder / PICTURE, plot.svg(landscape.picture([a.name for a in axes], points, metric)).encode())
    best = Path(MEMBERS, _best(members, results, metric).name)
    with suppress(FileNotFoundError):
        (folder / BEST).unlink()
    os.symlink(best, folder / BEST)


def _best(members: Sequence[Member], results: Mapping[str, Sequence[log.Row]], metric: str) -> Member:
    """The member with the best last epoch."""
    found, best = members[0], None
    for m in members:
        value = results[m.name][-1].get(f"validate/{metric}")
        if value is not None and (best is None or is_better(metric, value, best)):
            found, best = m, value
    if best is None:
        raise ConfigError(f"no run of the sweep ended with a finite {metric}; try lower learning rates")
    return found


@contextmanager
def _table(
    say: Console, axes: Sequence[Axis], members: Sequence[Member], results: Mapping[str, list[log.Row]], metric: str
) -> Iterator[Callable[[Chunk, Sequence[log.Row]], None]]:
    """On a terminal, the best settings so far while they are trained; in a pipe, a line for each chunk that is done."""
    names = [a.name for a in axes]

    def seen(chunk: Chunk, rows: Sequence[log.Row]) -> Table:
        now = {m.name: [_row(r, j) for r in rows[-1:]] for j, m in enumerate(chunk.members)}
        known = [(m.chosen, {**results, **now}[m.name]) for m in members if m.name in {**results, **now}]
        epochs = chunk.members[0].config.run.epochs
        title = f"epoch {rows[-1]['epoch']} of {epochs}, {len(results)} of {len(members)} runs done"
        return landscape.table(names, known, metric, most=SHOWN, title=title)

    if not say.is_terminal or say.quiet:

        def line(chunk: Chunk, rows: Sequence[log.Row]) -> None:
            if rows[-1]["epoch"] == chunk.members[0].config.run.epochs:
                values = [v for v in rows[-1][f"validate/{metric}"] if v is not None]
                best = max(values, key=lambda v: -v if not is_better(metric, 1, 0) else v) if values else float("nan")
                say.print(f"trained {len(chunk.members)} runs, the best with {format_metric(metric, best)}")

        yield line
        return
    with Live(console=say, transient=True, refresh_per_second=4) as live:
        yield lambda chunk, rows: live.update(seen(chunk, rows))
