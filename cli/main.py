"""The `pipe` command. torch is imported only by the subcommands, when they run."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click
from attrs import fields

from cli import config

TYPES: dict[str, Any] = {
    **dict.fromkeys(("epochs", "threads", "batch_size", "accumulate", "seed", "save_steps", "keep"), int),
    **dict.fromkeys(("lr", "warmup", "ema", "momentum", "weight_decay", "clip", "dropout", "save_minutes"), float),
    "compile": bool,
}
"""Of the settings that are not text."""


def settings(command: Callable[..., Any], bare: Mapping[str, str] = MappingProxyType({})) -> Callable[..., Any]:
    """An option for each setting. What is not given stays out, so that a config file may give it.

    Those in `bare` may stand without a value, which is "" then; what that does is added to their help.
    """
    for f in reversed(fields(config.TrainConfig)):
        kind = TYPES.get(f.name, str)
        names = [f"{config.flag(f.name)}/--no-{f.name}"] if kind is bool else [config.flag(f.name)]
        shown = ",".join(map(str, f.default)) if isinstance(f.default, tuple) else f.default
        text = (
            f.metadata["help"]
            + bare.get(f.name, "")
            + ("" if f.default is None else f"  [default: {shown}]".replace("True", "on"))
        )
        metavar = None if kind is bool else {int: "N", float: "X"}.get(kind, f.name.upper())
        alone: dict[str, Any] = {"is_flag": False, "flag_value": ""} if f.name in bare else {}
        option = click.option(*names, type=kind, metavar=metavar, default=None, help=text, **alone)
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="pipe-train", prog_name="pipe")
def cli() -> None:
    """Train models with pipelines of pure stages, compiled as one graph."""
    # torch built for CUDA says there that a machine has no GPU; which device is used, we say ourselves.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


@cli.command()
@click.argument("file", required=False, metavar="[CONFIG.toml]")
@settings
@click.option("--resume", metavar="RUN", help="go on with the run in a folder, exactly where its last checkpoint is")
@click.option(
    "--verify",
    is_flag=True,
    help="with --resume: replay from the checkpoint before the last, compare the bits, and stop",
)
@click.option("-q", "--quiet", is_flag=True, help="only the result")
@click.option("-v", "--verbose", is_flag=True, help="the pipeline, the graphs and each class's figures as well")
def train(file: str | None, resume: str | None, verify: bool, quiet: bool, verbose: bool, **given: Any) -> None:
    """Train a model; without arguments, an MLP on handwritten digits.

    CONFIG.toml is the config of an earlier run, which is done again; options given beside it win. With --resume, more
    --epochs or another --lr, --schedule and the like may be given, and are recorded; what makes the run another may
    not.
    """
    if resume is None:
        if verify:
            raise config.refusal("--verify needs --resume RUN, the run to verify")
        from cli import train as command

        command.run(_config(file, given), quiet=quiet, verbose=verbose)
        return
    if file is not None:
        raise config.refusal(f"--resume goes on with the config of its run; leave out {file}")
    old, new = config.resumed(Path(resume), _given(given))
    from cli import train as command

    command.resume(Path(resume), old, new, verify=verify, quiet=quiet, verbose=verbose)


@cli.command()
@click.argument("file", required=False, metavar="[CONFIG.toml]")
@partial(settings, bare={"schedule": "; it is drawn, and without a name that of the run"})
def show(file: str | None, **given: Any) -> None:
    """Show what `pipe train` with the same options would train: stages, parameters and wiring.

    With --schedule, also the course of each hyperparameter that has one.
    """
    draw = given["schedule"] is not None
    given["schedule"] = given["schedule"] or None
    made = _config(file, given)
    from cli import show as command

    command.run(made, draw=draw)


@cli.command()
@click.argument("file", required=False, metavar="[CONFIG.toml]")
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
    from cli import bench as command

    command.run(_config(file, given), seconds=seconds, file=out_json)


@cli.command()
@click.argument("action", default="list", metavar="[list|verify|clear]")
def cache(action: str) -> None:
    """List the compiled programs kept on disk, check that they are whole, or remove them all."""
    from cli import cache as command

    command.run(action)


def _config(file: str | None, given: dict[str, Any]) -> config.TrainConfig:
    earlier = config.read(Path(file)) if file else {}
    earlier.pop("out", None)  # the same run again is another folder
    return config.make({**earlier, **_given(given)})


def _given(given: dict[str, Any]) -> dict[str, Any]:
    """The settings among the options, as plain values."""
    chosen = {name: value for name, value in given.items() if value is not None}
    if "hidden" in chosen:
        try:
            chosen["hidden"] = [int(width) for width in chosen["hidden"].split(",") if width]
        except ValueError:
            raise config.refusal(f"--hidden {chosen['hidden']!r} is no list of widths such as 128,64") from None
    return chosen


def main() -> None:
    """Run the command; every error that a user can meet is one message and the exit code that it knows."""
    try:
        sys.exit(cli.main(prog_name="pipe", standalone_mode=False) or 0)
    except click.exceptions.NoArgsIsHelpError as e:
        click.echo(e.format_message())
        sys.exit(0)
    except click.ClickException as e:
        click.echo(f"pipe: {e.format_message()}", err=True)
        sys.exit(e.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("\npipe: interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read the output has gone; what is still buffered must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as e:
        code = getattr(e, "exit_code", None)  # a PipeError; naming the class would import torch for --help
        if code is None:
            raise
        click.echo(f"pipe: {e}", err=True)
        sys.exit(code)
