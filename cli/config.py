"""The settings of a run: layered, checked, and read from TOML. Imports no torch, so that help is quick."""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import cattrs
from attrs import asdict, evolve, field, fields, frozen

from cli import seal
from cli.recipes import TABLES, flag_name, home, settings
from cli.recipes.data import Data, unknown
from cli.recipes.finetune import Finetune
from cli.recipes.loss import Loss
from cli.recipes.metric import Metrics, best_result
from cli.recipes.model import Model, Pretrained
from cli.recipes.pipeline import IN_PIPELINE, OwnPipeline
from cli.recipes.rule import NUMBERS, Rule
from cli.recipes.run import Run
from cli.recipes.schedule import Course
from cli.recipes.setting import flag, refusal
from cli.version import own_version

CONFIG, PLAN, FOLDS, FOLD = "config.toml", "sweep.json", "folds", "fold-{}"
RECORDS = ("facts", "versions", "resumed")
"""Tables of a run's config that hold no settings."""
RECORDED = RECORDS[1]
"""Key of the settings that somebody wrote over those of a run."""
_CONVERTER = cattrs.Converter(detailed_validation=False)  # it writes code for each recipe, once
_KINDS = cache(get_type_hints)


@frozen
class TrainConfig:
    """Settings of `pipe train`. None stands for a choice by the other settings."""

    data: Data
    model: Model
    finetune: Finetune
    optimizer: Rule
    schedule: Course
    loss: Loss
    evaluate: Metrics
    pipeline: OwnPipeline
    run: Run
    given: Mapping[str, Any] = field(factory=dict, eq=False, repr=False)
    """The chosen settings by full name; a model's recipe may replace the defaults of others."""
    settled: bool = field(default=False, eq=False, repr=False)
    """Whether the model's recipe for the data is in it."""
    digest: str | None = field(default=None, eq=False, repr=False)
    """Of the data of the run that these settings are of, if nothing chooses others."""

    @property
    def title(self) -> str:
        """The name of a run's folder, without its number."""
        own = self.pipeline.name
        return f"{self.data.title}-{self.model.title}" if own is None else own.rpartition(":")[2]

    @property
    def source(self) -> str:
        """The data or the pipeline, as the user named it."""
        return self.pipeline.name or self.data.source

    @property
    def tables(self) -> dict[str, dict[str, Any]]:
        """All settings except None, as TOML values."""
        own = self.pipeline.name is not None
        tables = {}
        for name in ("pipeline", "run") if own else TABLES:
            values = asdict(getattr(self, name), filter=lambda _, value: value is not None)
            values |= values.pop("options", {})
            tables[name] = {k: v for k, v in values.items() if not (own and k in IN_PIPELINE)}
        return {name: values for name, values in tables.items() if values}

    @property
    def flat(self) -> dict[str, Any]:
        """All settings by the names of their flags; options of the user's own code by their full names."""
        return {name: value for _, name, value in self._each()}

    @property
    def fixed(self) -> dict[str, Any]:
        """The settings that a resumed run can't change."""
        return {name: value for fixed, name, value in self._each() if fixed}

    def wrote(self, name: str) -> bool:
        """Whether somebody wrote a setting, and not only the run that these are of."""
        return name in self.given.get(RECORDED, (name,))

    def _each(self) -> Iterator[tuple[bool, str, Any]]:
        for table in TABLES:
            recipe = getattr(self, table)
            for f in settings(type(recipe)).values():
                yield f.metadata["fixed"], flag_name(table, f.name), getattr(recipe, f.name)
            for key, value in getattr(recipe, "options", {}).items():
                yield True, f"{table}.{key}", value


def make(*layers: Mapping[str, Any]) -> TrainConfig:
    """A TrainConfig from plain values by name, `lr` or `optimizer.lr`; a later layer wins.

    Raises ConfigError for unknown names and invalid values.
    """
    values: dict[str, dict[str, Any]] = {table: {} for table in TABLES}
    for i, layer in enumerate(layers):
        tables = _by_table(layer)
        _forget(values, tables, layers[:i])
        for table, new in tables.items():
            if TABLES[table].key in new and values[table]:
                # Another recipe: drop settings that only the previous one had.
                known = settings(_recipe(table, {**values[table], **new}))
                values[table] = {k: v for k, v in values[table].items() if k in known}
            values[table] |= new
            for key in [k for k, v in new.items() if v == "auto" and RECORDED not in layer]:
                f = settings(_recipe(table, values[table])).get(key)
                if f is not None and f.default == "auto":  # which leaves it to the other settings
                    del values[table][key]
    if values["pipeline"].get("name") is not None:
        _check_own_pipeline(values)
    recorded = any(RECORDED in layer for layer in layers)
    given = whole(values) | ({RECORDED: _wrote(layers)} if recorded else {})
    if "name" not in values["model"] and (name := _recipe("data", values["data"]).model) is not None:
        values["model"] = {"name": name, **values["model"]}
    prefers = _recipe("model", values["model"]).prefers or _recipe("data", values["data"]).prefers
    preferred = prefers.get("name", TABLES["optimizer"].default)
    if "name" not in values["optimizer"] or (values["optimizer"]["name"] == preferred and not recorded):
        values["optimizer"] = {**prefers, **values["optimizer"]}
    _recipe("model", values["model"]).imply(values, _recipe("data", values["data"]))
    values["run"] |= best_result(values["run"]) if values["pipeline"].get("name") is None else {}
    return TrainConfig(**{table: _build(table, values[table]) for table in TABLES}, given=given)


def _wrote(layers: Iterable[Mapping[str, Any]]) -> dict[str, bool]:
    """The settings that somebody wrote, and not only the run that a layer is of."""
    return {name: True for layer in layers for name in layer.get(RECORDED, whole(layer))}


def _forget(values: dict[str, dict[str, Any]], new: Mapping[str, Any], layers: Sequence[Mapping[str, Any]]) -> None:
    """Drop what earlier `layers` have by a model or an optimizer that a new one replaces."""
    model, rule = values["model"].get("name"), values["optimizer"].get("name")
    if model is not None and new["model"].get("name", model) != model:
        Pretrained.forget(values, str(model))
    if any(RECORDED in layer for layer in layers) and new["optimizer"].get("name", rule) != rule:
        for key in {*NUMBERS} - {name.removeprefix("optimizer.") for name in _wrote(layers)}:
            values["optimizer"].pop(key, None)


def _check_own_pipeline(values: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ConfigError for settings that do not apply to the user's own pipeline."""
    for table, given in values.items():
        for key in given:
            if table not in ("pipeline", "run") or (table == "run" and key in IN_PIPELINE):
                name, own = flag(flag_name(table, key)), values["pipeline"]["name"]
                raise refusal(f"{name} does not apply to a pipeline of your own; set it in {own}")


def whole(layer: Mapping[str, Any]) -> dict[str, Any]:
    """A layer with each setting under its full name."""
    return {f"{table}.{key}": value for table, values in _by_table(layer).items() for key, value in values.items()}


def _by_table(layer: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    tables: dict[str, dict[str, Any]] = {table: {} for table in TABLES}
    for name, value in layer.items():
        if isinstance(value, Mapping) and name in (*TABLES, RECORDED):
            if twice := [k for k in value for n in layer if "." not in n and n != name and home(n) == (name, k)]:
                raise refusal(f"{flag(twice[0])} is given twice, alone and in [{name}]; leave one out")
            tables.get(name, {}).update(value)
            continue
        place = home(name)
        if place is None:
            raise _unknown(name)
        tables[place[0]][place[1]] = value
    return tables


def _recipe(table: str, values: Mapping[str, Any]) -> Any:
    t = TABLES[table]
    name = values.get(t.key, t.default)
    if name is None:
        return t.recipes[0]
    if not isinstance(name, str):
        raise refusal(f"setting {table} can't be {name!r}")
    recipe = t.chosen(name)
    if recipe is None:
        raise unknown(name) if table == "data" else refusal(f"unknown {table} {name!r}", name, t.names)
    return recipe


def _build(table: str, values: dict[str, Any]) -> Any:
    known = settings(recipe := _recipe(table, values))
    own = {key: value for key, value in values.items() if key in known}
    options = {key: value for key, value in values.items() if key not in known}
    if options and "options" not in [f.name for f in fields(recipe)]:
        raise _unfitting(table, next(iter(options)), values)
    kinds = _KINDS(recipe)
    for name, value in own.items():  # cattrs takes "3" for 3, and True for 1; NaN is refused by its range
        with suppress(TypeError, ValueError, OverflowError):
            kept, plain = _CONVERTER.structure(value, kinds[name]), tuple(value) if isinstance(value, list) else value
            if (kept == plain or plain != plain) and isinstance(kept, bool) == isinstance(plain, bool):
                continue
        listed = "tuple" in str(kinds[name]) and isinstance(value, int | float)
        instead = f"; write [{value}]" if listed else ""
        raise refusal(f"setting {flag_name(table, name)} can't be {value!r}{instead}")
    built: Any = _CONVERTER.structure(own, recipe)
    return evolve(built, options=options) if options else built


def _unfitting(table: str, key: str, values: Mapping[str, Any]) -> Exception:
    """A ConfigError for a setting that the chosen recipe does not have."""
    t = TABLES[table]
    owners = [name for name, recipe in t.known.items() if name and key in settings(recipe)]
    if owners:
        chosen = values.get(t.key) or t.default
        return refusal(f"{flag(key)} belongs to --{table} {' or '.join(owners)}, not to {chosen}; leave it out")
    return refusal(f"unknown setting {f'{table}.{key}'!r}", key, {k for recipe in t.recipes for k in settings(recipe)})


def _unknown(name: str) -> Exception:
    """A ConfigError; there are too many settings to name them all."""
    known = {flag_name(table, key) for table, t in TABLES.items() for r in t.recipes for key in settings(r)}
    close = difflib.get_close_matches(name, known, n=1)
    return refusal(f"unknown setting {name!r}; {f'did you mean {close[0]!r}?' if close else 'see pipe train --help'}")


def read(path: Path) -> dict[str, Any]:
    """The settings in a config file, as plain values; for a run's config, with its threads and uncompiled steps."""
    facts = (table := document(path)).get("facts")
    # Both affect the rounding of sums, so a repeated run keeps them.
    kept = {"eager_steps": 0, **facts} if isinstance(facts, dict) and "threads" in facts else {}
    rounding = {f"run.{name}": kept[name] for name in ("threads", "eager_steps") if kept}
    results = {FOLDS} if isinstance(table.get(FOLDS), dict) else set()  # of the folds, named like a setting
    values = {name: value for name, value in table.items() if name not in {*RECORDS, *results}}
    model = _by_table(values)["model"]  # raises for unknown settings
    if RECORDED in table:
        values[RECORDED] = {}
    if RECORDED in table and model:  # its model's recipe is in it, and later settings are off
        values["model"] = {**{name: f.default for name, f in settings(_recipe("model", model)).items()}, **model}
    return {**rounding, **values}


BESIDE = ("save_steps", "save_minutes", "keep", "patience", "minutes", "log", "best", "steps_per_call", "threshold",
          "calibrate")  # fmt: skip
"""Settings without effect on the bits of a step."""


def changed(path: Path) -> str:
    """Settings that resuming changed: `lr 0.3 -> 0.1 at step 12`."""
    past = document(path).get("resumed")
    entries = [r for r in past if isinstance(r, dict)] if isinstance(past, list) else []
    changes = [(name, r.get("step"), v) for r in entries for name, v in r.items() if isinstance(v, list) and v]
    return ", ".join(f"{name} {v[0]} -> {v[-1]} at step {step}" for name, step, v in changes if name not in BESIDE)


def files(folder: Path) -> list[Path]:
    """The files of a run or a sweep that can name code."""
    return [folder / CONFIG, *([folder / PLAN] if os.path.lexists(folder / PLAN) else [])]


def document(path: Path) -> dict[str, Any]:
    """The content of a config.toml or of a sweep's plan."""
    try:
        text = seal.content(path).decode("utf-8")
        table = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        if not isinstance(table, dict):
            raise ValueError("it holds no settings")
        return table
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise refusal(f"{path} is no TOML file: {e}") from None
    except (OSError, ValueError) as e:
        raise refusal(f"can't read {path}: {getattr(e, 'strerror', None) or e}") from None
    except RecursionError:
        raise refusal(f"{path} is nested too deep") from None


def folds(folder: Path, config: TrainConfig) -> list[Path]:
    """The folders of the runs in a run of all folds, whether they have begun or not; none in any other run."""
    return [folder / FOLD.format(i) for i in range(config.run.folds or 0) if config.run.fold is None]


def check_run(folder: Path) -> None:
    """Raise ConfigError for a folder without a run, and for a run of a newer version."""
    if not os.path.lexists(folder / CONFIG):  # Path.exists() raises if a name is too long
        raise refusal(f"{folder} holds no run: it has no {CONFIG}")
    versions = document(folder / CONFIG).get("versions")
    seal.of(folder)
    made, here = versions.get("pipe-train") if isinstance(versions, dict) else None, own_version()
    if isinstance(made, str):
        theirs, ours = ([int(n) for n in version.split(".") if n.isdecimal()] for version in (made, here))
        if theirs > ours:
            raise refusal(f"{folder} was made by pipe-train {made}, and this is {here}: update it")
