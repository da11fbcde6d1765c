"""Train a chunk of members together, and write each as a run of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import define
from rich.console import Console

from cli import config as settings
from cli import decision, record, results
from cli import folder as folders
from cli import seal as seals
from cli.build import steps
from cli.compilation import compiled
from cli.config import TrainConfig
from cli.progress import warn
from cli.seal import CHECKPOINTS, METRICS, STATUS, Seal
from cli.sweep.groups import Chunk, Member
from pipeline import State, fit, log
from pipeline.checkpoint import Best, Saved, Saver
from pipeline.compile import Compiled
from pipeline.errors import ConfigError

MEMBERS, CHUNKS, DONE = "members", "chunks", "done"


@define(eq=False)
class Trainer:
    """Trains the chunks of a sweep."""

    base: TrainConfig
    sweep: Seal
    say: Console
    caught: list[int]
    """Signals."""
    threads: int
    """Threads of each member as a run alone, recorded in its config."""
    programs: list[Compiled]

    def train(self, chunk: Chunk, show: Callable[[Sequence[log.Row]], None]) -> bool:
        """Train a chunk from its last checkpoint on; False if a signal was caught before the end."""
        where = folders.inside(self.sweep, CHUNKS, chunk.name)
        if (where / DONE).exists():
            return True
        seal = seals.read(where) or Seal(where)
        newest = folders.newest(seal)
        for fault in newest.faults:
            warn(f"{fault}; using an older one")
        saved, runs, run = newest.saved, chunk.runs, self.base.run
        state = self._first(chunk) if saved is None else saved.restore(runs)
        program = self._program(chunk, state) if run.compile else False
        with (
            folders.Log(seal, int(state.step)) as lines,
            Saver(folders.inside(seal, CHECKPOINTS), keep=1, minutes=run.save_minutes, saved=saved, run=seal.run,
                  wrote=seal.wrote, beside=[lines.path]) as saver,
        ):  # fmt: skip
            for r in fit(
                runs, epochs=chunk.end, validate=chunk.job.validation, state=state, compile=program, interval=0.1,
                start=saved.start if saved else (chunk.begin, 0),
            ):  # fmt: skip
                if r.complete:
                    lines.write(r)
                    show(lines.rows)
                saver.offer(r, now=bool(self.caught) or (r.complete and r.epoch == chunk.end))
                if self.caught:
                    return False
        self._write_members(chunk, seal, lines.rows)
        folders.replace(where / DONE, b"")
        return True

    def _program(self, chunk: Chunk, state: State) -> Compiled:
        """The compiled step of a chunk; chunks with the same graph share it."""
        for program in self.programs:
            if chunk.runs.program.same(program.program):
                return program
        program = compiled(chunk.runs, chunk.job.validation, self.base, state, self.say)
        self.programs.append(program)
        return program

    def _first(self, chunk: Chunk) -> State:
        """The State of new members, or of members that come from earlier chunks."""
        runs = chunk.runs
        if not chunk.begin:
            return runs.init(steps=steps(chunk.job.stages.load, chunk.members[0].config))
        states = [_saved(self._seal(m)).restore(chunk.job.pipe) for m in chunk.members]
        return runs.stacked([*states, *states[-1:] * (runs.members - len(states))])

    def _seal(self, member: Member) -> Seal:
        path = folders.inside(self.sweep, MEMBERS, member.name)
        return seals.read(path) or Seal(path)

    def _write_members(self, chunk: Chunk, seal: Seal, rows: Sequence[log.Row]) -> None:
        saved = _saved(seal)
        state = saved.restore(chunk.runs)
        facts: dict[str, Any] = {}
        for j, member in enumerate(chunk.members):
            alone = chunk.runs.member(state, j)
            facts = facts or record.facts(chunk.job, alone)  # hashes the data, once
            self._write_member(chunk, member, alone, saved, [row(r, j) for r in rows], facts)

    def _write_member(
        self, chunk: Chunk, member: Member, state: State, saved: Saved, rows: Sequence[log.Row], facts: dict[str, Any]
    ) -> None:
        """Write the folder of a member, as `pipe train` does."""
        seal = self._seal(member)
        earlier = rows_of(self.sweep.folder, member, chunk.begin) if chunk.begin else []
        if earlier:  # only the first line of a run tells which values are better
            rows = [{k: v for k, v in r.items() if k != "better"} for r in rows]
        chained = seals.chained((*earlier, *rows), seal.run)
        metric = results.best_metric(chunk.job, member.config, state)
        with Saver(folders.inside(seal, CHECKPOINTS), run=seal.run, wrote=seal.wrote) as saver:
            saver.best = best = _last(metric, rows[-1], int(state.step))
            saver.save(state, saved.epoch, saved.batch)
        states = results.states(chunk.job, state, seal, best)
        decisions = {name: decision.fitted(member.config, chunk.job, own) for name, own in states.items()}
        made = decisions != dict.fromkeys(decisions, decision.PLAIN)
        epochs = member.config.run.epochs
        done = saved.epoch == epochs
        why = "" if done else f"after epoch {saved.epoch} of {epochs}, by --halving"
        numbers = {"threads": self.threads, "hyper": {name: value.item() for name, value in state.hyper.items()}}
        table = {**facts, "facts": {**facts["facts"], **numbers}}
        contents = {
            settings.CONFIG: folders.config_text(member.config, table, seal),
            **folders.data_text(chunk.job),
            METRICS: seals.lines(chained),
            **results.weight_files(chunk.job, state, seal, best, None, saved),
            **({decision.FILE: decision.text(decisions)} if made else {}),
            STATUS: folders.status_text("done" if done else "stopped", why=why),
        }
        folders.write(seal, contents, chained[-1][seals.CHAIN])


def _last(metric: str | None, end: log.Row, step: int) -> Best | None:
    """The last epoch, of which alone the weights are kept, in the place of the best one. A member that was not finite
    has stopped at an earlier step."""
    value = end.get(f"validate/{metric}")
    if metric is None or value is None:
        return None
    return Best(metric, value, end["epoch"], step, end["epoch"], end.get("validate/loss"))


def _saved(seal: Seal) -> Saved:
    newest = folders.newest(seal)
    if newest.saved is None or newest.faults:
        raise ConfigError(f"{(*newest.faults, f'{seal.folder} has lost its checkpoints')[0]}; start a new sweep")
    return newest.saved


def rows_of(sweep: Path, member: Member, end: int) -> list[log.Row]:
    """The metrics of a member up to an epoch; a resumed sweep may have later ones already.

    Raises ConfigError if they were changed, because members are compared by them.
    """
    path = sweep / MEMBERS / member.name
    rows, seal = log.read(path / METRICS), seals.read(path)
    fault = None if seal is None else seals.broken(seal, rows)
    rows = [r for r in rows if r["epoch"] <= end]
    if fault is None and (not rows or rows[-1]["epoch"] != end):
        fault = f"{path / METRICS} has no complete line for epoch {end}"
    if fault is not None:
        raise ConfigError(f"{fault}; {seals.ACCEPT}, or start a new sweep")
    return rows


def row(r: Mapping[str, Any], j: int) -> log.Row:
    """The j-th member's numbers of a chunk's row."""
    return {k: v[j] if isinstance(v, list) else v for k, v in r.items()}
