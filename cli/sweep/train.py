"""Chunk: members of a sweep trained together, and each of them left as the run that it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from cli import config as settings
from cli import folder as folders
from cli import record
from cli import seal as seals
from cli.build import steps
from cli.commands.train import compiled
from cli.config import TrainConfig
from cli.progress import warn
from cli.seal import CHECKPOINTS, METRICS, STATUS, Seal
from cli.sweep.groups import Chunk, Member
from pipeline import State, fit, log
from pipeline.checkpoint import Saved, Saver
from pipeline.compile import Compiled
from pipeline.errors import ConfigError

MEMBERS, CHUNKS, DONE = "members", "chunks", "done"


def trained(
    chunk: Chunk, base: TrainConfig, sweep: Seal, say: Console, programs: list[Compiled], caught: list[int],
    show: Callable[[Sequence[log.Row]], None], threads: int,
) -> bool:  # fmt: skip
    """Train the members of a chunk, from their last checkpoint on; False where a signal was caught before the end.

    `threads` are those that each takes as a run alone.
    """
    where = folders.inside(sweep, CHUNKS, chunk.name)
    if (where / DONE).exists():
        return True
    seal = seals.read(where) or Seal(where)
    runs, made, run = chunk.runs, chunk.made, base.run
    found = folders.newest(seal)
    for fault in found.faults:
        warn(f"{fault}; it is passed over")
    saved = found.saved
    state = _begun(chunk, sweep) if saved is None else saved.restore(runs)
    program: Any = False
    if run.compile:
        program = next((p for p in programs if runs.program.same(p.program)), None)
        if program is None:
            program = compiled(runs, made.validation, base, state, say, False)
            programs.append(program)
    with (
        folders.Log(seal, int(state.step)) as lines,
        Saver(folders.inside(seal, CHECKPOINTS), keep=1, minutes=run.save_minutes, saved=saved, run=seal.run,
              wrote=seal.wrote, beside=[lines.path]) as saver,
    ):  # fmt: skip
        for r in fit(
            runs, epochs=chunk.end, validate=made.validation, state=state, compile=program, interval=0.1,
            start=saved.start if saved else (chunk.begin, 0),
        ):  # fmt: skip
            if r.complete:
                lines.write(r)
                show(lines.rows)
            saver.offer(r, now=bool(caught) or (r.complete and r.epoch == chunk.end))
            if caught:
                return False
    _write_members(chunk, seal, lines.rows, sweep, threads)
    folders.replace(where / DONE, b"")
    return True


def _begun(chunk: Chunk, sweep: Seal) -> State:
    """The State of members that begin, or that come from the chunks before."""
    runs = chunk.runs
    if not chunk.begin:
        return runs.init(steps=steps(chunk.made.stages.load, chunk.members[0].config))
    each = [_saved(_member(sweep, m)).restore(chunk.made.pipe) for m in chunk.members]
    return runs.stacked([*each, *each[-1:] * (runs.members - len(each))])


def _member(sweep: Seal, member: Member) -> Seal:
    path = folders.inside(sweep, MEMBERS, member.name)
    return seals.read(path) or Seal(path)


def _saved(seal: Seal) -> Saved:
    found = folders.newest(seal)
    if found.saved is None or found.faults:
        raise ConfigError(f"{(*found.faults, f'{seal.folder} has lost its checkpoints')[0]}; start a new sweep")
    return found.saved


def rows_of(folder: Path, member: Member, end: int) -> list[log.Row]:
    """The epochs of a member, up to one: where a sweep goes on, later ones may have been done already. Raises
    ConfigError where they are not as they were written: by them, members are compared."""
    path = folder / MEMBERS / member.name
    rows, seal = log.read(path / METRICS), seals.read(path)
    fault = None if seal is None else seals.broken(seal, rows)
    rows = [r for r in rows if r["epoch"] <= end]
    if fault is None and (not rows or rows[-1]["epoch"] != end):
        fault = f"{path / METRICS} has no whole line for epoch {end}"
    if fault is not None:
        raise ConfigError(f"{fault}; {seals.ACCEPT}, or start a new sweep")
    return rows


def row(of: Mapping[str, Any], j: int) -> log.Row:
    """A member's own numbers of a chunk's row."""
    return {k: v[j] if isinstance(v, list) else v for k, v in of.items()}


def _write_members(chunk: Chunk, seal: Seal, rows: Sequence[log.Row], sweep: Seal, threads: int) -> None:
    """Each member as the run that it is."""
    saved = _saved(seal)
    runs, made = chunk.runs, chunk.made
    state = saved.restore(runs)
    facts: dict[str, Any] | None = None
    for j, m in enumerate(chunk.members):
        own, member = runs.member(state, j), _member(sweep, m)
        facts = facts or record.facts(made, own)  # the data are hashed once
        numbers = {"threads": threads, "hyper": {name: value.item() for name, value in own.hyper.items()}}
        told = ("better",) if chunk.begin else ()  # in the first line already
        mine = ({k: v for k, v in row(r, j).items() if k not in told} for r in rows)
        before = rows_of(sweep.folder, m, chunk.begin) if chunk.begin else []
        own_rows = seals.chained((*before, *mine), member.run)
        with Saver(folders.inside(member, CHECKPOINTS), run=member.run, wrote=member.wrote) as saver:
            saver.save(own, saved.epoch, saved.batch)
        about = {"weights": "last", "epoch": saved.epoch, "step": int(own.step)}
        whole = saved.epoch == m.config.run.epochs
        why = "" if whole else f"after epoch {saved.epoch} of {m.config.run.epochs}, by --halving"
        table = {**facts, "facts": {**facts["facts"], **numbers}}
        written = {
            settings.CONFIG: folders.config_text(m.config, table, member),
            **folders.data_text(made),
            METRICS: seals.lines(own_rows),
            folders.WEIGHTS: folders.weights_file(made.pipe.weights(own), about),
            STATUS: folders.status_text("done" if whole else "stopped", why=why),
        }
        folders.write(member, written, own_rows[-1][seals.CHAIN])
