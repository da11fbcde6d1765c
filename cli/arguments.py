"""Arguments that commands share: a config, a run or a function, with settings. Imports no torch."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from attrs import evolve

from cli import completion, config
from cli.flags import kind
from cli.help import Option
from cli.recipes.code import code_in, is_code
from cli.recipes.setting import refusal

if TYPE_CHECKING:
    from cli.saved_run import Past

source = click.argument(
    "file", required=False, metavar="[CONFIG.toml | RUN | FILE.py:FUNCTION]", shell_complete=completion.runs
)
run = click.argument("run", shell_complete=completion.runs)
trusted = click.option(
    "--trust", cls=Option, section="Options", is_flag=True, help="run code named in a file but not on the command line"
)
accepted = click.option(
    "--accept", cls=Option, section="Options", is_flag=True, help="accept and record changes to the run's folder"
)
skip_bad = click.option("--skip-bad", is_flag=True, help="leave out rows of a table that can't be read")
weights = click.option(
    "--weights", default="best", metavar="NAME", shell_complete=completion.names(("best", "last")),
    help="best, last, the step of a checkpoint, or the name of an average  [default: best]",
)  # fmt: skip


SPLIT = ("data.", "model.name", "run.seed", "run.split_seed", "run.fold")
"""Begins of names of settings that choose other training samples."""
HERE = "pipe.toml"
"""The config of a folder, as `pipe init` writes it."""


def here() -> str | None:
    """The config of the current folder, if there is one; says so."""
    if not os.path.isfile(HERE):
        return None
    from cli.progress import warn

    warn(f"settings are those of {HERE}, as no data, config or run is named")
    return HERE


def train_config(
    file: str | None, options: dict[str, Any], trust: bool = False, accept: bool = False, named: Collection[str] = ()
) -> Any:
    """The TrainConfig of a config file, a run or a function, or, if nothing is named, of the current folder; options
    replace its settings. `named` are settings with several values."""
    chosen = settings_of(options)
    if file is None and not {"data", "data.source", "pipeline.name"} & {*chosen, *named}:
        file = here()
    if file is None:
        return config.make(chosen)
    if is_code(file):
        return config.make({**chosen, "pipeline": file})
    path = Path(file) / config.CONFIG if os.path.isdir(file) else Path(file)
    check(Path(file), chosen, trust, accept, run=path != Path(file))
    earlier = config.read(path)
    if changed := config.changed(path):
        from cli.progress import warn

        warn(
            f"{file} was resumed with other options ({changed}). Here the last ones hold from the first step, so the "
            "bits may differ: to train the same run, give the first ones here and the others to --resume"
        )
    earlier.pop("out", None)  # the new run gets a folder of its own
    run = earlier.get("run")
    if isinstance(run, dict):
        earlier["run"] = {name: value for name, value in run.items() if name != "out"}
    facts, moved, digest = config.document(path).get("facts"), {}, None
    if isinstance(facts, dict):
        from cli import record

        moved = record.moved(config.document(path))
        others = config.whole({**dict.fromkeys(named), **chosen})
        digest = None if any(name.startswith(SPLIT) for name in others) else facts.get("data")
    forgotten = {"init_sha256": None} if "finetune.init" in chosen else {}  # it is another file's
    made = config.make(earlier, moved, forgotten, chosen)
    return evolve(made, digest=digest if made.pipeline.name is None else None)


def saved_run(run: str, trust: bool, accept: bool) -> Past:
    """A run loaded from its folder. Raises ConfigError for several."""
    found = saved_runs(run, trust, accept)
    if len(found) > 1:
        raise refusal(f"{run} has a run for each of {len(found)} folds; name one, such as {found[0].folder}")
    return found[0]


def saved_runs(run: str, trust: bool, accept: bool) -> list[Past]:
    """A run loaded from its folder, or the run of each fold in it."""
    check(Path(run), {}, trust, accept)
    from cli.saved_run import Past

    whole = Past(Path(run))
    folds = config.folds(whole.folder, whole.config)
    if not folds:
        return [whole]
    if config.FOLDS not in whole.document:
        raise refusal(f"{run} has not trained all of its {len(folds)} folds; go on with it: pipe train --resume {run}")
    return [saved_run(str(fold), trust, accept) for fold in folds]


def check(path: Path, chosen: dict[str, Any], trust: bool, accept: bool = False, run: bool = True) -> None:
    """Check a config file, or the folder of a run or a sweep, before use.

    Raises ConfigError for code not named on the command line, and for changes that are not accepted.
    """
    if run and accept and os.path.lexists(path / config.CONFIG):
        from cli.folder import accepted

        accepted(path)
    if run:
        config.check_run(path)
    known = code_in(chosen)
    for file in config.files(path) if run else (path,):
        unknown = [name for name in code_in(config.document(file)) if name not in known]
        if unknown and not trust:
            raise refusal(f"{file} names code, {', '.join(unknown)}, which would be run; if you know it, add --trust")


def assigned_settings(texts: tuple[str, ...]) -> dict[str, Any]:
    """The settings of --set: TOML values, or text. A setting that is text stays text: --set steps_per_call=2.

    >>> assigned_settings(("keep=2", "steps_per_call=2", "optimizer.lr=0.1"))
    {'keep': 2, 'steps_per_call': '2', 'optimizer.lr': 0.1}
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise refusal(f"--set {text!r} is no NAME=VALUE, such as optimizer.lr=0.01")
        try:
            found[name.strip()] = tomllib.loads(f"value = {value}")["value"]
        except (tomllib.TOMLDecodeError, RecursionError):
            found[name.strip()] = value
        except ValueError as e:  # such as a number of thousands of digits
            raise refusal(f"a value of --set does not fit: {e}") from None
        if kind(name.strip()) is str and isinstance(found[name.strip()], int | float):
            found[name.strip()] = value.strip()
    return found


def settings_of(options: dict[str, Any]) -> dict[str, Any]:
    """Settings from --set and from flags, by full name; flags win."""
    assigned = assigned_settings(options.pop("assigned", ()))
    chosen = {name: value for name, value in options.items() if value is not None}
    for name in ("hidden", "widths"):
        if isinstance(chosen.get(name), str):
            try:
                chosen[name] = [int(width) for width in chosen[name].split(",") if width]
            except ValueError:
                raise refusal(f"--{name} {chosen[name]!r} is no list of widths such as 128,64") from None
    return {**config.whole(assigned), **config.whole(chosen)}
