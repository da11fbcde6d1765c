"""`pipe init`: a commented file to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomli_w

from cli import config
from cli.build import fixed
from cli.folder import replace
from cli.progress import tell
from cli.recipes import TABLES, settings
from cli.recipes.setting import refusal
from pipeline.sources import Prepared, Split
from pipeline.text import shown

MODELS = {"language modelling": "transformer"}
"""Task -> the model to start from; for others an MLP, or a resnet for images of some size."""
SMALL = 16
"""Images of fewer pixels in height or width are rows of numbers as well."""


def run(source: str, file: str) -> None:
    """Look at the data, and write a file for `pipe train` with all settings, commented."""
    path = Path(file)
    if path.exists():
        raise refusal(f"{path} exists already; name another file by --out")
    start = config.make({"data": source})
    data = start.data.prepare(Split(start.data.held_out, start.run.seed))
    made = config.make({"data": source, "model": _model(source, data), "optimizer": "adamw"})
    lines = [
        f"# pipe train {shown(str(path), lines=False)}",
        *(f"# {shown(note, lines=False)}" for note in data.notes),
        "",
    ]
    for table in TABLES:
        if table != "pipeline":
            lines += _table(table, getattr(made, table))
    replace(path, "\n".join(lines).encode())
    tell(f"{path}: {data.task} of {len(data.train):,} samples by {made.model.name}; pipe train {path}")


def _model(source: str, data: Prepared) -> str:
    what = fixed(source, data)
    if data.task in MODELS or not what.floats:
        return MODELS.get(data.task, "lstm")
    return "resnet" if len(what.inputs) == 3 and min(what.inputs[1:]) >= SMALL else "mlp"


def _table(table: str, recipe: Any) -> list[str]:
    lines = [f"[{table}]"]
    for name, f in settings(type(recipe)).items():
        value = getattr(recipe, name)
        about = f.metadata["help"] or TABLES[table].help
        if value is None:
            lines.append(f"# {name} =   # {about}")
        else:
            text = tomli_w.dumps({name: list(value) if isinstance(value, tuple) else value}, multiline_strings=False)
            chosen = name == TABLES[table].key
            text = text.strip() if isinstance(value, str) else " ".join(text.split())
            lines.append(f"{'' if chosen else '# '}{shown(text, lines=False)}   # {about}")
    return [*lines, ""]
