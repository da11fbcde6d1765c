"""`pipe compare`: whether one setting is better than another."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from cli import arguments, as_json
from cli.recipes.code import is_code
from cli.recipes.setting import refusal


@click.command("compare")
@click.argument("a", required=False, metavar="[A]")
@click.argument("b", required=False, metavar="[B]")
@click.option("--set", "assigned", multiple=True, metavar="NAME=VALUE", help="change a setting of B, such as lr=0.02")
@click.option("--seeds", type=click.IntRange(2, 10**6), metavar="N", help="pairs of runs  [default: 16]")
@click.option(
    "--metric", metavar="NAME", help="of held-out samples, after the last epoch  [default: of the best epoch]"
)
@click.option(
    "--out", metavar="FOLDER", help="its folder, or one to go on with  [default: the next free runs/compare-N]"
)
@click.option("--no-compile", is_flag=True, help="train both uncompiled")
@click.option("-q", "--quiet", is_flag=True, help="print only the result")
@arguments.trusted
@arguments.accepted
def command(
    a: str | None, b: str | None, assigned: tuple[str, ...], seeds: int | None, metric: str | None, out: str | None,
    no_compile: bool, quiet: bool, trust: bool, accept: bool,
) -> as_json.Found:  # fmt: skip
    """Tell whether setting B is better than A by training both with the same seeds.

    A and B are each a CONFIG.toml, a run or FILE.py:FUNCTION; without B, it is A as changed by --set, and without A, A
    is the pipe.toml of the current folder. Run i of both has seed s + i, s being the --seed of the settings, which all
    share one split. The result is their mean difference with its 95 % interval, the p of the paired t test, and the
    number of seeds that would settle it.

    With the --out of an earlier comparison, only seeds that it does not have yet are trained.
    """
    if b is None and not assigned:
        raise refusal("there is nothing to compare with: name B, or change A, such as by --set lr=0.02")
    if (a := a or arguments.here()) is None:
        raise refusal("name A, the setting to compare with, such as a.toml or runs/digits-mlp-1")
    a, b = _found(a), _found(b or a)
    first = arguments.train_config(a, {}, trust, accept)
    second = arguments.train_config(b, {"assigned": assigned}, trust, accept)
    from cli import comparison

    how: dict[str, Any] = {"threads": None} if os.path.isdir(a) else {}  # a run alone takes fewer than many at once
    how |= {"compile": False, "backend": "auto"} if no_compile else {}
    return comparison.run(first, second, seeds=seeds, metric=metric, out=out, how=how, quiet=quiet, accept=accept)


def _found(name: str) -> str:
    """A config, a run or a function, or a run by its name in runs/."""
    if is_code(name) or os.path.lexists(name):
        return name
    if os.path.lexists(Path("runs", name)):
        return str(Path("runs", name))
    known = [*Path().glob("*.toml"), *Path().glob("runs/*")]
    raise refusal(f"there is no config or run {name}", name, [str(p) for p in known] + [p.name for p in known])
