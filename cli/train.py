"""`pipe train`: the for loop over `fit` that prints, and writes the run's folder."""

from __future__ import annotations

import json
import math
import platform
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from cli import config as settings
from cli.build import Job, job, parameters, threads
from cli.config import TrainConfig
from pipeline import Report, State, evaluate, fit
from pipeline.compiled import Compiled
from pipeline.errors import ConfigError
from pipeline.state import format_metric


def run(config: TrainConfig, *, quiet: bool = False, verbose: bool = False) -> None:
    """Train, printing a line an epoch. What was learned is saved also where the run is interrupted."""
    made = job(config)
    state = made.pipe.init(config.seed)
    torch.set_num_threads(threads(made, state, config.threads))
    made.pipe.check(state, made.held_out)
    folder = _folder(config)
    say = Plain(quiet=quiet, highlight=False, soft_wrap=True, markup=False)
    result = Plain(highlight=False, soft_wrap=True, markup=False)

    say.print(f"data    {config.data}: {made.data}")
    say.print(f"model   {made.model}: {parameters(state.params):,} parameters")
    say.print(
        f"device  {made.pipe.place.device}, {_threads()}{'' if config.precision == 'fp32' else ', ' + config.precision}"
    )
    if verbose:
        say.print(f"\n{made.pipe}\n")
    settings.write(folder / "config.toml", config, _resolved(made, state))
    program = _compile(made, state, say, verbose) if config.compile else False

    fixed = {"auto": None, "epoch": "epoch"}
    per_call: Any = fixed[config.steps_per_call] if config.steps_per_call in fixed else int(config.steps_per_call)
    best: Report | None = None
    signals: list[int] = []
    try:
        with (folder / "metrics.jsonl").open("w", encoding="utf-8") as log, _live(say) as show, _interrupts(signals):
            for report in fit(
                made.pipe, epochs=config.epochs, validate=made.held_out, state=state, compile=program, interval=0.1,
                steps_per_call=per_call,
            ):  # fmt: skip
                state = report.state
                show(report)
                if report.complete:
                    log.write(json.dumps(_line(report)) + "\n")
                    log.flush()
                    if best is None or report.validate[made.best] > best.validate[made.best]:
                        best = report
                    say.print(str(report))
                if signals:
                    break
    finally:
        # Also where the output's reader has gone.
        from safetensors.torch import save_file  # not before the first step

        weights = made.pipe.models[0].state_dict(state.tree)
        save_file({k: t.clone(memory_format=torch.contiguous_format) for k, t in weights.items()}, folder / WEIGHTS)
    if verbose and "accuracy" in report.validate:
        say.print(f"\n{_classes(made, state)}\n")
    if best is not None:
        result.print(f"best    {format_metric(made.best, best.validate[made.best])} in epoch {best.epoch}")
    result.print(f"run     {folder} (config.toml, metrics.jsonl, {WEIGHTS}: the weights as they are now)")
    if signals:
        Plain(stderr=True, soft_wrap=True).print(
            f"pipe: stopped by a signal in epoch {report.epoch}; the weights are saved"
        )
        sys.exit(128 + signals[0])


class Plain(Console):
    """rich's Console, but a reader that has gone is main's to handle."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def _classes(made: Job, state: State) -> str:
    """Each class's precision, recall and F1 on the held-out data."""
    names = made.train.classes
    dim = -1 if made.train.tensors["targets"].ndim > 1 else 1
    confusion = evaluate.confusion(len(names) or int(made.train.tensors["targets"].max()) + 1, dim=dim)
    figures = made.pipe.insert(confusion, after="evaluate.accuracy").evaluate(state, made.held_out)
    rows = zip(figures["precision"], figures["recall"], figures["f1"], strict=True)
    lines = [f"{names[i] if names else i:>8}  {p:9.4f}  {r:6.4f}  {f:6.4f}" for i, (p, r, f) in enumerate(rows)]
    return "\n".join(["   class  precision  recall      F1", *lines])


def _threads() -> str:
    count = torch.get_num_threads()
    return f"{count} thread{'s' if count > 1 else ''}"


WEIGHTS = "model.safetensors"


def _compile(made: Job, state: State, say: Console, verbose: bool) -> Compiled:
    """The compiled step with all its graphs, or one that runs eagerly and said why."""
    program = made.pipe.compile(fallback="eager")
    say.print("compiling the step and the evaluation")
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the fallback's warning is printed below
        report = program.prepare(state, made.held_out)
    seconds = time.perf_counter() - start
    if report.fallback:
        say.print(f"runs uncompiled: {report.fallback}")
    else:
        loaded = sum(g.loaded for g in report.graphs)
        kept = f", {loaded} from the cache" if loaded else ""
        say.print(f"compiled {len(report.graphs)} graphs in {seconds:.1f} s{kept}")
    if verbose:
        say.print(f"{report}\n")
    return program


def _folder(config: TrainConfig) -> Path:
    """The run's folder, made: the one asked for, if no run is in it, or the next free one under runs/."""
    try:
        if config.out is not None:
            folder = Path(config.out)
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / "config.toml").exists():
                raise ConfigError(f"{folder} already holds a run; choose another --out")
        else:
            name = f"{Path(config.data).stem}-{config.model}"
            taken = (Path("runs") / f"{name}-{n}" for n in count(1))
            folder = next(path for path in taken if not path.exists())
            folder.mkdir(parents=True)
        (folder / "metrics.jsonl").touch()
    except OSError as e:
        raise ConfigError(
            f"can't write to the output folder {e.filename}: {e.strerror}; choose another --out"
        ) from None
    return folder


def _resolved(made: Job, state: State) -> dict[str, Any]:
    """What the config records beside the settings, to know the run by."""
    packages = ("pipe-train", "torch", "numpy", "scikit-learn")
    return {
        "run": {
            "device": str(made.pipe.place.device),
            "threads": torch.get_num_threads(),
            "model": made.model,
            "parameters": parameters(state.params),
            "training_samples": len(made.train),
            "held_out_samples": len(made.held_out),
            "hyper": {name: value.item() for name, value in state.hyper.items()},
        },
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def _line(report: Report) -> dict[str, Any]:
    def plain(metrics: Mapping[str, Any]) -> dict[str, Any]:
        # JSON has no NaN.
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}

    return {
        "epoch": report.epoch,
        "step": report.step,
        "train": plain(report.train),
        "validate": plain(report.validate),
        "seconds": report.seconds,
        "samples_per_second": report.samples_per_second,
    }


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
