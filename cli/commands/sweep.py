"""`pipe sweep`: train many models at once."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from cli import arguments, as_json, completion
from cli.flags import settings
from cli.help import SettingsCommand
from cli.recipes import home
from cli.recipes.setting import flag, given, refusal

UNUSED = [("run", name) for name in ("eager_steps", "keep", "steps_per_call")]
"""Settings of a run alone."""


@click.command("sweep", cls=SettingsCommand)
@arguments.source
@partial(settings, several=True)
@click.option("--seeds", type=click.IntRange(1, 10**9), metavar="N", help="seeds per setting  [default: 1]")
@click.option("--random", "draws", type=click.IntRange(1, 10**9), metavar="N", help="draw N settings instead of a grid")
@click.option(
    "--at-once", type=click.IntRange(1), metavar="N",
    help="train at most N members side by side  [default: 32, or as many as fit in memory]",
)  # fmt: skip
@click.option("--halving", is_flag=True, help="successive halving: only the better half goes on, again and again")
@click.option("--resume", metavar="SWEEP", shell_complete=completion.runs, help="go on with a sweep")
@click.option("-q", "--quiet", is_flag=True, help="print only the result")
@arguments.trusted
@arguments.accepted
def command(
    file: str | None, seeds: int | None, draws: int | None, at_once: int | None, halving: bool, resume: str | None,
    quiet: bool, trust: bool, accept: bool, **options: Any,
) -> as_json.Found:  # fmt: skip
    """Train many models at once, one for each setting and seed, as one compiled step. A number may have several
    values, --momentum 0,0.9, or a range, --lr 0.001..1:log:16, and so may the names of a model, an optimizer, a
    schedule and a loss: --optimizer sgd,adamw. All combinations are trained; --random N draws N of them from ranges:
    --lr 0.001..1:log.

    Numbers that a step reads as data (lr, momentum, weight_decay, clip, ema) share one program. Other settings form
    groups, which are compiled and trained one after the other. Each member equals pipe train with its settings, and has
    its own folder: pipe train --resume runs/.../best goes on with the best one.
    """
    if resume is not None:
        others = (file, seeds, draws, at_once, halving or None, *options.values())
        if any(v not in (None, ()) for v in others):
            raise refusal("--resume goes on with the settings of its sweep; leave out others")
        arguments.check(Path(resume), {}, trust, accept)
        from cli.sweep import run

        return run.resume(Path(resume), quiet=quiet)
    from cli.progress import warn
    from cli.sweep.grid import split_axes

    assigned = arguments.assigned_settings(options.pop("assigned"))
    flags = {name: value for name, value in options.items() if value is not None}
    places = [home(name) for name in (*assigned, *flags)]
    for place in filter(None, places):
        if places.count(place) > 1:
            raise refusal(f"{'.'.join(place)} is given twice; leave one out")
        if place in UNUSED:  # a run's config may bring one
            raise refusal(f"{flag(place[1])} does not apply to a sweep; leave it out")
    single, axes = split_axes({**assigned, **flags})
    lists = [given(name, text) for name, text in single.items() if name in ("hidden", "widths") and "," in str(text)]
    if lists and not axes and (seeds or 1) == 1:
        warn(f"nothing varies: {lists[0]} is one model, with a layer of each width")
    base = arguments.train_config(file, single, trust, accept, [a.name for a in axes])
    from cli.sweep import run

    return run.run(base, axes, seeds=seeds or 1, draws=draws, at_once=at_once, halving=halving, quiet=quiet)
