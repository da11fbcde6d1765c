"""`pipe train`: train a model, or go on with a run."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from cli import arguments, as_json, completion, config, processes
from cli.flags import settings
from cli.help import Option, SettingsCommand
from cli.recipes.code import is_code
from cli.recipes.setting import refusal

option = partial(click.option, cls=Option, section="Options")
run_option = partial(click.option, cls=Option, section="Run")
processes_option = partial(click.option, cls=Option, section="Processes")


@click.command("train", cls=SettingsCommand)
@arguments.source
@settings
@run_option(
    "--resume",
    metavar="RUN",
    shell_complete=completion.runs,
    short="",
    help="go on with a run, exactly from its last checkpoint",
)
@run_option(
    "--verify", is_flag=True, help="with --resume: replay from the last checkpoint but one and compare the bits"
)
@run_option("--no-eager-start", "eager_steps", type=int, flag_value=0, help="wait for the graph: --eager-steps 0")
@processes_option(
    "--processes", "count", type=click.IntRange(1, 1024), metavar="N", help="train on N processes of this machine"
)
@processes_option(
    "--restarts", type=click.IntRange(0, 10**6), default=0, metavar="N",
    help="with --processes: restart up to N times if one dies, from the last checkpoint  [default: 0]",
)  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="print only the result")
@option("-v", "--verbose", is_flag=True, help="also print the pipeline, the graphs and each class's figures")
@arguments.trusted
@arguments.accepted
def command(
    file: str | None, resume: str | None, verify: bool, quiet: bool, verbose: bool, trust: bool, accept: bool,
    count: int | None, restarts: int, **options: Any,
) -> as_json.Found:  # fmt: skip
    """Train a model; without arguments, that of pipe.toml here, or else an MLP on handwritten digits.

    CONFIG.toml, or the folder of a RUN, is trained again; options replace its settings. FILE.py:FUNCTION returns a
    Pipeline. With --resume, changes such as more --epochs or another --lr or --schedule are recorded; fixed settings
    are refused.

    --processes, or torchrun -m cli.main, trains the same run on several processes; it may go on with another number
    of them.
    """
    if count is not None:
        processes.launch(count, restarts, _without(sys.argv[1:], "--processes", "--restarts"))
        return None
    if restarts:
        raise refusal("--restarts is for --processes; torchrun has --max-restarts")
    if resume is None and processes.restarted() and (begun := processes.noted(processes.FOLDER)):
        file, resume, trust, options = None, begun, True, {}  # it has recorded them
    if resume is not None:
        return _resume(Path(resume), file, options, trust, accept, verify=verify, quiet=quiet, verbose=verbose)
    if verify:
        raise refusal("--verify needs --resume RUN, the run to verify")
    if verbose and not (file and is_code(file)):
        options["assigned"] = ("telemetry=true", *options["assigned"])
    chosen = arguments.train_config(file, options, trust, accept)
    if chosen.run.folds is not None and chosen.run.fold is None:
        from cli.folds import train_folds

        folder = train_folds(chosen, quiet=quiet, verbose=verbose)
    else:
        from cli.training import train

        _, _, folder = train(chosen, quiet=quiet, verbose=verbose)
    return partial(_told, folder)


def _resume(
    folder: Path, file: str | None, options: dict[str, Any], trust: bool, accept: bool, **how: bool
) -> as_json.Found:
    if file is not None:
        raise refusal(f"--resume goes on with the config of its run; leave out {file}")
    chosen = arguments.settings_of(options)
    arguments.check(folder, chosen, trust, accept)
    from cli.resuming import resume, resumed

    old, new = resumed(folder, chosen)
    if runs := config.folds(folder, new):
        if chosen or how.pop("verify"):
            raise refusal(f"{folder} is resumed as it is; for other settings, and to verify, name one run: {runs[0]}")
        for run in runs:
            if os.path.lexists(run / config.CONFIG):
                arguments.check(run, {}, trust)
        from cli import folds

        folds.resume(folder, new, **how)
        return partial(_told, folder)
    _, _, verified = resume(folder, old, new, **how)
    return {**_told(folder), **verified} if verified else partial(_told, folder)


def _told(folder: Path) -> dict[str, Any]:
    """The result of a run, as `pipe runs --json` has it, and of all its folds."""
    from cli.run_table import entry

    table = config.document(folder / config.CONFIG).get(config.FOLDS)
    return {**entry(folder, str(folder)).json, **({config.FOLDS: table} if isinstance(table, dict) else {})}


def _without(arguments: list[str], *names: str) -> list[str]:
    """The arguments of a command line without some options and their values.

    >>> _without(["train", "--processes", "2", "--lr=1", "--restarts=3"], "--processes", "--restarts")
    ['train', '--lr=1']
    """
    rest: list[str] = []
    skip = False
    for argument in arguments:
        if not skip and argument.partition("=")[0] not in names:
            rest.append(argument)
        skip = not skip and argument in names
    return rest
