"""Train a run: the loop over `fit` that prints, and writes the run's folder."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from attrs import define, evolve, frozen
from rich.console import Console

from cli import classes, columns, decision, goal, processes, record, results
from cli import config as settings
from cli import folder as folders
from cli.build import Job, begin, parameters, steps
from cli.compilation import compiled, tell, unwarned
from cli.config import TrainConfig
from cli.prepared import prepared
from cli.progress import Interrupted, interrupts, narrowed, plain, warn
from cli.recipes.logger import logged
from cli.seal import CHECKPOINTS, STATUS, Seal
from cli.settled import settled
from pipeline import Report, State, fit, place, plot, until
from pipeline.checkpoint import Best, Saved, Saver
from pipeline.compile import Compiled
from pipeline.errors import ConfigError, NonFiniteError
from pipeline.models.lora import without_adapters
from pipeline.programs.hyper import hyper_values
from pipeline.programs.mesh import whole
from pipeline.progress import bar, printed
from pipeline.state import format_metric

SHOWN = 8
"""Columns of a table to describe at the begin of a training."""


def train(config: TrainConfig, *, quiet: bool = False, verbose: bool = False) -> tuple[Job, State, Path]:
    """Train a new run, printing a line an epoch; returns it, its last State and its folder, also if interrupted."""
    say, why = plain(quiet), ""
    config, data = settled(config)
    data = prepared(config) if data is None and config.digest is not None else data  # warns, once
    config, precise = evolve(config, digest=None), ""
    if config.run.precision == "auto" and processes.count() == 1:
        from cli import precision  # only if there is a choice

        config, precise = precision.chosen(config, data, say)
    if config.run.device == "auto" and place.resolve("auto").type != "cpu":
        from cli import device  # only if there is a choice

        config, why = device.chosen(config, say)
    job, state = begin(config, data)
    with folders.new(config) as seal:
        print_head(say, job, state, config, verbose, why)
        if precise:
            say.print(f"        {precise}")
        config = goal.settled(config, job, results.best_metric(job, config, state))
        text = folders.config_text(config, record.facts(job, state), seal)
        folders.write(seal, {settings.CONFIG: text, **folders.data_text(job)})
        processes.note(processes.FOLDER, str(seal.folder))
        return job, train_from(Training(job, config, seal, say, verbose), state), seal.folder


def print_head(say: Console, job: Job, state: State, config: TrainConfig, verbose: bool, why: str = "") -> None:
    """Print data, model and device of a run, and `why` it got that device."""
    say.print(f"data    {config.source}: {job.data}")
    if job.prepared is not None:
        if job.prepared.columns:
            say.print(columns.table(job.prepared.columns, None if verbose else SHOWN))
            if not verbose and (more := len(job.prepared.columns) - SHOWN) > 0:
                say.print(f"        ... and {more:,} more: pipe data {config.source}")
        for note in job.prepared.notes:
            say.print(f"        {note}")
    if job.why and config.run.best is None:
        say.print(f"        {job.why}: the best epoch is by {job.best}; --best accuracy overrules")
    module = job.stages.models[0].module.skeleton().module
    frozen = sum(p.numel() for p in module.parameters() if not p.requires_grad)
    trained = f"{parameters(whole(job.pipe.program, state).params):,} parameters"
    say.print(f"model   {job.model}: {trained}{f', and {frozen:,} frozen' if frozen else ''}")
    threads, mesh = torch.get_num_threads(), job.stages.place.mesh
    facts = [str(job.stages.place.device), f"{threads} thread{'s' * (threads > 1)}"]
    if config.run.precision != "fp32":
        facts.append(config.run.precision)
    if mesh is not None:
        facts.append(f"{mesh.processes} processes")
        if mesh.shard > 1:
            facts.append(f"the weights in {mesh.shard} shards")
    say.print(f"device  {', '.join(facts)}{f' ({why})' if why else ''}")
    if job.weights is not None:
        say.print(f"init    {job.weights.name}: {job.weights.report(without_adapters(module))}")
    if verbose:
        say.print("", narrowed(str(job.stages), say), "", sep="\n")


@frozen(eq=False)
class Training:
    """A run to train, its folder, and its console."""

    job: Job
    config: TrainConfig
    seal: Seal
    say: Console
    verbose: bool


@define
class Progress:
    """Progress of a training, and the reason for its end."""

    state: State
    report: Report | None = None
    why: str = ""
    """The reason of the stopping rule that ended it."""
    signals: Sequence[int] = ()
    """Signals that asked it to stop, caught by any process."""
    complete: bool = False
    """Whether the last epoch is done."""

    @property
    def ending(self) -> bool:
        """Whether a stopping rule or a signal ends it now."""
        return bool(self.why or self.signals)

    @property
    def stopped(self) -> bool:
        """Whether a signal ended it early."""
        return bool(self.signals) and self.report is not None and not self.complete


def train_from(t: Training, state: State, saved: Saved | None = None, *, done: bool = False) -> State:
    """Train from a State, new or from a checkpoint, and write the results; if it is `done`, only write them. Returns
    the last State."""
    metric = results.best_metric(t.job, t.config, state)
    progress = Progress(state)
    run = t.config.run
    if not done:
        t.seal.goes_on()
    with (
        folders.Log(t.seal, saved.step if saved else 0) as lines,
        Saver(folders.inside(t.seal, CHECKPOINTS), keep=run.keep, best=metric, steps=run.save_steps,
              minutes=run.save_minutes, saved=saved, beside=[lines.path], pipe=t.job.pipe, run=t.seal.run,
              wrote=t.seal.wrote) as saver,
    ):  # fmt: skip
        missing = sorted(set(range(1, saved.epoch + 1 if saved else 1)) - set(lines.epochs))
        if missing:
            warn(f"{lines.path} has no line for epoch {', '.join(map(str, missing))}; it goes on without")
        if not done:
            _fit(t, progress, lines, saver, metric, saved.start if saved else (0, 0))
        saver.close()
        best = saver.best
    ends = results.weight_files(t.job, progress.state, t.seal, best, progress.report, saved)
    # After a signal there is no time for more: the run may go on, and ends with them then.
    states = {} if progress.stopped else results.states(t.job, progress.state, t.seal, best)
    decisions = {name: decision.fitted(t.config, t.job, own) for name, own in states.items()}
    if decisions != dict.fromkeys(decisions, decision.PLAIN) or (t.seal.folder / decision.FILE).exists():
        ends[decision.FILE] = decision.text(decisions)
    beside = [] if progress.stopped else results.beside(t.job, progress.state, states, decisions, best, metric)
    if processes.first() and lines.rows:
        ends[folders.CURVES] = plot.svg(plot.curves(lines.rows, best=metric)).encode()
    if not done:
        finished = not progress.stopped and (progress.complete or progress.why.startswith("no better"))
        why, over = ("by a signal", {}) if progress.stopped else (progress.why, {"over": True})
        ends[STATUS] = folders.status_text("done" if finished else "stopped", why=why, **over)
    folders.write(t.seal, ends, lines.last)
    _print_results(t, progress, best, beside)
    return progress.state


def _fit(
    t: Training, progress: Progress, lines: folders.Log, saver: Saver, metric: str | None, start: tuple[int, int]
) -> None:
    """Train until the last epoch, a stopping rule or a signal. A failing run is saved up to its last step."""
    job, run = t.job, t.config.run
    program: Compiled | None = None
    if run.compile:
        program = compiled(
            job.pipe, job.validation, t.config, progress.state, t.say, t.verbose,
            eager_steps=job.eager_steps, steps=steps(job.stages.load, t.config),
        )  # fmt: skip
    stops, due, caught = _stops(t.config, metric, saver), printed(run.epochs), list[int]()
    where, progress.signals, untold = job.stages.place, caught, program is not None and not _made(program)

    def compiling() -> str:
        """The current compilation, while no graph is made: until then the last Report's State can be saved."""
        return "" if program is None or where.mesh is not None or _made(program) else program.doing

    try:
        with bar(t.say, compiling) as show, interrupts(caught, compiling), unwarned():
            for report in _reports(t, progress.state, program, start):
                progress.report, progress.state = report, report.state
                show(report)
                if untold and program is not None and _made(program):
                    untold = False
                    tell(program, t.say, t.verbose)
                progress.why = where.agreed(next((why for why, stop in stops.items() if stop(report)), ""))
                if where.mesh is not None:
                    progress.signals = next(filter(None, where.everyone(list(caught))), [])
                progress.complete = report.complete and report.epoch == run.epochs
                if report.complete:
                    lines.write(report, **_learning_rate(job, report.state))
                    if t.verbose or progress.ending or due(report.epoch):
                        try:
                            t.say.print(str(report))
                        except BrokenPipeError:  # nobody reads the output
                            caught.append(signal.SIGPIPE)
                saver.offer(report, now=progress.complete or progress.ending)
                if progress.ending:  # perhaps true only since the checkpoint
                    break
    except Interrupted:
        if progress.report is None:
            _save_failed(t, KeyboardInterrupt(), {})
            raise KeyboardInterrupt from None
        saver.offer(progress.report, now=True)
    except NonFiniteError as e:
        _save_failed(t, e, results.weight_files(job, e.state, t.seal, None, progress.report, None))
        raise ConfigError(
            f"{e}\npipe: to go on from the last checkpoint: pipe train --resume {t.seal.folder} --lr X"
        ) from None
    except BaseException as e:
        _save_failed(t, e, {})
        raise


def _made(program: Compiled) -> bool:
    return bool(program.report.graphs or program.report.fallback)


def _reports(t: Training, state: State, program: Compiled | None, start: tuple[int, int]) -> Iterable[Report]:
    run, per_call = t.config.run, t.config.run.steps_per_call
    reports = fit(
        t.job.pipe, epochs=run.epochs, validate=t.job.validation, state=state, compile=program or False, interval=0.1,
        steps_per_call=None if per_call == "auto" else "epoch" if per_call == "epoch" else int(per_call),
        every=run.save_steps, start=start,
    )  # fmt: skip
    names, title = run.log if processes.first() else (), f"{t.seal.folder.resolve().name}-{t.seal.run}"
    known = {name: value for name, value in t.config.flat.items() if value is not None}
    return logged(names, reports, lambda name: folders.inside(t.seal, name), title, known)


def _stops(config: TrainConfig, metric: str | None, saver: Saver) -> dict[str, until.Stop]:
    """Stopping rules, by the reason to print."""
    rules: dict[str, until.Stop] = {}
    run = config.run
    if run.patience is not None:
        if metric is None:
            raise ConfigError("--patience needs held-out data to find the best epoch")
        best = None if saver.best is None else (saver.best.value, saver.best.since)
        rules[f"no better {metric} for {run.patience} epochs"] = until.no_better(metric, epochs=run.patience, best=best)
    if run.minutes is not None:
        rules[f"{run.minutes:g} minutes have passed"] = until.minutes(run.minutes)
    return rules


def _learning_rate(job: Job, state: State) -> dict[str, float]:
    """The learning rate of the last step, if there is one and no stage measures it."""
    if "evaluate.learning_rate" in [s.name for s in job.stages.metrics]:
        return {}
    values = hyper_values(job.stages.graph, {**state.tree, "step": state.step - 1}).values()
    rates = [v["lr"] for v in values if "lr" in v]
    return {"train/learning rate": float(rates[0].mean())} if len(rates) == 1 else {}  # equal for all members


def _save_failed(t: Training, error: BaseException, weights: dict[str, bytes]) -> None:
    """Record that a run can't go on."""
    how = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
    status = folders.status_text(how, why=str(error) or type(error).__name__)
    folders.write(t.seal, {**weights, STATUS: status})


def _print_results(t: Training, progress: Progress, best: Best | None, beside: Sequence[str]) -> None:
    """Print the results, and the lines `beside` them; after a signal, exit with its code."""
    job, folder, report = t.job, t.seal.folder, progress.report
    task = None if job.prepared is None or report is None else job.prepared.task
    if t.verbose and task == "classification":
        assert job.about is not None
        t.say.print(f"\n{classes.figures(job.pipe, job.about, progress.state, job.held_out)}\n")
    if report is not None and task == "language modelling":
        results.print_text(job, progress.state, report, t.say)
    say = plain(False)
    if best is not None:
        say.print(f"best    {format_metric(best.metric, best.value)} in epoch {best.epoch}")
    for line in beside:
        say.print(line)
    averages = "".join(f", {name}.safetensors: their average" for name in job.stages.averages)
    what = "weights" if best is None or job.average_of(best.metric) is None else "average"
    and_best = f"{folders.BEST}: the {what} of the best epoch, " if best is not None else ""
    say.print(f"run     {folder} ({and_best}{folders.WEIGHTS}: the weights as they are now{averages})")
    if report is None:
        return
    if progress.stopped:
        if progress.signals[0] != signal.SIGPIPE:
            warn(
                f"stopped by a signal in epoch {report.epoch}, after step {report.step}; go on with: pipe train "
                f"--resume {folder}"
            )
        sys.exit(128 + progress.signals[0])
    if progress.why and not progress.complete:
        epochs = t.config.run.epochs
        say.print(f"ended   {progress.why}, in epoch {report.epoch} of {epochs}; --resume {folder} goes on")
