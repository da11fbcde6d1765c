"""Cross-validation: a run for each fold, and their metrics over all held-out samples."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeAlias

import torch
from attrs import evolve
from rich.console import Console

from cli import baseline, goal, processes, record, resuming
from cli import config as settings
from cli import folder as folders
from cli import seal as seals
from cli.baseline import Baseline
from cli.build import Job, placed
from cli.classes import measuring
from cli.config import TrainConfig
from cli.decision import Decision, decided, mean
from cli.prepared import prepared
from cli.progress import plain, warn
from cli.recipes.data_card import check_alike
from cli.recipes.setting import refusal
from cli.saved_run import Past
from cli.seal import STATUS, Seal
from cli.settled import settled
from cli.training import train
from pipeline import Ensemble, Pipeline, State
from pipeline.errors import PipeError
from pipeline.programs.evaluate import Measured, averaged, finished, measured
from pipeline.programs.program import Program
from pipeline.stage import Stage
from pipeline.state import format_metric

Views: TypeAlias = dict[str, Measured]
"""What metrics measured of a State, under "", and of each average of its weights."""


def train_folds(config: TrainConfig, *, quiet: bool = False, verbose: bool = False) -> Path:
    """Train a run for each fold, in folders of one, and print mean and standard deviation of their metrics, and the
    metrics over the held-out samples of all. Returns that folder.

    `pipe predict` answers with the mean of all.
    """
    if config.pipeline.name is not None:
        raise refusal("--folds splits the command's own data; a pipeline of your own splits its data itself")
    if config.flat.get("test") is not None:
        raise refusal("--folds holds out each sample of --data once; leave out --test")
    placed(config)  # connects the processes
    config, data = settled(config)
    config, why = goal.agreed(config, prepared(config) if data is None else data)
    say = plain(quiet)
    if why:
        say.print(f"        {why}: the best epoch is by {config.run.best}; --best accuracy overrules")
    with folders.new(config) as seal:
        # A folder with a config can be resumed.
        folders.write(seal, {settings.CONFIG: _config_text(config, seal)})
        _train(seal, config, say, quiet=quiet, verbose=verbose)
        return seal.folder


def resume(folder: Path, config: TrainConfig, *, quiet: bool = False, verbose: bool = False) -> None:
    """Go on with a run of all folds. Finished ones stay unchanged."""
    placed(config)
    with folders.gone_on(folder) as seal:
        _train(seal, evolve(config, settled=True), plain(quiet), quiet=quiet, verbose=verbose)


def _config_text(config: TrainConfig, seal: Seal, **results: Any) -> bytes:
    return folders.config_text(config, {"versions": record.versions(), **results}, seal)


def _train(seal: Seal, config: TrainConfig, say: Console, **how: bool) -> None:
    processes.note(processes.FOLDER, str(seal.folder))
    threads, found = torch.get_num_threads(), list[Past]()
    runs = settings.folds(seal.folder, config)
    for i, folder in enumerate(runs):
        place = f"fold {i + 1}/{len(runs)}"
        begun, over = processes.agreed(_how_far(folder) if processes.first() else None)
        say.print(f"{place.replace(' ', '    ')}: {folder}{', done' * over}")
        torch.set_num_threads(threads)  # a fold chooses its own number, as if it were trained alone
        with nullcontext() if over else _status(seal, place):
            if begun and not over:
                old, new = resuming.resumed(folder)
                resuming.resume(folder, old, new, **how)
            elif not over:
                train(evolve(config, run=evolve(config.run, out=str(folder), fold=i)), **how)
        processes.agreed(None)  # the first one has let go of its folder
        found.append(Past(folder))
        check_alike([found[0].about, found[-1].about])
    parts: list[Views] = []
    for _, last, views in _views(found, "best", mean([run.decision("best") for run in found])):
        parts.append(views)
        program = last
    ends, whole = [_numbers(_joined(program, [part])) for part in parts], _numbers(_joined(program, parts))
    lines = list(_lines(ends, whole))
    table = {"count": len(runs), "ends": ends, "whole": whole}
    best = lines[[*whole].index(config.run.best)] if config.run.best in whole else lines[0]
    done = folders.status_text("done", why=best, over=True)
    folders.write(seal, {settings.CONFIG: _config_text(config, seal, **{settings.FOLDS: table}), STATUS: done})
    for line in lines:
        plain(False).print(f"folds   {line}")


def _how_far(folder: Path) -> tuple[bool, bool]:
    """Whether a fold has begun, and whether its last epoch or a stopping rule ended it."""
    begun = (folder / settings.CONFIG).exists()
    try:
        return begun, json.loads(seals.content(folder / STATUS)).get("over") is True
    except (OSError, ValueError, AttributeError):  # it was killed
        return begun, False


@contextmanager
def _status(seal: Seal, place: str) -> Iterator[None]:
    """Record the fold at hand, as it is to be found after a kill, and why it failed."""
    folders.write(seal, {STATUS: folders.status_text("stopped", why=place)})
    try:
        yield
    except PipeError as e:
        folders.write(seal, {STATUS: folders.status_text("failed", why=f"{place}: {e}")})
        raise
    except (SystemExit, KeyboardInterrupt):
        warn(f"stopped in {place}; go on with all: pipe train --resume {seal.folder}")
        raise


def _views(
    runs: Sequence[Past], weights: str, decision: Decision, metrics: Sequence[Stage] = ()
) -> Iterator[tuple[Job, Program, Views]]:
    """Each fold on the samples that it held out. The threshold is that of the `decision` of all: a fold's own was
    chosen on these."""
    for run in runs:
        job, state, _ = Past(run.folder).repeated(weights)  # its data are freed after it
        own = evolve(run.decision(weights), threshold=decision.threshold)
        pipe = decided(measuring(job.pipe, *metrics), own)
        yield job, pipe.program, _measured(pipe, state, job.validation)


def _measured(pipe: Pipeline | Ensemble, state: State, data: Any) -> Views:
    """The metrics' sums over the held-out samples of a fold."""
    views = {"": state, **averaged(pipe.program, state)}
    return {name: measured(pipe.program, seen, data) for name, seen in views.items()}


def _joined(program: Program, parts: Sequence[Views]) -> dict[str, Any]:
    """The metrics over the held-out samples of some folds."""
    values = {view: finished(program, [part[view] for part in parts]) for view in parts[0]}
    named = {".".join(filter(None, (view, name))): value for view, of in values.items() for name, value in of.items()}
    return {name: value for name, value in named.items() if "/" not in name}


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if isinstance(value, int | float)}


def _lines(ends: Sequence[Mapping[str, float]], whole: Mapping[str, float]) -> Iterator[str]:
    """A line for each metric: mean and standard deviation over folds, and its value over all samples."""
    for name in whole:
        values = torch.tensor([end[name] for end in ends], dtype=torch.float64)
        average, deviation, joined = (format_metric(name, float(x)) for x in (values.mean(), values.std(), whole[name]))
        deviation, joined = (text.removeprefix(f"{name} ") for text in (deviation, joined))
        yield f"{average} +- {deviation} over {len(ends)} folds, {joined} over all samples"


def out_of_fold(
    runs: Sequence[Past], weights: str, decision: Decision, metrics: Sequence[Stage]
) -> tuple[dict[str, Any], Baseline | None]:
    """The metrics of all folds, and more `metrics`, over the samples that each held out, and their baseline."""
    parts, constants = list[Views](), list[tuple[Measured, str]]()
    for job, last, views in _views(runs, weights, decision, metrics):
        parts.append(views)
        program = last
        if (made := baseline.constant(job)) is not None:
            always, data, words = made
            constants.append((measured(always.program, always.init(0), data), words))
    whole = len(constants) == len(parts)
    base = baseline.of_folds(always.program, constants, runs[0].about.task) if whole else None
    return _joined(program, parts), base
