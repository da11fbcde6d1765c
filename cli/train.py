"""`pipe train`: the for loop over `fit` that prints, and writes the run's folder."""

from __future__ import annotations

import math
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from attrs import evolve
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.spinner import Spinner
from rich.text import Text

from cli import config as settings
from cli import folder as folders
from cli import record, sample
from cli.build import Job, job, parameters, threads
from cli.config import TrainConfig
from pipeline import Report, State, checkpoint, evaluate, fit, testing
from pipeline.checkpoint import Saved, Saver
from pipeline.compile import Compiled
from pipeline.errors import ConfigError, NonFiniteError, did_you_mean
from pipeline.state import format_metric


def run(config: TrainConfig, *, quiet: bool = False, verbose: bool = False) -> Report | None:
    """Train, printing a line an epoch, and return the last Report. What was learned is saved also where the run is
    interrupted."""
    made, state = _made(config)
    say = _plain(quiet)
    with folders.new(config) as folder:
        _head(say, made, state, config, verbose)
        folders.write_config(folder, config, record.facts(made, state))
        folders.write_data(folder, made)
        return _train(made, config, folder, state, None, say, verbose)


def folds(config: TrainConfig, *, quiet: bool = False, verbose: bool = False) -> None:
    """Train a run for each fold, in folders of one, and print the mean and the spread of what each ended with."""
    count = config.run.folds
    assert count is not None
    if config.pipeline.name is not None:
        raise ConfigError("--folds parts data by itself; a pipeline of your own has parted them already")
    say = _plain(False)
    ends: list[dict[str, float]] = []
    with folders.new(config) as whole:
        for fold in range(count):
            say.print(f"fold    {fold} of {count}")
            own = evolve(config, run=evolve(config.run, out=str(whole / f"fold-{fold}"), fold=fold))
            report = run(own, quiet=quiet, verbose=verbose)
            if report is not None:
                ends.append({k: v for k, v in report.validate.items() if isinstance(v, int | float)})
        folders.write_config(whole, config, {"folds": {"count": count, "ends": ends}})
    for name in ends[0]:
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
    with folders.locked(folder):
        table = settings.document(folder / settings.CONFIG)
        made, state = _made(config)
        say = _plain(quiet)
        _head(say, made, state, config, verbose)
        facts = record.facts(made, state)
        for difference in record.differences(table, facts):
            _warn(f"{difference}: its last bits may differ from here on")
        found = checkpoint.newest(folder / folders.CHECKPOINTS)
        for fault in found.faults:
            _warn(f"{fault}; it is passed over")
        saved = found.saved
        if saved is None and found.faults:
            raise ConfigError(
                f"no checkpoint in {folder} can be used; to begin anew, move {folder / folders.CHECKPOINTS} away"
            )
        past = table["resumed"] if isinstance(table.get("resumed"), list) else []
        if verify:
            if old != config:
                raise ConfigError("--verify replays the run as it was; leave out other settings")
            _verify(made, config, folder, state, saved, past, say)
            return
        if saved is None:
            say.print("resume  no checkpoint yet, so from the beginning")
        else:
            say.print(f"resume  {saved.path.name}: {_place(made, saved)}")
            # The numbers of the schedule and the like are the config's: another lr may have been asked for.
            state = saved.restore(made.pipe, state.hyper)
            if saved.epoch >= config.run.epochs:
                say.print(f"done    all {saved.epoch} epochs; for more, add --epochs {2 * saved.epoch}")
        before, now = old.flat, config.flat
        changes = {
            k: ["default" if v is None else v for v in (before.get(k), now[k])] for k in now if before.get(k) != now[k]
        }
        past = [*past, {"step": saved.step if saved else 0, **facts["versions"], **changes}]
        folders.write_config(folder, config, {**facts, "resumed": past})
        _train(made, config, folder, state, saved, say, verbose)


def _made(config: TrainConfig) -> tuple[Job, State]:
    """What a run trains, and its first State; everything that can be checked is."""
    made = job(config)
    state = made.pipe.init(config.run.seed)
    torch.set_num_threads(threads(made, state, config.run.threads))
    if made.held_out is not None:
        made.pipe.check(state, made.held_out)
    known = [*made.pipe.finish(made.pipe.zeros())]
    known += [f"{name}.{metric}" for name in made.pipe.averages for metric in known]
    if config.run.best is not None and config.run.best not in known:
        raise ConfigError(f"--best {config.run.best!r} is no metric of this run{did_you_mean(config.run.best, known)}")
    return made, state


def _head(say: Console, made: Job, state: State, config: TrainConfig, verbose: bool) -> None:
    precision = "" if config.run.precision == "fp32" else f", {config.run.precision}"
    say.print(f"data    {config.source}: {made.data}")
    for note in made.prepared.notes if made.prepared is not None else ():
        say.print(f"        {note}")
    say.print(f"model   {made.model}: {parameters(state.params):,} parameters")
    say.print(f"device  {made.pipe.place.device}, {_threads()}{precision}")
    if verbose:
        say.print(f"\n{made.pipe}\n")


def _train(
    made: Job, config: TrainConfig, folder: Path, state: State, saved: Saved | None, say: Console, verbose: bool
) -> Report | None:
    metric = config.run.best or made.best or _first(made)
    signals: list[int] = []
    report: Report | None = None
    last = False
    with (
        folders.Log(folder, saved.step if saved else 0) as log,
        Saver(folder / folders.CHECKPOINTS, keep=config.run.keep, best=metric, steps=config.run.save_steps,
              minutes=config.run.save_minutes, saved=saved, beside=[log.path]) as saver,
    ):  # fmt: skip
        missing = sorted(set(range(1, saved.epoch + 1 if saved else 1)) - set(log.epochs))
        if missing:
            _warn(f"{log.path} has no line for epoch {', '.join(map(str, missing))}; it goes on without")
        start = saved.start if saved else (0, 0)
        going = start[0] < config.run.epochs
        program = _compile(made, config, state, say, verbose) if config.run.compile and going else False
        try:
            with _live(say) as show, _interrupts(signals):
                reports = fit(
                    made.pipe, epochs=config.run.epochs, validate=made.held_out, state=state, compile=program,
                    interval=0.1, steps_per_call=_per_call(config), every=config.run.save_steps, start=start,
                ) if going else ()  # fmt: skip
                for report in reports:
                    state = report.state
                    show(report)
                    if report.complete:
                        log.write(report)
                        say.print(str(report))
                    last = report.complete and report.epoch == config.run.epochs
                    saver.offer(report, now=last or bool(signals))
                    if signals:
                        break
        except NonFiniteError as e:
            _save_weights(made, e.state, folder)
            raise ConfigError(
                f"{e}\npipe: to go on from the last checkpoint: pipe train --resume {folder} --lr X"
            ) from None
        except BrokenPipeError:  # the output's reader has gone
            if report is not None:
                saver.offer(report, now=True)
            _save_weights(made, state, folder)
            raise
        saver.close()
        best = saver.best
    _save_weights(made, state, folder)
    if verbose and report is not None and made.prepared is not None and made.prepared.task == "classification":
        say.print(f"\n{_classes(made, state)}\n")
    if made.prepared is not None and made.prepared.task == "language modelling" and report is not None:
        _text(made, state, report, say)
    result = _plain(False)
    if best is not None and metric is not None:
        result.print(f"best    {format_metric(metric, best.value)} in epoch {best.epoch}")
    averages = "".join(f", {name}.safetensors: their average" for name in made.pipe.averages)
    files = ", ".join((settings.CONFIG, folders.METRICS, folders.CHECKPOINTS, folders.WEIGHTS))
    result.print(f"run     {folder} ({files}: the weights as they are now{averages})")
    if signals and report is not None and not last:
        _warn(
            f"stopped by a signal in epoch {report.epoch}, after step {report.step}; go on with: pipe train "
            f"--resume {folder}"
        )
        sys.exit(128 + signals[0])
    return report


def _first(made: Job) -> str | None:
    """The metric that tells the best epoch of a pipeline of the user's: the last that it measures beside the loss."""
    known = [*made.pipe.finish(made.pipe.zeros())]
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
    made: Job, config: TrainConfig, folder: Path, first: State, saved: Saved | None, past: list[Any], say: Console
) -> None:
    """Replay from the checkpoint before the newest, or from the beginning, and compare every bit."""
    if saved is None:
        raise ConfigError(f"{folder} has no checkpoint yet that could be verified")
    before = checkpoint.newest(folder / folders.CHECKPOINTS, below=saved.step).saved
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
        validate=made.held_out if made.pipe.watches else None,
        every=saved.step, start=before.start if before else (0, 0),
    ):  # fmt: skip
        if report.step >= saved.step:
            break
    steps = f"steps {done + 1:,} to {saved.step:,}"
    differ = testing.differences(report.state.tree, wanted.tree)
    if differ:
        _warn(f"{steps}, replayed, are not those of the run: {len(differ)} tensors differ, the first is {differ[0]}")
        sys.exit(1)
    say.print(f"verify  {steps} replayed: every tensor of the State is the same, bit for bit")


def _place(made: Job, saved: Saved) -> str:
    batch = f", batch {saved.batch} of {made.pipe.load.batches}" if saved.batch and made.pipe.load else ""
    return f"after {saved.step:,} steps, {saved.epoch} epochs{batch}"


def _save_weights(made: Job, state: State, folder: Path) -> None:
    from safetensors.torch import save  # not before the first step

    averages = {f"{name}.safetensors": seen for name, seen in made.pipe.averaged(state).items()}
    for name, seen in {folders.WEIGHTS: state, **averages}.items():
        weights = made.pipe.models[0].state_dict(seen)
        content = save({k: t.clone(memory_format=torch.contiguous_format) for k, t in weights.items()})
        folders.replace(folder / name, content)


def _plain(quiet: bool) -> Plain:
    return Plain(quiet=quiet, highlight=False, soft_wrap=True, markup=False)


def _warn(message: str) -> None:
    Plain(stderr=True, soft_wrap=True, highlight=False, markup=False).print(f"pipe: {message}")


class Plain(Console):
    """rich's Console, but a reader that has gone is main's to handle."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def _classes(made: Job, state: State) -> str:
    """Each class's precision, recall and F1 on the held-out data."""
    assert made.prepared is not None
    names = made.prepared.classes
    confusion = evaluate.confusion(len(names))
    figures = made.pipe.insert(confusion, after="evaluate.accuracy").evaluate(state, made.held_out)
    rows = zip(figures["precision"], figures["recall"], figures["f1"], strict=True)
    lines = [f"{names[i] if names else i:>8}  {p:9.4f}  {r:6.4f}  {f:6.4f}" for i, (p, r, f) in enumerate(rows)]
    return "\n".join(["   class  precision  recall      F1", *lines])


def _threads() -> str:
    count = torch.get_num_threads()
    return f"{count} thread{'s' if count > 1 else ''}"


def _compile(made: Job, config: TrainConfig, state: State, say: Console, verbose: bool) -> Compiled:
    """The compiled step with all its graphs, or one that runs eagerly and said why."""
    program = made.pipe.compile(backend=config.run.backend, fallback="eager")
    start = time.perf_counter()
    with warnings.catch_warnings(), _waiting(say, lambda: f"{program.doing}, {time.perf_counter() - start:.0f} s"):
        warnings.simplefilter("ignore")  # the fallback's warning is printed below
        report = program.prepare(state, made.held_out)
    seconds = time.perf_counter() - start
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


@contextmanager
def _waiting(say: Console, doing: Callable[[], str]) -> Iterator[None]:
    """On a terminal, what is being done and for how long, for as long as it is; in a pipe, that it began."""
    if not say.is_terminal or say.quiet:
        say.print("compiling the step and the evaluation; --no-compile does without")
        yield
        return
    spinner = Spinner("dots")

    def line() -> Spinner:
        spinner.update(text=Text(f"compiling; --no-compile does without: {doing()}"))
        return spinner

    with Live(get_renderable=line, console=say, transient=True, refresh_per_second=8):
        yield


@contextmanager
def _live(say: Console) -> Iterator[Callable[[Report], None]]:
    """On a terminal, a bar of the epoch under way; in a pipe, nothing."""
    if not say.is_terminal or say.quiet:
        yield lambda report: None
        return
    with Progress(BarColumn(), TextColumn("{task.description}"), console=say, transient=True) as progress:
        task = progress.add_task("")

        def show(report: Report) -> None:
            progress.update(task, total=report.batches, completed=report.batch, description=str(report))

        yield show


@contextmanager
def _interrupts(caught: list[int]) -> Iterator[None]:
    """Note the first SIGINT or SIGTERM, so that the loop ends between two steps; a second one ends at once."""

    def note(number: int, _: Any) -> None:
        caught.append(number)
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
