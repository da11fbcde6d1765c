"""`--json`: a command's result as one object on stdout, and all that it says otherwise on stderr. Imports no torch."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from typing import Any, TypeAlias

import click

from cli import processes

VERSION = 1
"""Of the objects: a key may be added in one version, and none is removed or gets another meaning."""
WITHOUT = {"completion": "prints a script for a shell"}
"""Commands without --json, and why."""
Found: TypeAlias = Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None
"""What a command returns: its result, or a function that makes it if it is asked for. `ok: False` exits with 1."""
_STREAM = "cli.as_json"


def _begin(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        ctx.meta[_STREAM] = sys.stdout
        ctx.with_resource(redirect_stdout(sys.stderr))


OPTION = click.Option(
    ["--json"], is_flag=True, expose_value=False, callback=_begin, help="print the result as JSON, all else to stderr"
)


def asked() -> bool:
    """Whether the command at hand was given --json."""
    ctx = click.get_current_context(silent=True)
    return ctx is not None and _STREAM in ctx.meta


def tell(ctx: click.Context, found: Found) -> None:
    """Print a command's result if it was given --json; exit with 1 if the result is a failure."""
    if (stream := ctx.meta.get(_STREAM)) is not None and found is not None and processes.first():
        found = found() if callable(found) else found
        whole = {"version": VERSION, "command": ctx.invoked_subcommand, "ok": True, **found}
        stream.write(json.dumps(strict(whole), indent=1, allow_nan=False) + "\n")
        stream.flush()
    if isinstance(found, Mapping) and not found.get("ok", True):
        sys.exit(1)


def strict(value: Any) -> Any:
    """A value as JSON has it: null for NaN and infinities, a list for other sequences, and text for what it lacks.

    >>> strict({"loss": float("nan"), "widths": (64, 32), 1: None})
    {'loss': None, 'widths': [64, 32], '1': None}
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): strict(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [strict(item) for item in value]
    return strict(value.tolist()) if hasattr(value, "tolist") else str(value)
