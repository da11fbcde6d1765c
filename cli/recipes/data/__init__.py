"""Data by kind: one file and one line each."""

from __future__ import annotations

import os
from pathlib import Path
from pkgutil import resolve_name

from cli.recipes.code import is_code
from cli.recipes.data.base import Data, kind_prefix
from cli.recipes.data.custom import Custom
from cli.recipes.setting import refusal

DATA: dict[str, type[Data]] = {
    name: resolve_name(f"cli.recipes.data.{home}")
    for name, home in {
        "digits": "bundled:Digits",
        "random": "bundled:Random",
        "sklearn": "bundled:Sklearn",
        "table": "files:Table",
        "arrays": "files:Arrays",
        "idx": "files:Idx",
        "images": "files:Images",
        "text": "files:Text",
        "tokens": "files:Tokens",
        "chat": "files:Chat",
        "huggingface": "files:HuggingFace",
    }.items()
}
FOLDER = "images"
"""The kind of a folder that no other kind takes."""


def kind_of(source: str) -> str | None:
    """The kind of a source: by its name, by a kind before it (`text:FILE`), or by the file; None if unknown."""
    if source in DATA and DATA[source].bundled:
        return source
    if is_code(source):
        return "custom"
    if kind_prefix(source) in DATA:
        return kind_prefix(source)
    for kind, recipe in DATA.items():
        if recipe.is_file(source):
            return kind
    try:
        names = os.listdir(source) if Path(source).is_dir() else None
    except (OSError, ValueError):  # a name that no file can have, or a folder that may not be listed
        return None
    return None if names is None else next((k for k, r in DATA.items() if r.is_folder(names)), FOLDER)


def unknown(source: str) -> Exception:
    """The error for a source of no kind."""
    if not os.path.lexists(source):
        if source.isidentifier():
            return refusal(f"unknown data {source!r}", source, DATA)
        return refusal(f"unknown data {source!r}: there is no such file")
    others = [f"{kind}:" for kind, recipe in DATA.items() if not (recipe.bundled or kind in ("table", "sklearn"))]
    return refusal(f"{source} has an ending of no kind of data: write table:{source}, or {', '.join(others)} before it")


def help_text() -> str:
    bundled = [kind for kind, recipe in DATA.items() if recipe.bundled]
    read = [kind for kind in DATA if kind not in (*bundled, "sklearn")]
    return (
        f"{', '.join(bundled)}, sklearn:NAME, a file or folder ({', '.join(read)}), KIND:PATH, or FILE.py:FUNCTION "
        "that gives a Dataset"
    )


__all__ = ["DATA", "Custom", "Data", "help_text", "kind_of", "kind_prefix", "unknown"]
