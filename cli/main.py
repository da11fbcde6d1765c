"""The `pipe` command: its commands, and how it ends. Imports no torch."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import time
from importlib import import_module
from typing import Any, NoReturn

import click

from cli import as_json, ending, processes
from cli.commands import COMMANDS


class Commands(click.Group):
    """A group that imports the file of a command when it is needed."""

    def __init__(self, **options: Any) -> None:
        super().__init__(commands={name: click.Command(name) for name in COMMANDS}, **options)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"cli.commands.{cmd_name}").command
        if cmd_name not in as_json.WITHOUT and as_json.OPTION not in command.params:
            command.params.append(as_json.OPTION)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([*COMMANDS.items()])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="pipe-train", prog_name="pipe")
def cli() -> None:
    """Train models with pipelines of pure stages, compiled as one graph."""
    # torch built for CUDA warns there that a machine has no GPU; we print the device ourselves.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


@cli.result_callback()
@click.pass_context
def _tell(ctx: click.Context, found: as_json.Found) -> None:
    as_json.tell(ctx, found)


def main() -> None:
    """Run the command. Every error that a user can cause is one message and an exit code."""
    ending.with_outputs(_main)


def _main() -> None:
    if "TORCHELASTIC_RUN_ID" in os.environ:
        processes.watch()
    for number in processes.stopping():
        signal.signal(number, processes.interrupted)
    try:
        if (ended := processes.noted(processes.ENDED)) is not None:  # an error that a restart can't fix
            sys.exit(int(ended))
        sys.exit(cli.main(prog_name="pipe", standalone_mode=False) or 0)
    except click.exceptions.NoArgsIsHelpError as e:
        click.echo(e.format_message())
        sys.exit(0)
    except click.ClickException as e:
        _end(e.format_message(), e.exit_code)
    except (click.Abort, KeyboardInterrupt) as e:
        number = next((n for n in (e.__cause__ or e).args if isinstance(n, int)), signal.SIGINT)
        if processes.first():
            click.echo(f"pipe: interrupted by {signal.Signals(number).name}", err=True)
        sys.exit(128 + number)
    except BrokenPipeError:  # the reader of the output is gone
        processes.drop_closed_outputs()
        sys.exit(141)
    except Exception as e:
        _end_by(e)
        raise
    except BaseException as e:
        if (
            type(e).__name__ == "PanicException" and (why := ending.machine_error(e)) is not None
        ):  # a panic of Rust code is no Exception
            _end(why, 2)
        raise


def _end_by(error: Exception) -> None:
    """Exit with an error that a user can cause; return if it is a bug."""
    if type(error).__name__ == "OutOfMemoryError":
        _end(
            f"{str(error).strip().splitlines()[0]}; the device has too little memory: use a smaller --batch-size, "
            "--accumulate or --precision bf16",
            2,
        )
    if not hasattr(error, "exit_code") and (why := ending.machine_error(error)) is not None:
        _end(why, 2)
    if processes.is_lost(error):
        time.sleep(0.5)  # if the launcher is lost too, this process ends here
        if processes.says("lost"):
            why = str(error).strip().splitlines()[0].rpartition("] ")[2].split(". ")[0]
            click.echo(f"pipe: process {os.environ.get('RANK')} lost another one: {why}", err=True)
        sys.exit(1)
    if (code := getattr(error, "exit_code", None)) is not None:  # a PipeError: naming the class would import torch
        _end(_in_flags(str(error)), code)


def _in_flags(message: str) -> str:
    """A message with arguments of Python, such as `skip_bad=True`, as flags."""
    from attrs import fields_dict

    from cli.recipes.data.files import Table

    names = "|".join(fields_dict(Table))
    message = re.sub(
        rf"\b({names})=(?:True|('[^']*'))",
        lambda m: f"--{m[1].replace('_', '-')} {m[2] or ''}".strip(),
        message,
    )
    message = re.sub(r"\brename=\{'([^']*)': '([^']*)'\}", r"--rename \1=\2", message)
    return re.sub(r"\b(grow=|strict=)('[^']*'|False)", lambda m: f"--set {m[1]}{m[2].lower()}", message)


def _end(message: str, code: int) -> NoReturn:
    """Print a message, once for all processes, and exit."""
    if processes.says(message):
        ending.say(message)
        processes.note(processes.ENDED, str(code))
    sys.exit(code)


if __name__ == "__main__":
    main()
