"""The `pipe` command. torch is imported only by the subcommands, when they run."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from cli import config, ending
from cli import processes as team
from cli.flags import settings
from cli.recipes.code import is_code
from cli.recipes.setting import refusal

if TYPE_CHECKING:
    from cli.saved_run import Past


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="pipe-train", prog_name="pipe")
def cli() -> None:
    """Train models with pipelines of pure stages, compiled as one graph."""
    # torch built for CUDA says there that a machine has no GPU; which device is used, we say ourselves.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


_trusted = click.option("--trust", is_flag=True, help="run code that a file names, not the command line")
_accepted = click.option(
    "--accept", is_flag=True, help="take what was changed in the run's folder as it is, and record that it was"
)


@cli.command()
@click.argument("file", required=False, metavar="[CONFIG.toml | RUN | FILE.py:FUNCTION]")
@settings
@click.option("--resume", metavar="RUN", help="go on with the run in a folder, exactly where its last checkpoint is")
@click.option(
    "--verify",
    is_flag=True,
    help="with --resume: replay from the checkpoint before the last, compare the bits, and stop",
)
@click.option(
    "--processes", type=click.IntRange(1, 1024), metavar="N", help="train on so many processes of this machine together"
)
@click.option(
    "--restarts", type=click.IntRange(0, 10**6), default=0, metavar="N",
    help="with --processes: so often, where one dies, go on from the last checkpoint  [default: 0]",
)  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="only the result")
@click.option("-v", "--verbose", is_flag=True, help="the pipeline, the graphs and each class's figures as well")
@_trusted
@_accepted
def train(
    file: str | None, resume: str | None, verify: bool, quiet: bool, verbose: bool, trust: bool, accept: bool,
    processes: int | None, restarts: int, **given: Any,
) -> None:  # fmt: skip
    """Train a model; without arguments, an MLP on handwritten digits.

    CONFIG.toml, or the folder of an earlier RUN, is what is done again; options given beside it win.
    FILE.py:FUNCTION makes a whole Pipeline. With --resume, more --epochs or another --lr, --schedule and the like may
    be given, and are recorded; what makes the run another may not.

    A run on several processes, by --processes or by torchrun -m cli.main, is the same run; it may go on with another
    number of them.
    """
    if processes is not None:
        team.launch(processes, restarts, _without(sys.argv[1:], "--processes", "--restarts"))
        return
    if restarts:
        raise refusal("--restarts is for --processes; with torchrun it is --max-restarts")
    if team.restarted() and resume is None and (begun := team.noted(team.FOLDER)) is not None:
        file, resume = None, begun
    if resume is None:
        if verify:
            raise refusal("--verify needs --resume RUN, the run to verify")
        from cli.commands import train as command

        if verbose and not (file and is_code(file)):
            given["telemetry"] = True if given["telemetry"] is None else given["telemetry"]
        made = _config(file, given, trust, accept)
        whole = made.run.folds is not None and made.run.fold is None
        (command.folds if whole else command.run)(made, quiet=quiet, verbose=verbose)
        return
    if file is not None:
        raise refusal(f"--resume goes on with the config of its run; leave out {file}")
    chosen = _given(given)
    _check(Path(resume), chosen, trust, accept)
    old, new = config.resumed(Path(resume), chosen)
    from cli.commands import train as command

    command.resume(Path(resume), old, new, verify=verify, quiet=quiet, verbose=verbose)


@cli.command()
@click.argument("file", required=False, metavar="[CONFIG.toml | RUN | FILE.py:FUNCTION]")
@partial(settings, several=True)
@click.option("--seeds", type=click.IntRange(1, 10**9), metavar="N", help="runs of each setting  [default: 1]")
@click.option(
    "--random", "draws", type=click.IntRange(1, 10**9), metavar="N", help="draw so many settings, instead of a grid"
)
@click.option(
    "--at-once", type=click.IntRange(1), metavar="N",
    help="so many members are trained side by side, if there are more  [default: as many as is fastest here]",
)  # fmt: skip
@click.option("--halving", is_flag=True, help="let the better half go on, again and again: the best ones do all epochs")
@click.option("--resume", metavar="SWEEP", help="go on with the sweep in a folder")
@click.option("-q", "--quiet", is_flag=True, help="only the result")
@_trusted
@_accepted
def sweep(
    file: str | None, seeds: int | None, draws: int | None, at_once: int | None, halving: bool, resume: str | None,
    quiet: bool, trust: bool, accept: bool, **given: Any,
) -> None:  # fmt: skip
    """Train many models at once, one for each setting and seed, as one compiled step.

    Any setting may have several values, --momentum 0,0.9 or --optimizer sgd,adamw, and numbers a range,
    --lr 0.001..1:log:16; all combinations are trained. With --random N, so many are drawn: --lr 0.001..1:log.

    Numbers that a step reads as data (lr, momentum, weight_decay, clip, ema) share one program; other settings make
    groups, which are compiled and trained one after the other. Each member is the run that pipe train makes of its
    settings, and has a folder of one: pipe train --resume runs/.../best goes on with the best one.
    """
    from cli.commands import sweep as command

    if resume is not None:
        others = (file, seeds, draws, at_once, halving or None, *given.values())
        if any(v not in (None, ()) for v in others):
            raise refusal("--resume goes on with the settings of its sweep; leave out others")
        _check(Path(resume), {}, trust, accept)
        command.resume(Path(resume), quiet=quiet)
        return
    from cli.sweep.grid import parted

    assigned = given.pop("assigned", ())
    single, axes = parted({name: value for name, value in given.items() if value is not None})
    base = _config(file, {**single, "assigned": assigned}, trust, accept)
    command.run(base, axes, seeds=seeds or 1, draws=draws, at_once=at_once, halving=halving, quiet=quiet)


@cli.command("set")
@click.argument("run")
@click.argument("assigned", nargs=-1, required=True, metavar="NAME=VALUE ...")
@_trusted
def set_(run: str, assigned: tuple[str, ...], trust: bool) -> None:
    """Change settings with which a RUN goes on, such as lr=0.01, or data=PLACE if its data have moved."""
    chosen = config.whole(config.assigned(assigned))
    _check(Path(run), chosen, trust)
    from cli.commands import set as command

    command.run(Path(run), chosen)


@cli.command()
@click.argument("file", required=False, metavar="[CONFIG.toml | RUN | FILE.py:FUNCTION]")
@partial(settings, bare={"schedule": "; it is drawn, and without a name that of the run"})
def show(file: str | None, **given: Any) -> None:
    """Show what `pipe train` with the same options would train: stages, parameters and wiring.

    With --schedule, also the course of each hyperparameter that has one.
    """
    draw = given["schedule"] is not None
    given["schedule"] = given["schedule"] or None
    made = _config(file, given)
    from cli.commands import show as command

    command.run(made, draw=draw)


@cli.command()
@click.argument("file", required=False, metavar="[CONFIG.toml | RUN | FILE.py:FUNCTION]")
@settings
@click.option("--seconds", type=float, metavar="X", default=2.0, help="how long each way is measured  [default: 2]")
@click.option("--json", "out_json", metavar="FILE", help="write the figures, each round's too, to a file")
def bench(file: str | None, seconds: float, out_json: str | None, **given: Any) -> None:
    """Measure how fast `pipe train` with the same options would step on this machine. Trains nothing.

    Each way to step is timed in turns: eagerly, compiled with one step a call, and fused, many steps a call. The floor
    is a step's matrix products (and convolutions and attention) by themselves: called from Python one by one, as one
    eager step has them, without bias, activations, loss, update or batch. Small ones can be quicker inside a fused
    step.
    """
    from cli.commands import bench as command

    command.run(_config(file, given), seconds=seconds, file=out_json)


@cli.command()
@click.argument("data")
@click.option("--out", default="pipe.toml", metavar="FILE", help="the file to write  [default: pipe.toml]")
def init(data: str, out: str) -> None:
    """Look at DATA, as --data takes them, and write a commented config to start from: pipe train pipe.toml."""
    from cli.commands import init as command

    command.run(data, out)


_weights = click.option(
    "--weights", default="best", metavar="NAME",
    help="best, last, the step of a checkpoint, or an average that was kept  [default: best]",
)  # fmt: skip


@cli.command()
@click.argument("run")
@click.option("--prompt", default="\n", metavar="TEXT", help="what the text begins with")
@click.option("--count", type=click.IntRange(1, 10**7), default=200, metavar="N", help="tokens to make  [default: 200]")
@click.option(
    "--temperature", type=click.FloatRange(0), default=0.8, metavar="X", help="0 for the likeliest  [default: 0.8]"
)
@click.option("--top-k", type=click.IntRange(1), default=None, metavar="N", help="draw among so many  [default: all]")
@click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=0, metavar="N", help="of what is drawn  [default: 0]"
)
@_weights
@_trusted
@_accepted
def sample(
    run: str, prompt: str, count: int, temperature: float, top_k: int | None, seed: int, weights: str, trust: bool,
    accept: bool,
) -> None:  # fmt: skip
    """Continue a text with the model of a RUN that learned one."""
    past = _past(run, trust, accept)
    from cli.commands import sample as command

    command.run(past, prompt, weights=weights, count=count, temperature=temperature, top_k=top_k, seed=seed)


@cli.command("eval")
@click.argument("run")
@click.option("--data", metavar="DATA", help="other data of the same kind  [default: what the run held out]")
@click.option("--json", "as_json", is_flag=True, help="as JSON")
@click.option("--weights", default="best", help="best, last, or the step of a checkpoint  [default: best]")
@_trusted
@_accepted
def evaluate(run: str, data: str | None, as_json: bool, weights: str, trust: bool, accept: bool) -> None:
    """Measure a RUN's model: every metric, each class, and what is taken for what.

    On the data that the run held out, the figures are those that training printed for that epoch.
    """
    past = _past(run, trust, accept)
    from cli.commands import evaluate as command

    command.run(past, data, weights=weights, as_json=as_json)


@cli.command()
@click.argument("run")
@click.option("--data", required=True, metavar="DATA", help="a file or folder as the run was trained on")
@click.option("--out", metavar="FILE", help="preds.csv, .parquet or .npz  [default: CSV to the terminal]")
@click.option("--raw-text", is_flag=True, help="CSV with texts as they are, formulas and control characters too")
@_weights
@_trusted
@_accepted
def predict(
    run: str, data: str, out: str | None, raw_text: bool, weights: str, trust: bool, accept: bool
) -> None:  # fmt: skip
    """Let a RUN's model predict other DATA: its rows, in their order, with what is predicted beside them.

    Columns are matched by name; the target may be missing. A file may be larger than memory. A .npz file has the
    predictions alone. As CSV, a text that a spreadsheet would take for a formula has a ' in front.
    """
    past = _past(run, trust, accept)
    from cli.commands import predict as command

    command.run(past, data, out, weights=weights, raw=raw_text)


@cli.command()
@click.argument("run")
@click.option(
    "--format", "kind", type=click.Choice(["torch", "onnx", "weights"]), default="torch",
    help="a torch.export program, ONNX, or the weights alone  [default: torch]",
)  # fmt: skip
@click.option("--out", metavar="FILE", help="[default: RUN/model.pt2, model.onnx or weights.safetensors]")
@_weights
@_trusted
@_accepted
def export(run: str, kind: str, out: str | None, weights: str, trust: bool, accept: bool) -> None:
    """Write a RUN's model as a file that needs nothing of ours, with what prepares the data inside.

    Batches may be of any size. It is compared with the model on held-out samples before it is written, and a JSON
    beside it says what goes in and what comes out.
    """
    past = _past(run, trust, accept)
    from cli.commands import export as command

    command.run(past, kind, out, weights=weights)


@cli.command()
@click.argument("folders", nargs=-1, metavar="[FOLDER | RUN RUN ...]")
@click.option("--sort", metavar="NAME", help="a metric, epochs, seconds, or a setting; the best first")
@click.option("--filter", "filters", multiple=True, metavar="NAME=VALUE", help="only runs with this setting or state")
@click.option("--json", "as_json", is_flag=True, help="as JSON")
def runs(folders: tuple[str, ...], sort: str | None, filters: tuple[str, ...], as_json: bool) -> None:
    """List the runs in a FOLDER, with the settings in which they differ; of two or more RUNs, these side by side."""
    from cli.commands import runs as command

    command.run(folders, sort=sort, filters=filters, as_json=as_json)


@cli.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN [RUN ...]")
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="to show, such as loss  [default: all]")
@click.option("--out", metavar="FILE", help="[default: the run's curves.svg; of several, curves.png here]")
def plot(runs: tuple[str, ...], metrics: tuple[str, ...], out: str | None) -> None:
    """Draw the curves of a RUN, or of several over each other."""
    from cli.commands import plot as command

    command.run([Path(run) for run in runs], metrics, out)


@cli.command()
@click.argument("run")
@click.option("--out", metavar="FILE", help="[default: RUN/report.html]")
@_trusted
@_accepted
def report(run: str, out: str | None, trust: bool, accept: bool) -> None:
    """Write what a RUN trained and how well as one HTML file: curves, classes, what was told worst, settings."""
    past = _past(run, trust, accept)
    from cli.commands import report as command

    command.run(past, out)


@cli.command()
@click.argument("action", default="list", metavar="[list|verify|clear]")
def cache(action: str) -> None:
    """List the compiled programs kept on disk, check that they are whole, or remove them all."""
    from cli.commands import cache as command

    command.run(action)


def _without(arguments: list[str], *names: str) -> list[str]:
    """Arguments of a command line, but for some options that have a value."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if not skip and argument.partition("=")[0] not in names:
            kept.append(argument)
        skip = not skip and argument in names
    return kept


def _config(file: str | None, given: dict[str, Any], trust: bool = False, accept: bool = False) -> config.TrainConfig:
    chosen = _given(given)
    if file is None:
        return config.make(chosen)
    if is_code(file):
        return config.make({**chosen, "pipeline": file})
    path = Path(file) / config.CONFIG if os.path.isdir(file) else Path(file)
    _check(Path(file), chosen, trust, accept, run=path != Path(file))
    earlier = config.read(path)
    if changed := config.changed(path):
        from cli.progress import warn

        warn(
            f"{file} was resumed with other options ({changed}); here the last ones hold from the first step, so "
            "the bits may be others: for the same, give the first ones, and the others to --resume"
        )
    earlier.pop("out", None)  # the same run again is another folder
    run = earlier.get("run")
    if isinstance(run, dict):
        earlier["run"] = {name: value for name, value in run.items() if name != "out"}
    return config.make(earlier, chosen)


def _past(run: str, trust: bool, accept: bool) -> Past:
    """A run that was made."""
    _check(Path(run), {}, trust, accept)
    from cli.saved_run import Past

    return Past(Path(run))


def _check(path: Path, given: dict[str, Any], trust: bool, accept: bool = False, run: bool = True) -> None:
    """Raise ConfigError where a config, or a file in the folder of a run or a sweep, names code that the command line
    does not name, or is not what was written and not accepted."""
    if run and accept and os.path.lexists(path / config.CONFIG):
        from cli.folder import accepted

        accepted(path)
    if run:
        config.check_run(path)
    known = config.code_in(given)
    for file in config.files(path) if run else (path,):
        unknown = [name for name in config.code_in(config.document(file)) if name not in known]
        if unknown and not trust:
            raise refusal(f"{file} names code, {', '.join(unknown)}, which would be run; if you know it, add --trust")


def _given(given: dict[str, Any]) -> dict[str, Any]:
    """The settings among the options, as plain values: those of --set, and those of flags, which win."""
    assigned = config.assigned(given.pop("assigned", ()))
    chosen = {name: value for name, value in given.items() if value is not None}
    for name in ("hidden", "widths"):
        if name in chosen:
            try:
                chosen[name] = [int(width) for width in chosen[name].split(",") if width]
            except ValueError:
                raise refusal(f"--{name} {chosen[name]!r} is no list of widths such as 128,64") from None
    return {**config.whole(assigned), **config.whole(chosen)}


def main() -> None:
    """Run the command; every error that a user can meet is one message and the exit code that it knows."""
    ending.with_outputs(_main)


def _main() -> None:
    if "TORCHELASTIC_RUN_ID" in os.environ:
        team.watch()
    for number in team.stopping():
        signal.signal(number, team.interrupted)
    try:
        if (ended := team.noted(team.ENDED)) is not None:  # nothing that a restart could mend
            sys.exit(int(ended))
        sys.exit(cli.main(prog_name="pipe", standalone_mode=False) or 0)
    except click.exceptions.NoArgsIsHelpError as e:
        click.echo(e.format_message())
        sys.exit(0)
    except click.ClickException as e:
        _end(e.format_message(), e.exit_code)
    except (click.Abort, KeyboardInterrupt) as e:
        number = next((n for n in (e.__cause__ or e).args if isinstance(n, int)), signal.SIGINT)
        if team.first():
            click.echo(f"pipe: interrupted by {signal.Signals(number).name}", err=True)
        sys.exit(128 + number)
    except BrokenPipeError:  # whoever read the output has gone
        team.let_go()
        sys.exit(141)
    except Exception as e:
        if type(e).__name__ == "OutOfMemoryError":
            _end(
                f"{str(e).strip().splitlines()[0]}; the device has too little memory: use a smaller --batch-size, "
                "--accumulate or --precision bf16",
                2,
            )
        if not hasattr(e, "exit_code") and (why := ending.words(e)) is not None:
            _end(why, 2)
        code = getattr(e, "exit_code", None)  # a PipeError; naming the class would import torch for --help
        lost = team.is_lost(e)
        if lost:
            time.sleep(0.5)  # if the launcher is lost, this ends here
        if code is None and not lost:
            raise
        if code is None or lost:
            if team.says("lost"):
                why = str(e).strip().splitlines()[0].rpartition("] ")[2].split(". ")[0]
                click.echo(f"pipe: process {os.environ.get('RANK')} lost another one: {why}", err=True)
            sys.exit(1)
        _end(str(e), code)
    except BaseException as e:
        if type(e).__name__ != "PanicException" or (why := ending.words(e)) is None:  # of Rust, no Exception
            raise
        _end(why, 2)


def _end(message: str, code: int) -> NoReturn:
    """Say what a user can mend, once for all processes, and end."""
    if team.says(message):
        ending.say(message)
        team.note(team.ENDED, str(code))
    sys.exit(code)


if __name__ == "__main__":
    main()
