"""Go on with a run from its newest checkpoint, or verify it by a replay."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import evolve
from rich.console import Console

from cli import config as settings
from cli import folder as folders
from cli import processes, ranking, record, results
from cli.build import Job, begin
from cli.config import TrainConfig
from cli.progress import plain, warn
from cli.recipes.setting import flag, refusal
from cli.seal import CHECKPOINTS, Seal
from cli.training import Training, print_head, train_from
from pipeline import State, checkpoint, fit, testing
from pipeline.checkpoint import Best, Saved
from pipeline.errors import CheckpointError, ConfigError
from pipeline.programs.evaluate import watches

PLACE = ("device", "threads", "compile", "backend", "eager_steps", "precision", "shard", "timeout", "workers")
"""Settings of where and how a step is computed."""


def resumed(folder: Path, *given: Mapping[str, Any], besides: Collection[str] = ()) -> tuple[TrainConfig, TrainConfig]:
    """The settings of a resumed run: the recorded ones, overridden by the layers of `given`. Raises ConfigError for a
    changed fixed setting, except any in `besides`."""
    settings.check_run(folder)
    if os.path.lexists(folder / settings.PLAN):
        raise refusal(
            f"{folder} is a sweep: pipe sweep --resume {folder} goes on with it; or name a run of it, such as "
            f"{folder / 'best'}"
        )
    earlier = settings.read(folder / settings.CONFIG)
    old, new = settings.make(earlier), settings.make(earlier, *given)
    pairs = [(name, before, new.fixed.get(name)) for name, before in old.fixed.items() if name not in besides]
    differ = [(name, before, now) for name, before, now in pairs if before != now]
    clips, momenta = (old.run.clip, new.run.clip), (old.optimizer.own_momentum, new.optimizer.own_momentum)
    for name, (before, now) in (("clip", clips), ("momentum", momenta)):
        if (before == 0) != (now == 0):  # at 0, the stage or its memory is left out
            differ.append((name, before, now))
    schedules = old.schedule.name, new.schedule.name
    if schedules[0] != schedules[1] and "plateau" in schedules:  # it alone has memory
        differ.append(("schedule", *schedules))
    if old.run.ema is None and new.run.ema is not None:
        differ.append(("ema", "none: it averages no weights", new.run.ema))
    for name, before, now in differ:
        raise refusal(f"{flag(name)} {now} would not be the same run, which has {before}; start a new one")
    return old, new


def resume(
    folder: Path, old: TrainConfig, config: TrainConfig, *, verify: bool = False, quiet: bool = False,
    verbose: bool = False,
) -> tuple[Job, State, dict[str, Any]]:  # fmt: skip
    """Resume the run in a folder from its newest good checkpoint, or verify the steps up to it; returns it with its
    last State, and what was verified."""
    with folders.gone_on(folder) as seal:
        table = settings.document(folder / settings.CONFIG)
        initial = config.finetune.intact or not checkpoint.steps(folder / CHECKPOINTS)
        job, state = begin(config, initial=initial)
        saved = _newest(seal)
        before = saved.best if saved is not None else None
        if saved is not None and not verify:
            saved, config = _ranked(saved, config, job, state, seal)
        say = plain(quiet)
        print_head(say, job, state, config, verbose)
        facts = record.facts(job, state)
        for difference in record.differences(table, facts):
            warn(f"{difference}: its last bits may differ from here on")
        processes.note(processes.FOLDER, str(folder))
        past = table["resumed"] if isinstance(table.get("resumed"), list) else []
        if verify:
            if old != config:
                raise ConfigError("--verify replays the run as it was; leave out other settings")
            return job, state, _verify(job, config, seal, state, saved, past, say)
        done = None
        if saved is None:
            say.print("resume  no checkpoint yet, so from the beginning")
        else:
            say.print(f"resume  {saved.path.name}: {_place(job, saved)}")
            state = saved.restore(job.pipe, state.hyper)  # hyperparameters of the config: lr may have changed
            done = why_done(saved, config)
            if done and before is not None and saved.best != before:
                raise ConfigError(f"the run is done, with its best epoch by {before.metric}; {_again(seal, config)}")
        if done:
            say.print(f"done    {done}")
            _keep(seal, table, old, config, done)
        else:
            entry = {"step": saved.step if saved else 0, **facts["versions"], **_changes(old, config)}
            text = folders.config_text(config, {**facts, "resumed": [*past, entry]}, seal)
            folders.write(seal, {settings.CONFIG: text, **folders.data_text(job)})
        return job, train_from(Training(job, config, seal, say, verbose), state, saved, done=bool(done)), {}


def _newest(seal: Seal) -> Saved | None:
    """The newest good checkpoint, as the first process finds it. Warns of damaged newer ones."""
    newest: checkpoint.Found = processes.agreed(folders.newest(seal) if processes.first() else None)
    saved, folder = newest.saved, seal.folder
    if saved is None and checkpoint.steps(folder / CHECKPOINTS):
        raise ConfigError(
            f"no checkpoint in {folder} can be used ({newest.faults[0]}); to begin anew, give another --out"
        )
    for fault in newest.faults:
        warn(f"{fault}; {f'using {saved.path.name} instead' if saved else 'training from the beginning'}")
    return saved


def _ranked(saved: Saved, config: TrainConfig, job: Job, state: State, seal: Seal) -> tuple[Saved, TrainConfig]:
    """The checkpoint with the best epoch so far, and the settings with its metric. Another --best ranks the epochs so
    far anew. Raises ConfigError if the weights of the best of them were not kept."""
    best, metric = saved.best, results.best_metric(job, config, state)
    if best is None or metric in (best.metric, None) or (job.prepared is None and config.run.best is None):
        return saved, config
    if config.run.best is None:  # such as with --threshold, whose runs have another default
        return saved, evolve(config, run=evolve(config.run, best=best.metric))
    assert metric is not None
    rows = [row for row in ranking.read(seal.folder) if row["epoch"] <= saved.epoch]
    if (found := ranking.best_epoch(rows, metric)) is None:
        warn(f"the {saved.epoch} epochs so far were not measured by {metric}: the best one will be a later one")
        return evolve(saved, best=None), config
    epoch, _, value = found
    row = next(row for row in rows if row["epoch"] == epoch)
    since = min(row["epoch"] for row in rows if row.get(f"validate/{metric}") == value)
    try:
        checkpoint.at(seal.folder / CHECKPOINTS, row["step"], seal.fault)
    except CheckpointError:
        raise ConfigError(
            f"epoch {epoch} is the best so far by {metric}, and its weights were not kept; {_again(seal, config)}"
        ) from None
    return evolve(saved, best=Best(metric, value, epoch, row["step"], since, row.get("validate/loss"))), config


def _again(seal: Seal, config: TrainConfig) -> str:
    return f"to train it again: {shlex.join(['pipe', 'train', str(seal.folder), '--best', str(config.run.best)])}"


def _keep(seal: Seal, table: Mapping[str, Any], old: TrainConfig, new: TrainConfig, done: str) -> None:
    """Record the settings of a finished run that need no training."""
    if (config := kept(old, new, done)) != old:
        records = {name: table[name] for name in settings.RECORDS if name in table}
        folders.write(seal, {settings.CONFIG: folders.config_text(config, records, seal)})


def kept(old: TrainConfig, new: TrainConfig, done: str) -> TrainConfig:
    """The settings of a finished run, with new ones that need no training. Warns of others."""
    run = {name: getattr(new.run, name) for name in (*settings.BESIDE, *PLACE) if hasattr(new.run, name)}
    config = evolve(old, data=new.data, run=evolve(old.run, **run), evaluate=new.evaluate)
    if idle := [*map(flag, _changes(config, new))]:
        warn(f"{', '.join(idle)} without effect, as the run is done: {done}")
    return config


def why_done(saved: Saved, config: TrainConfig) -> str | None:
    """Why a saved run is complete; None if it goes on."""
    best, patience = saved.best, config.run.patience
    if saved.epoch >= config.run.epochs:
        return f"all {saved.epoch} epochs; for more, add --epochs {2 * saved.epoch}"
    waited = 0 if best is None else saved.epoch - best.since
    if patience is not None and best is not None and saved.batch == 0 and waited >= patience:
        return f"no better {best.metric} for {waited} epochs; to wait longer, add --patience {2 * waited}"
    return None


def _changes(old: TrainConfig, new: TrainConfig) -> dict[str, list[Any]]:
    """Changed settings -> [before, now]."""
    before, now = old.flat, new.flat
    return {k: ["default" if v is None else v for v in (before.get(k), now[k])] for k in now if before.get(k) != now[k]}


def _place(job: Job, saved: Saved) -> str:
    batch = f", batch {saved.batch} of {job.stages.load.batches}" if saved.batch and job.stages.load else ""
    return f"after {saved.step:,} steps, {saved.epoch} epochs{batch}"


def _verify(
    job: Job, config: TrainConfig, seal: Seal, first: State, saved: Saved | None, past: Sequence[Any], say: Console
) -> dict[str, Any]:
    """Replay from the checkpoint before the newest, or from the beginning, and compare every bit; returns the steps and
    the tensors that differ."""
    if saved is None:
        raise ConfigError(f"{seal.folder} has no checkpoint yet that could be verified")
    before = checkpoint.newest(seal.folder / CHECKPOINTS, below=saved.step, check=seal.fault).saved
    done = before.step if before else 0
    if any(_changed(entry, done, saved.step) for entry in past):
        raise ConfigError(
            f"the settings were changed between steps {done:,} and {saved.step:,}, so they can't be replayed as one"
        )
    if before is None:
        config.finetune.weights()  # raises if the replay can't begin from them
    wanted = saved.restore(job.pipe)
    # No step changes a hyperparameter, so the newest checkpoint has the hyperparameters of all steps since the one
    # before.
    state = before.restore(job.pipe, wanted.hyper) if before else first.replace(hyper=wanted.hyper)
    how: dict[str, Any] = {"backend": config.run.backend, "fallback": "eager", "eager_steps": job.eager_steps}
    program = job.pipe.compile(**how) if config.run.compile else False
    for report in fit(
        job.pipe, epochs=saved.epoch + (saved.batch > 0), state=state, compile=program,
        validate=job.validation if watches(job.pipe.program) else None,
        every=saved.step, start=before.start if before else (0, 0),
    ):  # fmt: skip
        if report.step >= saved.step:
            break
    steps = f"steps {done + 1:,} to {saved.step:,}"
    differ = testing.differences(report.state.tree, wanted.tree)
    if differ:
        warn(f"the replay of {steps} differs from the run in {len(differ)} tensors, the first is {differ[0]}")
    else:
        say.print(f"verify  {steps} replayed: every tensor of the State is the same, bit for bit")
    return {"ok": not differ, "verified": [done + 1, saved.step], "differ": differ}


def _changed(entry: Any, after: int, before: int) -> bool:
    """Whether an entry of a config's [[resumed]] changed a setting between two steps."""
    if not isinstance(entry, Mapping) or not after < entry.get("step", 0) < before:
        return False
    return bool(set(entry) - {"step", *record.versions(), *settings.BESIDE})
