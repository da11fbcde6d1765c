"""`pipe init`: a commented config to start from."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli import as_json, completion, config
from cli import schema as schemas
from cli.recipes import TABLES, settings
from cli.recipes.setting import refusal
from cli.schema import FILE

if TYPE_CHECKING:
    from pipeline.sources import Prepared

SMALL = 16
"""Images of fewer pixels in height or width go to an MLP."""


@click.command("init")
@click.argument("data", required=False, shell_complete=completion.data)
@click.option("--out", default="pipe.toml", metavar="FILE", help="the file to write", show_default=True)
@click.option("--schema", is_flag=True, help=f"print the JSON schema of configs, for editors: > {FILE}")
def command(data: str | None, out: str, schema: bool) -> as_json.Found:
    """Inspect DATA, a value of --data, and write a commented config to start from: pipe train pipe.toml."""
    if schema:
        click.echo(json.dumps(made := schemas.schema(), indent=1))
        return {"schema": made}
    if data is None:
        raise refusal("name the data to write a config for, such as: pipe init digits")
    return write_config(data, Path(out))


def write_config(source: str, path: Path) -> dict[str, Any]:
    """Write a config with all settings: the chosen recipes, and the others as comments. Returns what it is for."""
    from cli.folder import replace
    from cli.progress import tell
    from cli.settled import settled
    from pipeline.sources import Split
    from pipeline.text import shown

    if path.exists():
        raise refusal(f"{path} exists already; name another file by --out")
    start = config.make({"data": source})
    data = start.data.prepare(Split(start.data.held_out, start.run.seed))
    model = _model(source, data)
    if not (model == "mlp" and start.model.name == "table"):
        start = config.make({"data": source, "model": model})
    chosen, _ = settled(start, data)
    if not chosen.settled:
        chosen = config.make({"data": source, "model": model, "optimizer": "adamw"})
    notes = [f"pipe train {path}", *data.lines]
    lines = ["#:schema ./" + FILE] if (path.parent / FILE).is_file() else []  # Taplo and Even Better TOML read it
    lines += [*(f"# {shown(note, lines=False)}" for note in notes), ""]
    for table in TABLES:
        if table != "pipeline":
            lines += _table(table, getattr(chosen, table), chosen.given)
    replace(path, "\n".join(lines).encode())
    tell(f"{path}: {data.task} of {len(data.train):,} samples by {chosen.model.name}; pipe train {path}")
    return {"file": str(path), "data": source, "task": data.task, "training_samples": len(data.train),
            "model": chosen.model.name}  # fmt: skip


def _model(source: str, data: Prepared) -> str:
    """A model to start from."""
    from cli.prepared import fixed

    what = fixed(source, data)
    if data.task == "language modelling":
        return "transformer"
    if not what.floats:
        return "lstm"
    return "resnet" if len(what.inputs) == 3 and min(what.inputs[1:]) >= SMALL else "mlp"


def _table(table: str, recipe: Any, decided: Collection[str]) -> list[str]:
    """A table of TOML: the name of the recipe, the settings decided by the data, and the others as comments."""
    import tomli_w

    from pipeline.text import shown

    lines = [f"[{table}]"]
    for name, f in settings(type(recipe)).items():
        value = getattr(recipe, name)
        about = f.metadata["help"] or TABLES[table].help
        if value is None:
            lines.append(f"# {name} =   # {about}")
        else:
            text = tomli_w.dumps({name: list(value) if isinstance(value, tuple) else value}, multiline_strings=False)
            text = text.strip() if isinstance(value, str) else " ".join(text.split())
            comment = "" if name == TABLES[table].key or f"{table}.{name}" in decided else "# "
            lines.append(f"{comment}{shown(text, lines=False)}   # {about}")
    return [*lines, ""]
