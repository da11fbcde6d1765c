"""What a shell completes: choices of settings, runs, and columns of a table. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from glob import escape, glob
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from cli.config import CONFIG
from cli.recipes.data import DATA
from cli.recipes.metric import METRICS

if TYPE_CHECKING:
    import click
    from click.shell_completion import CompletionItem

Completed = Callable[["click.Context", "click.Parameter", str], "list[CompletionItem]"]
COLUMNS = ("target", "ignore", "categorical", "numeric")
"""Settings that name columns."""
FILES = {"test": "file", "tokenizer": "file", "config": "file", "out": "dir"}
"""Settings that name a path."""
OPEN = {
    "device": ("auto", "cpu", "cuda"),
    "backend": ("auto", "native", "inductor"),
    "class_weights": ("none", "balanced"),
}
"""The usual values of settings that take others too."""
SEPARATORS = ",;\t|"


def of_setting(name: str, known: Iterable[str]) -> Completed:
    """The completion of a setting with such known values."""
    if name in COLUMNS:
        return columns
    if name == "data":
        return data
    if name in FILES:
        return lambda ctx, param, incomplete: _path(FILES[name])
    return names({"best": METRICS, **OPEN}.get(name, known))


def names(known: Iterable[str]) -> Completed:
    """Known names, also after a comma."""
    every = [*known]

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        before, comma, last = incomplete.rpartition(",")
        return _items(before + comma + name for name in every if name.startswith(last))

    return complete


def data(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of data that are no files, with files beside them; or files alone."""
    found = [name for name, recipe in DATA.items() if recipe.bundled and name.startswith(incomplete)]
    return _items(found + sorted(glob(escape(incomplete) + "*"))) if found else _path("file")


def runs(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The runs in runs/, or in the folder that is written already, with the newest first; else files."""
    folders = dict.fromkeys((os.path.dirname(incomplete), "runs"))
    found: dict[str, float] = {}
    for folder in folders:
        with suppress(OSError, ValueError):
            for entry in os.scandir(folder or "."):
                if os.path.lexists(Path(entry.path, CONFIG)):
                    found[os.path.join(folder, entry.name)] = entry.stat().st_mtime
    ours = sorted((run for run in found if run.startswith(incomplete)), key=lambda run: -found[run])
    return _items(ours) if ours else _path("file")


def columns(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The columns of the table that --data names, also after a comma."""
    source = str(ctx.params.get("data") or next(iter(ctx.args), ""))  # an argument before an unfinished option
    return names(_columns(source.removeprefix("table:")))(ctx, param, incomplete)


def _columns(source: str) -> list[str]:
    """The names in the first line of a table; none of a file that can't be read."""
    if not os.path.isfile(source) or find_spec("polars") is None:
        return []
    import polars as pl

    with suppress(Exception, pl.exceptions.PanicException):
        match source.removesuffix(".gz").rpartition(".")[2].lower():
            case "parquet":
                return [*pl.read_parquet_schema(escape(source))]
            case "arrow" | "feather" | "ipc":
                return [*pl.read_ipc_schema(source)]
            case "jsonl" | "ndjson":
                return [*pl.scan_ndjson(escape(source), infer_schema_length=10).collect_schema()]
            case ending:
                some = "\t" if ending == "tsv" else SEPARATORS
                read = (pl.scan_csv(escape(source), separator=s, infer_schema=False).collect_schema() for s in some)
                return [*max(read, key=len)]
    return []


def _items(found: Iterable[str]) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(value) for value in found]


def _path(kind: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [CompletionItem("", type=kind)]
