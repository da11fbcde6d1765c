"""Data by kind: one line each, and how a file tells which it is."""

from __future__ import annotations

import os
from pathlib import Path

from cli.recipes.code import is_code
from cli.recipes.data.base import Data, kind_prefix
from cli.recipes.data.bundled import Digits, Random, Sklearn
from cli.recipes.data.custom import Custom
from cli.recipes.data.files import Arrays, HuggingFace, Idx, Images, Table, Text, Tokens

DATA: dict[str, type[Data]] = {
    "digits": Digits,
    "random": Random,
    "sklearn": Sklearn,
    "table": Table,
    "arrays": Arrays,
    "idx": Idx,
    "images": Images,
    "text": Text,
    "tokens": Tokens,
    "huggingface": HuggingFace,
}
NAMES = ("digits", "random")
"""Those that are no file."""
_ENDS = {
    "table": (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet"),
    "arrays": (".npz", ".npy", ".safetensors"),
    "idx": ("-ubyte", "-ubyte.gz", ".idx", ".idx.gz"),
    "text": (".txt",),
    "tokens": (".bin",),
}


def kind_of(source: str) -> str | None:
    """Which kind a source is, by its name, by the kind in front of it, or by the file; None where nothing tells."""
    if source in NAMES:
        return source
    if is_code(source):
        return "custom"
    if kind_prefix(source) in DATA:
        return kind_prefix(source)
    for kind, ends in _ENDS.items():
        if source.endswith(ends):
            return kind
    try:
        return _folder(Path(source)) if Path(source).is_dir() else None
    except (OSError, ValueError):  # no name that a file could have
        return None


def _folder(path: Path) -> str:
    names = os.listdir(path)
    if any("idx3" in n or "idx1" in n for n in names):
        return "idx"
    if any(n.startswith(("inputs.", "train.")) and n.endswith((".npy", ".npz", ".safetensors")) for n in names):
        return "arrays"
    if {"dataset_info.json", "dataset_dict.json"} & set(names):
        return "huggingface"
    return "images"


__all__ = ["DATA", "NAMES", "Custom", "Data", "kind_of"]
