"""Chunk: members of a sweep trained together, and each of them left as the run that it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from cli import better, record
from cli import folder as folders
from cli.build import steps
from cli.config import TrainConfig
from cli.plan import Chunk, Member
from cli.progress import warn
from cli.train import compiled
from pipeline import State, checkpoint, fit, log
from pipeline.checkpoint import Saved, Saver
from pipeline.compile import Compiled
from pipeline.errors import ConfigError

MEMBERS, CHUNKS, DONE = "members", "chunks", "done"


def trained(
    chunk: Chunk, base: TrainConfig, folder: Path, say: Console, programs: list[Compiled], caught: list[int],
    show: Callable[[Sequence[log.Row]], None], threads: int,
) -> bool:  # fmt: skip
    """Train the members of a chunk, from their last checkpoint on; False where a signal was caught before the end.

    `threads` are those that each takes as a run alone.
    """
    where = folder / CHUNKS / chunk.name
    if (where / DONE).exists():
        return True
    where.mkdir(parents=True, exist_ok=True)
    runs, made, run = chunk.runs, chunk.made, base.run
    found = checkpoint.newest(where / folders.CHECKPOINTS)
    for fault in found.faults:
        warn(f"{fault}; it is passed over")
    saved = found.saved
    state = _begun(chunk, folder) if saved is None else saved.restore(runs)
    program: Any = False
    if run.compile:
        program = next((p for p in programs if runs.alike(p.pipe)), None)
        if program is None:
            program = compiled(runs, made.validation, base, state, say, False)
            programs.append(program)
    with (
        folders.Log(where, int(state.step)) as lines,
        Saver(where / folders.CHECKPOINTS, keep=1, minutes=run.save_minutes, saved=saved) as saver,
    ):
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
    _write_members(chunk, where, folder, threads)
    folders.replace(where / DONE, b"")
    return True


def _begun(chunk: Chunk, folder: Path) -> State:
    """The State of members that begin, or that come from the chunks before."""
    runs = chunk.runs
    if not chunk.begin:
        return runs.init(steps=steps(chunk.made.pipe.load, chunk.members[0].config))
    each = [_saved(folder / MEMBERS / m.name).restore(chunk.made.pipe) for m in chunk.members]
    return runs.stacked([*each, *each[-1:] * (runs.members - len(each))])


def _saved(where: Path) -> Saved:
    saved = checkpoint.newest(where / folders.CHECKPOINTS).saved
    if saved is None:
        raise ConfigError(f"{where} has lost its checkpoints; start a new sweep")
    return saved


def rows_of(folder: Path, member: Member, end: int) -> list[log.Row]:
    """The epochs of a member, up to one: where a sweep goes on, later ones may have been done already."""
    rows = [r for r in better.read(folder / MEMBERS / member.name) if r["epoch"] <= end]
    if end and (not rows or rows[-1]["epoch"] != end):
        raise ConfigError(f"{folder / MEMBERS / member.name} has no whole line for epoch {end}; start a new sweep")
    return rows


def row(of: Mapping[str, Any], j: int) -> log.Row:
    """A member's own numbers of a chunk's row."""
    return {k: v[j] if isinstance(v, list) else v for k, v in of.items()}


def _write_members(chunk: Chunk, where: Path, folder: Path, threads: int) -> None:
    """Each member as the run that it is."""
    saved, rows = _saved(where), log.read(where / folders.METRICS)
    runs, made = chunk.runs, chunk.made
    state = saved.restore(runs)
    facts: dict[str, Any] | None = None
    for j, m in enumerate(chunk.members):
        own, path = runs.member(state, j), folder / MEMBERS / m.name
        path.mkdir(parents=True, exist_ok=True)
        facts = facts or record.facts(made, own)  # the data are hashed once
        numbers = {"threads": threads, "hyper": {name: value.item() for name, value in own.hyper.items()}}
        folders.write_config(path, m.config, {**facts, "facts": {**facts["facts"], **numbers}})
        folders.write_data(path, made)
        told = ("better",) if chunk.begin else ()  # in the first line already
        mine = ({k: v for k, v in row(r, j).items() if k not in told} for r in rows)
        own_rows = (*rows_of(folder, m, chunk.begin), *mine)
        content = "".join(json.dumps(r) + "\n" for r in own_rows)
        folders.replace(path / folders.METRICS, content.encode())
        with Saver(path / folders.CHECKPOINTS) as saver:
            saver.save(own, saved.epoch, saved.batch)
        about = {"weights": "last", "epoch": saved.epoch, "step": int(own.step)}
        folders.write_weights(path / folders.WEIGHTS, made.pipe.weights(own), about)
        whole = saved.epoch == m.config.run.epochs
        why = "" if whole else f"after epoch {saved.epoch} of {m.config.run.epochs}, by --halving"
        folders.write_status(path, "done" if whole else "stopped", why=why)
