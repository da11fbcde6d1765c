"""`pipe train`: the for loop over `fit` that prints, and writes the run's folder."""

from __future__ import annotations

import math
import signal
import sys
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from attrs import evolve
from rich.console import Console

from cli import classes, processes, record
from cli import config as settings
from cli import folder as folders
from cli.build import Job, begin, parameters
from cli.commands import sample
from cli.config import TrainConfig
from cli.progress import interrupts, live, plain, printed, waiting, warn
from cli.recipes.logger import logged
from cli.seal import CHECKPOINTS, STATUS, Seal
from pipeline import Pipeline, Report, State, Sweep, checkpoint, fit, place, plot, testing, until
from pipeline.checkpoint import Saved, Saver
from pipeline.compile import Compiled
from pipeline.direction import directions
from pipeline.errors import CheckpointError, ConfigError, NonFiniteError
from pipeline.programs.evaluate import better, watches
from pipeline.programs.hyper import hyper_values
from pipeline.programs.mesh import whole
from pipeline.state import format_metric


def run(config: TrainConfig, *, quiet: bool = False, verbose: bool = False) -> Report | None:
    """Train, printing a line an epoch, and return the last Report. What was learned is saved also where the run is
    interrupted."""
    say, why = plain(quiet), ""
    if config.run.device == "auto" and place.resolve("auto").type != "cpu":
        from cli import device  # only where there is something to choose

        config, why = device.chosen(config, say)
    made, state = begin(config)
    with folders.new(config) as seal:
        _head(say, made, state, config, verbose, why)
        text = folders.config_text(config, record.facts(made, state), seal)
        folders.write(seal, {settings.CONFIG: text, **folders.data_text(made)})
        processes.note(processes.FOLDER, str(seal.folder))
        return _train(made, config, seal, state, None, say, verbose, going=True)


def folds(config: TrainConfig, *, quiet: bool = False, verbose: bool = False) -> None:
    """Train a run for each fold, in folders of one, and print the mean and the spread of what each ended with."""
    count = config.run.folds
    assert count is not None
    if config.pipeline.name is not None:
        raise ConfigError("--folds parts data by itself; a pipeline of your own has parted them already")
    say = plain(False)
    ends: list[dict[str, float]] = []
    with folders.new(config) as whole:
        for fold in range(count):
            say.print(f"fold    {fold} of {count}")
            own = evolve(config, run=evolve(config.run, out=str(whole.folder / f"fold-{fold}"), fold=fold))
            report = run(own, quiet=quiet, verbose=verbose)
            if report is not None:
                ends.append({k: v for k, v in report.validate.items() if isinstance(v, int | float)})
        ended = {settings.FOLDS: {"count": count, "ends": ends}}
        folders.write(whole, {settings.CONFIG: folders.config_text(config, ended, whole)})
    for name in (n for n in ends[0] if "/" not in n):
        values = torch.tensor([end[name] for end in ends], dtype=torch.float64)
        mean, spread = (format_metric(name, float(x)) for x in (values.mean(), values.std()))
        say.print(f"folds   {mean} +- {spread.removeprefix(name + ' ')} over {count} folds")


def resume(
    folder: Path,
    old: TrainConfig,
    config: TrainConfig,
    *,
    verify: bool = False,
    quiet: bool = False,
    verbose: bool = False,
) -> None:
    """Go on with the run in a folder from its newest good checkpoint, or replay what led to it."""
    with folders.gone_on(folder) as seal:
        table = settings.document(folder / settings.CONFIG)
        made, state = begin(config)
        say = plain(quiet)
        _head(say, made, state, config, verbose)
        facts = record.facts(made, state)
        for difference in record.differences(table, facts):
            warn(f"{difference}: its last bits may differ from here on")
        found = _newest(seal)
        processes.note(processes.FOLDER, str(folder))
        saved = found.saved
        if saved is None and checkpoint.steps(folder / CHECKPOINTS):
            raise ConfigError(
                f"no checkpoint in {folder} can be used ({found.faults[0]}); to begin anew, give another --out"
            )
        for fault in found.faults:
            warn(f"{fault}; {f'it is passed over for {saved.path.name}' if saved else 'it is begun anew'}")
        past = table["resumed"] if isinstance(table.get("resumed"), list) else []
        if verify:
            if old != config:
                raise ConfigError("--verify replays the run as it was; leave out other settings")
            _verify(made, config, seal, state, saved, past, say)
            return
        going = True
        if saved is None:
            say.print("resume  no checkpoint yet, so from the beginning")
        else:
            say.print(f"resume  {saved.path.name}: {_place(made, saved)}")
            # The numbers of the schedule and the like are the config's: another lr may have been asked for.
            state = saved.restore(made.pipe, state.hyper)
            done = _done(saved, config)
            going = done is None
            say.print(f"done    {done}") if done else None
        if going:
            before, now = old.flat, config.flat
            changes = {k: ["default" if v is None else v for v in (before.get(k), now[k])]
                       for k in now if before.get(k) != now[k]}  # fmt: skip
            past = [*past, {"step": saved.step if saved else 0, **facts["versions"], **changes}]
            text = folders.config_text(config, {**facts, "resumed": past}, seal)
            folders.write(seal, {settings.CONFIG: text, **folders.data_text(made)})
        _train(made, config, seal, state, saved, say, verbose, going=going)


def _newest(seal: Seal) -> checkpoint.Found:
    """The newest good checkpoint, as the first process finds it, with what is wrong with newer ones."""
    agreed: checkpoint.Found = processes.agreed(folders.newest(seal) if processes.first() else None)
    return agreed


def _done(saved: Saved, config: TrainConfig) -> str | None:
    """In words, why a run that was saved has nothing left to do; None where it goes on."""
    best, patience = saved.best, config.run.patience
    if saved.epoch >= config.run.epochs:
        return f"all {saved.epoch} epochs; for more, add --epochs {2 * saved.epoch}"
    waited = 0 if best is None else saved.epoch - (best.since or best.epoch)
    if patience is not None and best is not None and saved.batch == 0 and waited >= patience:
        return f"no better {best.metric} for {waited} epochs; to wait longer, add --patience {2 * waited}"
    return None


def _head(say: Console, made: Job, state: State, config: TrainConfig, verbose: bool, why: str = "") -> None:
    precision = "" if config.run.precision == "fp32" else f", {config.run.precision}"
    say.print(f"data    {config.source}: {made.data}")
    for note in made.prepared.notes if made.prepared is not None else ():
        say.print(f"        {note}")
    say.print(f"model   {made.model}: {parameters(whole(made.pipe.program, state).params):,} parameters")
    reason = f" ({why})" if why else ""
    say.print(f"device  {made.stages.place.device}, {_threads()}{precision}{_together(made)}{reason}")
    if verbose:
        say.print(f"\n{made.stages}\n")


def _together(made: Job) -> str:
    mesh = made.stages.place.mesh
    if mesh is None:
        return ""
    shards = f", the weights in {mesh.shard} shards" if mesh.shard > 1 else ""
    return f", {mesh.processes} processes{shards}"


def _train(
    made: Job, config: TrainConfig, seal: Seal, state: State, saved: Saved | None, say: Console, verbose: bool, *,
    going: bool,
) -> Report | None:  # fmt: skip
    folder = seal.folder
    metric = _best(made, config, state)
    caught: list[int] = []
    signals = caught  # of several processes, what one of them had caught when all were asked
    report: Report | None = None
    ended, last = "", False
    if going:
        seal.goes_on()
    where = made.stages.place
    with (
        folders.Log(seal, saved.step if saved else 0) as lines,
        Saver(folders.inside(seal, CHECKPOINTS), keep=config.run.keep, best=metric, steps=config.run.save_steps,
              minutes=config.run.save_minutes, saved=saved, beside=[lines.path], pipe=made.pipe, run=seal.run,
              wrote=seal.wrote) as saver,
    ):  # fmt: skip
        missing = sorted(set(range(1, saved.epoch + 1 if saved else 1)) - set(lines.epochs))
        if missing:
            warn(f"{lines.path} has no line for epoch {', '.join(map(str, missing))}; it goes on without")
        start = saved.start if saved else (0, 0)
        program = (
            compiled(made.pipe, made.validation, config, state, say, verbose) if config.run.compile and going else False
        )
        stops, shown = _stops(config, metric, saver), printed(config.run.epochs)
        try:
            with live(say) as show, interrupts(caught):
                for report in _reports(made, config, seal, state, program, start) if going else ():
                    state = report.state
                    show(report)
                    ended = where.agreed(next((why for why, stop in stops.items() if stop(report)), ""))
                    if where.mesh is not None:
                        signals = next(filter(None, where.everyone(list(caught))), [])
                    last = report.complete and report.epoch == config.run.epochs
                    if report.complete:
                        lines.write(report, **_rate(made, state))
                        if verbose or ended or signals or shown(report.epoch):
                            try:
                                say.print(str(report))
                            except BrokenPipeError:  # nobody reads it any more
                                caught.append(signal.SIGPIPE)
                    saver.offer(report, now=last or bool(ended or signals))
                    if ended or signals:
                        break
        except BaseException as e:
            _save_failed(made, seal, report, e.state if isinstance(e, NonFiniteError) else state, e)
            if isinstance(e, NonFiniteError):
                raise ConfigError(
                    f"{e}\npipe: to go on from the last checkpoint: pipe train --resume {folder} --lr X"
                ) from None
            raise
        saver.close()
        best = saver.best
    ends = _weights(made, state, seal, best, report, saved)
    if processes.first() and lines.rows:
        ends[folders.CURVES] = plot.svg(plot.curves(lines.rows, best=metric)).encode()
    stopped = bool(signals) and report is not None and not last
    if going:
        done = not stopped and (last or ended.startswith("no better"))
        ends[STATUS] = folders.status_text("done" if done else "stopped", why="by a signal" if stopped else ended)
    folders.write(seal, ends, lines.last)
    if verbose and report is not None and made.prepared is not None and made.prepared.task == "classification":
        say.print(f"\n{classes.table(made, state)}\n")
    if made.prepared is not None and made.prepared.task == "language modelling" and report is not None:
        _text(made, state, report, say)
    result = plain(False)
    if best is not None and metric is not None:
        result.print(f"best    {format_metric(metric, best.value)} in epoch {best.epoch}")
    averages = "".join(f", {name}.safetensors: their average" for name in made.stages.averages)
    and_best = f"{folders.BEST}: the weights of the best epoch, " if best is not None else ""
    result.print(f"run     {folder} ({and_best}{folders.WEIGHTS}: the weights as they are now{averages})")
    if stopped and report is not None:
        if signals[0] != signal.SIGPIPE:
            warn(
                f"stopped by a signal in epoch {report.epoch}, after step {report.step}; go on with: pipe train "
                f"--resume {folder}"
            )
        sys.exit(128 + signals[0])
    if ended and report is not None and not last:
        result.print(f"ended   {ended}, in epoch {report.epoch} of {config.run.epochs}; --resume {folder} goes on")
    return report


def _reports(
    made: Job, config: TrainConfig, seal: Seal, state: State, program: Any, start: tuple[int, int]
) -> Iterable[Report]:
    reports = fit(
        made.pipe, epochs=config.run.epochs, validate=made.validation, state=state, compile=program, interval=0.1,
        steps_per_call=_per_call(config), every=config.run.save_steps, start=start,
    )  # fmt: skip
    return logged(config.run.log if processes.first() else (), reports, lambda name: folders.inside(seal, name))


def _stops(config: TrainConfig, metric: str | None, saver: Saver) -> dict[str, until.Stop]:
    """When a run ends before its last epoch, by why."""
    found: dict[str, until.Stop] = {}
    run = config.run
    if run.patience is not None:
        if metric is None:
            raise ConfigError("--patience needs held-out data, on which the best epoch is told")
        best = None if saver.best is None else (saver.best.value, saver.best.since or saver.best.epoch)
        found[f"no better {metric} for {run.patience} epochs"] = until.no_better(metric, epochs=run.patience, best=best)
    if run.minutes is not None:
        found[f"{run.minutes:g} minutes have passed"] = until.minutes(run.minutes)
    return found


def _rate(made: Job, state: State) -> dict[str, float]:
    """The learning rate of the last step, where there is one and no stage measures it."""
    if "evaluate.learning_rate" in [s.name for s in made.stages.metrics]:
        return {}
    numbers = [
        v["lr"] for v in hyper_values(made.stages.graph, {**state.tree, "step": state.step - 1}).values() if "lr" in v
    ]
    return {"train/learning rate": float(numbers[0].mean())} if len(numbers) == 1 else {}  # of members, all the same


def _save_failed(made: Job, seal: Seal, report: Report | None, state: State, error: BaseException) -> None:
    """Keep what there is, where a run can't go on; a second Ctrl-C waits for nothing."""
    ends = _weights(made, state, seal, None, report, None) if isinstance(error, NonFiniteError) else {}
    how = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
    folders.write(seal, {**ends, STATUS: folders.status_text(how, why=str(error) or type(error).__name__)})


def _best(made: Job, config: TrainConfig, state: State) -> str | None:
    """The metric that tells the best epoch."""
    return config.run.best or made.best or _first(made, state)


def _first(made: Job, state: State) -> str | None:
    """The metric that tells the best epoch of a pipeline of the user's: the last that it measures beside the loss."""
    numbers = [
        k for k, v in made.pipe.program.finish(made.pipe.program.zeros()).items() if v.ndim == 0 and "/" not in k
    ]
    known = [*directions(better(made.pipe.program, state), numbers)]
    return None if made.held_out is None or not known else "accuracy" if "accuracy" in known else known[-1]


def _text(made: Job, state: State, report: Report, say: Console) -> None:
    """How well a text was learned, and a sample of it."""
    assert made.prepared is not None
    fitted, perplexity = made.prepared.fitted, report.validate.get("perplexity")
    if perplexity and fitted.get("bytes_per_token"):
        bits = math.log2(perplexity) / fitted["bytes_per_token"]
        known = fitted.get("unigram_perplexity")
        beside = f", where how often a token comes gives {known:.2f}" if known else ""
        say.print(f"text    {bits:.3f} bits per byte, perplexity {perplexity:.2f}{beside}")
    made_up = sample.at_the_end(made, state)
    if made_up is not None:
        say.print(f"sample  {made_up}")


def _per_call(config: TrainConfig) -> Any:
    """As `fit` takes it."""
    text = config.run.steps_per_call
    return None if text == "auto" else text if text == "epoch" else int(text)


def _verify(
    made: Job, config: TrainConfig, seal: Seal, first: State, saved: Saved | None, past: list[Any], say: Console
) -> None:
    """Replay from the checkpoint before the newest, or from the beginning, and compare every bit."""
    if saved is None:
        raise ConfigError(f"{seal.folder} has no checkpoint yet that could be verified")
    before = checkpoint.newest(seal.folder / CHECKPOINTS, below=saved.step, check=seal.fault).saved
    done = before.step if before else 0
    if any(
        done < r.get("step", 0) < saved.step and set(r) - {"step", *record.versions()}
        for r in past
        if isinstance(r, dict)
    ):
        raise ConfigError(
            f"the settings were changed between steps {done:,} and {saved.step:,}, so they can't be replayed as one"
        )
    wanted = saved.restore(made.pipe)
    # No step changes a hyperparameter: those of the newest were in force since the one before.
    state = before.restore(made.pipe, wanted.hyper) if before else first.replace(hyper=wanted.hyper)
    program = made.pipe.compile(backend=config.run.backend, fallback="eager") if config.run.compile else False
    for report in fit(
        made.pipe, epochs=saved.epoch + (saved.batch > 0), state=state, compile=program,
        validate=made.validation if watches(made.pipe.program) else None,
        every=saved.step, start=before.start if before else (0, 0),
    ):  # fmt: skip
        if report.step >= saved.step:
            break
    steps = f"steps {done + 1:,} to {saved.step:,}"
    differ = testing.differences(report.state.tree, wanted.tree)
    if differ:
        warn(f"{steps}, replayed, are not those of the run: {len(differ)} tensors differ, the first is {differ[0]}")
        sys.exit(1)
    say.print(f"verify  {steps} replayed: every tensor of the State is the same, bit for bit")


def _place(made: Job, saved: Saved) -> str:
    batch = f", batch {saved.batch} of {made.stages.load.batches}" if saved.batch and made.stages.load else ""
    return f"after {saved.step:,} steps, {saved.epoch} epochs{batch}"


def _weights(
    made: Job, state: State, seal: Seal, best: checkpoint.Best | None, report: Report | None, saved: Saved | None
) -> dict[str, bytes]:
    """Files of weights, by their names."""
    averages = {name: whole(made.pipe.program, seen) for name, seen in made.pipe.averaged(state).items()}
    state = whole(made.pipe.program, state)
    epoch = report.epoch if report is not None else saved.epoch if saved is not None else 0
    now = {"epoch": epoch, "step": int(state.step)}
    found = {folders.WEIGHTS: (made.pipe.weights(state), {"weights": "last", **now})}
    for name, seen in averages.items():
        found[f"{name}.safetensors"] = made.pipe.weights(seen), {"weights": name, **now}
    if best is not None:
        about = {"weights": "best", "epoch": best.epoch, "step": best.step, best.metric: best.value}
        try:
            kept: Any = state
            if best.step != now["step"]:
                [model, *_] = made.stages.models
                saved = checkpoint.at(seal.folder / CHECKPOINTS, best.step, seal.fault)
                kept = saved.kept(model.params, model.buffers)
            found[folders.BEST] = made.pipe.weights(kept), about
        except CheckpointError as e:
            warn(f"{e}, so {folders.BEST} is not written")
    return {name: folders.weights_file(weights, of) for name, (weights, of) in found.items() if seal.writes}


def _threads() -> str:
    count = torch.get_num_threads()
    return f"{count} thread{'s' if count > 1 else ''}"


def compiled(
    pipe: Pipeline | Sweep, held_out: Any, config: TrainConfig, state: State, say: Console, verbose: bool
) -> Compiled:
    """The compiled step with all its graphs, or one that runs eagerly and said why."""
    program = pipe.compile(backend=config.run.backend, fallback="eager")
    start = time.perf_counter()
    with warnings.catch_warnings(), waiting(say, lambda: f"{program.doing}, {time.perf_counter() - start:.0f} s"):
        warnings.simplefilter("ignore")  # the fallback's warning is printed below
        report = program.prepare(state, held_out)
    seconds = time.perf_counter() - start
    if report.unkept:
        say.print(f"programs are neither kept nor loaded: {report.unkept}")
    if report.fallback:
        say.print(f"runs uncompiled: {report.fallback}")
        return program
    loaded = sum(g.loaded for g in report.graphs)
    kept = f", {loaded} from the cache" if loaded else ""
    backends = " and ".join(sorted({g.backend for g in report.graphs}))
    say.print(f"compiled {len(report.graphs)} graphs by {backends} in {seconds:.1f} s{kept}")
    if verbose:
        say.print(f"{report}\n")
    else:
        for reason in dict.fromkeys(reason for g in report.graphs for reason in g.refused):
            say.print(f"  not by {reason}")
    return program
