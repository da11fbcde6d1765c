"""The JSON schema of a config file, made from the settings of the recipes. Imports no torch."""

from __future__ import annotations

from itertools import chain
from typing import Any

from cli import recipes
from cli.config import FOLDS, RECORDS
from cli.flags import type_of
from cli.recipes import TABLES, Table, flag_name

FILE = "pipe.schema.json"
"""Its file: a config that `pipe init` writes beside one names it."""
CODE = {"pattern": r"^(.+\.py|\w+(\.\w+)+):\w+$"}
"""FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION."""
FOLDER = {"pattern": r"/|^\.\.?$"}
"""A folder; one of the current folder is ./NAME."""
_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", tuple: "array", list: "array"}


def schema() -> dict[str, Any]:
    """A JSON schema (draft 2020-12): each table, and each setting by the name of its flag outside of them."""
    tables = {name: _table(name, t) for name, t in TABLES.items()}
    flat = {
        flag_name(name, key): {"$ref": f"#/properties/{name}/properties/{key}"}
        for name, table in tables.items()
        for key in table["properties"]
    }
    records: dict[str, Any] = {name: {"description": "recorded by a run"} for name in RECORDS}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A config of pipe train",
        "type": "object",
        "properties": {**flat, **tables, **records, FOLDS: {"anyOf": [flat[FOLDS], {"type": "object"}]}},
        "additionalProperties": False,
    }


def _table(name: str, t: Table) -> dict[str, Any]:
    each: dict[str, list[Any]] = {}
    for recipe in t.recipes:
        for key, f in recipes.settings(recipe).items():
            each.setdefault(key, []).append(f)
    table: dict[str, Any] = {
        "type": ["object", "string"] if t.key else "object",
        "properties": {key: _setting(t, key, fields) for key, fields in each.items()},
    }
    if t.key:  # its recipe's name alone
        table["allOf"] = [{"if": {"type": "string"}, "then": {"$ref": f"#/properties/{name}/properties/{t.key}"}}]
    if t.own is None:
        return {**table, "additionalProperties": False}
    own = {"required": [t.key], "properties": {t.key: CODE}}  # then the rest are arguments of that function
    return {**table, "if": own, "else": {"propertyNames": {"enum": [*each]}}}


def _setting(t: Table, key: str, fields: list[Any]) -> dict[str, Any]:
    """A setting that some recipes of a table have. Its default is told if they agree on it."""
    f, kind, each = fields[0], type_of(fields[0]), [other.metadata["known"] for other in fields]
    known = [*dict.fromkeys(chain(*each))] if all(each) else []
    if key == t.key:
        known = [*t.names] if t.recipe is not recipes.data.Data else []
    value: dict[str, Any] = {"type": _TYPES[kind], "description": (key == t.key and t.help) or f.metadata["help"]}
    one = {**({"enum": list(known)} if known else {}), **f.metadata["bounds"]}
    own = key == t.key and t.own and t.recipe is not recipes.data.Data
    if own or (known and kind is list):
        folder = [FOLDER] if own and t.folder else []
        one = {"anyOf": [*([one] if known else []), CODE, *folder, *f.metadata["forms"]]}
    value |= {"items": {"type": "string" if kind is list else "integer", **one}} if kind in (tuple, list) else one
    defaults = {other.default for other in fields}
    return value if len(defaults) > 1 or f.default is None else {**value, "default": f.default}
