"""The settings of a run: made of layers, checked, and read from TOML. Imports no torch, so that help is quick."""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import cattrs
from attrs import evolve, fields, frozen

from cli import seal
from cli.recipes import TABLES, flag_name, home, settings
from cli.recipes.code import is_code
from cli.recipes.data import Data
from cli.recipes.loss import Loss
from cli.recipes.model import Model
from cli.recipes.pipeline import PARTS, Whole
from cli.recipes.rule import Rule
from cli.recipes.run import Run
from cli.recipes.schedule import Course
from cli.recipes.setting import flag, refusal
from cli.version import own_version

CONFIG, PLAN, FOLDS = "config.toml", "sweep.json", "folds"


@frozen
class TrainConfig:
    """What `pipe train` does. None means: chosen from the other settings."""

    data: Data
    model: Model
    optimizer: Rule
    schedule: Course
    loss: Loss
    pipeline: Whole
    run: Run

    @property
    def title(self) -> str:
        """What a run is called by."""
        own = self.pipeline.name
        return f"{self.data.title}-{self.model.title}" if own is None else own.rpartition(":")[2]

    @property
    def source(self) -> str:
        """What is trained on, as the user named it."""
        return self.pipeline.name or self.data.source

    @property
    def tables(self) -> dict[str, dict[str, Any]]:
        """All settings that are not None, as TOML has them."""
        own = self.pipeline.name is not None
        tables = ("pipeline", "run") if own else [f.name for f in fields(TrainConfig)]
        found = {table: _plain(getattr(self, table)) for table in tables}
        return {
            t: {k: v for k, v in values.items() if not (own and k in PARTS)} for t, values in found.items() if values
        }

    @property
    def flat(self) -> dict[str, Any]:
        """All settings, by the names of their flags, or by their whole ones where a recipe does not know them."""
        return {name: value for _, name, value in self._each()}

    @property
    def fixed(self) -> dict[str, Any]:
        """Those that a run that goes on can't have otherwise."""
        return {name: value for fixed, name, value in self._each() if fixed}

    def _each(self) -> Iterator[tuple[bool, str, Any]]:
        for table in fields(TrainConfig):
            recipe = getattr(self, table.name)
            for f in settings(type(recipe)).values():
                yield f.metadata["fixed"], flag_name(table.name, f.name), getattr(recipe, f.name)
            for key, value in getattr(recipe, "options", {}).items():
                yield True, f"{table.name}.{key}", value


def make(*layers: Mapping[str, Any]) -> TrainConfig:
    """A TrainConfig from plain values by name, `lr` or `optimizer.lr`; of two layers, the later one wins.

    Raises ConfigError for what is unknown or does not fit.
    """
    values: dict[str, dict[str, Any]] = {table: {} for table in TABLES}
    for layer in layers:
        added = _sorted(layer)
        for table, new in added.items():
            if TABLES[table].key in new and values[table]:
                # Another recipe: what only the one before it had is of no use.
                known = settings(_recipe(table, {**values[table], **new}))
                values[table] = {k: v for k, v in values[table].items() if k in known}
            values[table] |= new
    if values["pipeline"].get("name") is not None:
        _check_whole(values)
    if "name" not in values["optimizer"]:  # what suits the model, or else the data
        prefers = _recipe("model", values["model"]).prefers or _recipe("data", values["data"]).prefers
        values["optimizer"] = {**prefers, **values["optimizer"]}
    return TrainConfig(**{table: _made(table, values[table]) for table in TABLES})


def _check_whole(values: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ConfigError for settings that have no say in a pipeline of the user's."""
    for table, given in values.items():
        for key in given:
            if table not in ("pipeline", "run") or (table == "run" and key in PARTS):
                name = values["pipeline"]["name"]
                raise refusal(f"{flag(flag_name(table, key))} has no say in a pipeline of your own; set it in {name}")


def whole(layer: Mapping[str, Any]) -> dict[str, Any]:
    """A layer with each setting under its whole name."""
    return {f"{table}.{key}": value for table, values in _sorted(layer).items() for key, value in values.items()}


def _sorted(layer: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The values of a layer by table."""
    found: dict[str, dict[str, Any]] = {table: {} for table in TABLES}
    for name, value in layer.items():
        if isinstance(value, Mapping) and name in TABLES:
            for key, inner in value.items():
                found[name][key] = inner
            continue
        place = home(name)
        if place is None:
            raise _unknown(name)
        found[place[0]][place[1]] = value
    return found


def _recipe(table: str, values: Mapping[str, Any]) -> Any:
    t = TABLES[table]
    default = next(iter(t.known.values()))
    name = values.get(t.key, getattr(fields(default), t.key).default) if t.key else ""
    if name is None:
        return default
    if not isinstance(name, str):
        raise refusal(f"setting {table} can't be {name!r}")
    found = t.chosen(name)
    if found is None:
        raise refusal(f"unknown {table} {name!r}", name, [n for n in t.known if n])
    return found


def _made(table: str, values: dict[str, Any]) -> Any:
    recipe = _recipe(table, values)
    known = settings(recipe)
    own = {key: value for key, value in values.items() if key in known}
    others = {key: value for key, value in values.items() if key not in known}
    if others and "options" not in [f.name for f in fields(recipe)]:
        _refuse(table, next(iter(others)), values.get(TABLES[table].key))
    for name, value in own.items():
        if isinstance(value, bool) != ("bool" in str(known[name].type)):
            raise refusal(f"setting {flag_name(table, name)} can't be {value!r}")
    try:
        made: Any = cattrs.Converter(detailed_validation=False).structure(own, recipe)
    except (TypeError, ValueError, OverflowError) as e:
        raise refusal(f"a setting does not fit: {e}") from None
    for name, value in own.items():
        if getattr(made, name) != (tuple(value) if isinstance(value, list) else value):
            raise refusal(f"setting {flag_name(table, name)} can't be {value!r}")
    return evolve(made, options=others) if others else made


def _refuse(table: str, key: str, chosen: Any) -> None:
    """Raise ConfigError for a setting that the chosen recipe does not have."""
    t = TABLES[table]
    having = [name for name, recipe in t.known.items() if name and key in settings(recipe)]
    if having:
        chosen = chosen or getattr(fields(next(iter(t.known.values()))), t.key).default
        raise refusal(f"{flag(key)} belongs to --{table} {' or '.join(having)}, not to {chosen}; leave it out")
    known = {k for recipe in t.recipes for k in settings(recipe)}
    raise refusal(f"unknown setting {f'{table}.{key}'!r}", key, known)


def _unknown(name: str) -> Exception:
    """A ConfigError; there are too many settings to name them all."""
    known = {flag_name(table, key) for table, t in TABLES.items() for r in t.recipes for key in settings(r)}
    close = difflib.get_close_matches(name, known, n=1)
    return refusal(
        f"unknown setting {name!r}; " + (f"did you mean {close[0]!r}?" if close else "see pipe train --help")
    )


def _plain(recipe: Any) -> dict[str, Any]:
    values = {name: getattr(recipe, name) for name in settings(type(recipe))} | dict(getattr(recipe, "options", {}))
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if v is not None}


def assigned(texts: tuple[str, ...]) -> dict[str, Any]:
    """Settings as `--set optimizer.lr=0.01` has them: TOML's values, or text."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise refusal(f"--set {text!r} is no NAME=VALUE, such as optimizer.lr=0.01")
        try:
            found[name.strip()] = tomllib.loads(f"value = {value}")["value"]
        except (tomllib.TOMLDecodeError, RecursionError):
            found[name.strip()] = value
    return found


def code_in(found: Any) -> list[str]:
    """All functions of somebody's that something names, be it a config, a layer of settings or the rows of a sweep: in
    whatever place, each text that reads as one.

    >>> code_in({"model": {"name": "net.py:make"}, "rows": [{"data": "own.data:digits"}]})
    ['net.py:make', 'own.data:digits']
    """
    names: dict[str, None] = {}
    left = [found]
    while left:
        value = left.pop()
        if isinstance(value, str) and is_code(value):
            names[value] = None
        elif isinstance(value, Mapping):
            left += reversed([*value.values()])
        elif isinstance(value, list | tuple):
            left += reversed(value)
    return list(names)


def read(path: Path) -> dict[str, Any]:
    """The settings in a run's config.toml, as plain values, with the threads that the run took."""
    table = document(path)
    old = table.get("settings")
    if old is not None:  # as files had them before there were tables
        if not isinstance(old, dict):
            raise refusal(f"{path} has no table [settings]")
        return {**_threads(table.get("run")), **_older(old)}
    if isinstance(table.get(FOLDS), dict):  # how the folds ended; a setting is called so too
        del table[FOLDS]
    for name, inner in table.items():
        if name in TABLES and isinstance(inner, dict):
            continue
        if name not in ("facts", "versions", "resumed"):
            _sorted({name: inner})  # raises for what is no setting
    return {**_threads(table.get("facts")), **{k: v for k, v in table.items() if k in TABLES or home(k)}}


BESIDE = ("save_steps", "save_minutes", "keep", "patience", "minutes", "tensorboard", "best", "steps_per_call")
"""Settings that change no bit of a step."""


def changed(path: Path) -> str:
    """With what options a run's steps went on otherwise than they began: `lr 0.3 -> 0.1 at step 12`."""
    past = document(path).get("resumed")
    entries = [r for r in past if isinstance(r, dict)] if isinstance(past, list) else []
    found = [(name, r.get("step"), v) for r in entries for name, v in r.items() if isinstance(v, list) and v]
    return ", ".join(f"{name} {v[0]} -> {v[-1]} at step {step}" for name, step, v in found if name not in BESIDE)


def _threads(facts: Any) -> dict[str, Any]:
    """What threads add up depends on how many they are: the same run again takes as many."""
    return {"run.threads": facts["threads"]} if isinstance(facts, dict) and "threads" in facts else {}


def _older(values: dict[str, Any]) -> dict[str, Any]:
    """Before models had settings of their own, `hidden` was the widths of any."""
    hidden, name = values.get("hidden"), values.get("model", "mlp")
    if hidden is None or name == "mlp":
        return values
    rest = {k: v for k, v in values.items() if k != "hidden"}
    if name == "transformer" and isinstance(hidden, list) and hidden:
        return {**rest, "model.width": hidden[0]}
    return {**rest, "model.widths": hidden}


def files(folder: Path) -> list[Path]:
    """Those of a run or a sweep that can name code."""
    return [folder / CONFIG, *([folder / PLAN] if os.path.lexists(folder / PLAN) else [])]


def document(path: Path) -> dict[str, Any]:
    """All that a config.toml, or the plan of a sweep, says."""
    try:
        text = seal.content(path).decode("utf-8")
        found = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        if not isinstance(found, dict):
            raise ValueError("it holds no settings")
        return found
    except (OSError, ValueError) as e:
        if isinstance(e, tomllib.TOMLDecodeError | UnicodeDecodeError):
            raise refusal(f"{path} is no TOML file: {e}") from None
        raise refusal(f"can't read {path}: {getattr(e, 'strerror', None) or e}") from None
    except RecursionError:
        raise refusal(f"{path} is nested too deep") from None


def check_run(folder: Path) -> None:
    """Raise ConfigError where a folder holds no run, or that of a newer version."""
    if not os.path.lexists(folder / CONFIG):  # Path.exists() raises where a name is too long
        raise refusal(f"{folder} holds no run: it has no {CONFIG}")
    found = document(folder / CONFIG)
    versions, facts = found.get("versions"), found.get("facts")
    if isinstance(facts, dict) and "run" in facts and seal.read(folder) is None:
        raise refusal(f"{folder} has lost its {seal.MANIFEST}; {seal.ACCEPT}")
    made = versions.get("pipe-train") if isinstance(versions, dict) else None
    here = own_version()
    if isinstance(made, str) and _parts(made) > _parts(here):
        raise refusal(f"{folder} was made by pipe-train {made}, and this is {here}: update it")


def _parts(number: str) -> tuple[int, ...]:
    """A version's numbers, by which it is compared."""
    return tuple(int(part) for part in number.split(".") if part.isdecimal())


def resumed(folder: Path, *given: Mapping[str, Any], besides: Collection[str] = ()) -> tuple[TrainConfig, TrainConfig]:
    """The settings of a run that goes on: as they were, and with those given now in their place. What is fixed may be
    no other, `besides` some."""
    check_run(folder)
    earlier = read(folder / CONFIG)
    old, new = make(earlier), make(earlier, *given)
    for name, before in old.fixed.items():
        now = new.fixed.get(name)
        if before != now and name not in besides:
            raise refusal(f"{flag(name)} {now} would not be the same run, which has {before}; start a new one")
    for name, before, now in (
        ("clip", old.run.clip, new.run.clip),
        ("momentum", old.optimizer.own_momentum, new.optimizer.own_momentum),
    ):
        if (before == 0) != (now == 0):  # with 0, the stage or its memory is left out
            raise refusal(f"{flag(name)} {now} would not be the same run, which has {before}; start a new one")
    schedules = (old.schedule.name, new.schedule.name)
    if schedules[0] != schedules[1] and "plateau" in schedules:  # it remembers what no other does
        raise refusal(f"--schedule {schedules[1]} would not be the same run, which has {schedules[0]}; start a new one")
    if old.run.ema is None and new.run.ema is not None:
        raise refusal(f"--ema {new.run.ema} would not be the same run, which averages no weights; start a new one")
    return old, new
