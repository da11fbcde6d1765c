"""The settings of a run: the one home of their defaults, their help and their checks. Imports no torch, so that help is quick."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import cattrs
import tomli_w
from attrs import Attribute, asdict, field, fields, frozen

DATA = ("digits", "random")
MODELS = ("convnet", "mlp", "transformer")
OPTIMIZERS = {"sgd": 0.3, "adam": 0.003, "adamw": 0.003}
"""Optimizer -> the learning rate that it gets where none is given."""
SCHEDULES = ("constant", "cosine", "exponential", "linear", "step")
FILES = (".npz", ".csv", ".tsv", ".gz", "-ubyte", ".idx")


def refusal(message: str, word: str = "", known: Any = ()) -> Exception:
    """A ConfigError; imported only here, because whatever imports the library imports torch."""
    from pipeline.errors import ConfigError, did_you_mean

    return ConfigError(message + (did_you_mean(word, known) if word else ""))


def _setting(default: Any, help: str, *checks: Any) -> Any:
    return field(default=default, validator=list(checks), metadata={"help": help})


def _one_of(known: Any) -> Any:
    def check(_: Any, attribute: Attribute[Any], value: str) -> None:
        if value not in known:
            raise refusal(f"unknown {attribute.name} {value!r}", value, known)

    return check


def _data(_: Any, attribute: Attribute[Any], value: str) -> None:
    try:
        there = value.endswith(FILES) or Path(value).is_file()
    except (OSError, ValueError):  # no name that a file could have
        there = False
    if not there:
        _one_of(DATA)(_, attribute, value)


def _at_least(low: float, above: bool = False) -> Any:
    def check(_: Any, attribute: Attribute[Any], value: Any) -> None:
        for number in value if isinstance(value, tuple) else (value,):
            if number is None:
                continue
            if not math.isfinite(number) or number < low or (above and number == low):
                bound = f"above {low}" if above else f"at least {low}"
                raise refusal(f"{flag(attribute.name)} {number} is out of range: it must be {bound}")

    return check


def _seed(_: Any, attribute: Attribute[Any], value: int) -> None:
    if not 0 <= value < 2**63:
        raise refusal(f"--seed {value} is out of range: it must be from 0 to 2**63 - 1")


def _steps(_: Any, attribute: Attribute[Any], value: str) -> None:
    if value not in ("auto", "epoch") and not (value.isdecimal() and int(value) > 0):
        raise refusal(f"--steps-per-call {value!r} is neither a positive whole number, 'epoch' nor 'auto'")


@frozen
class TrainConfig:
    """What `pipe train` does. None means: chosen from the other settings."""

    data: str = _setting("digits", "digits, random, or a file: .npz, .csv, or IDX images", _data)
    model: str = _setting("mlp", "mlp, convnet or transformer", _one_of(MODELS))
    hidden: tuple[int, ...] = _setting((128,), "widths between input and output, such as 128,64", _at_least(1))
    epochs: int = _setting(20, "passes over the training data", _at_least(1))
    batch_size: int = _setting(64, "samples a step", _at_least(1))
    lr: float | None = _setting(
        None, "learning rate  [default: 0.3 for sgd, 0.003 for adam and adamw]", _at_least(0, True)
    )
    optimizer: str = _setting("sgd", "sgd, adam or adamw", _one_of(OPTIMIZERS))
    momentum: float | None = _setting(None, "of sgd  [default: 0.9]", _at_least(0))
    weight_decay: float | None = _setting(None, "[default: 0; 0.01 for adamw]", _at_least(0))
    schedule: str = _setting(
        "cosine", "of the learning rate: constant, cosine, exponential, linear or step", _one_of(SCHEDULES)
    )
    clip: float = _setting(1.0, "largest gradient norm; 0 for no clipping", _at_least(0))
    seed: int = _setting(0, "of the weights, the order and dropout", _seed)
    device: str = _setting("auto", "auto, cpu, cuda or cuda:N")
    precision: str = _setting("fp32", "fp32, or bf16 for the products in the forward", _one_of(("fp32", "bf16")))
    threads: int | None = _setting(None, "of the CPU  [default: 1 for small steps, else all cores]", _at_least(1))
    steps_per_call: str = _setting(
        "auto", "steps in one call of the compiled program: a number, epoch, or auto: about 0.1 s of them", _steps
    )
    compile: bool = _setting(True, "run the step as one compiled graph")
    out: str | None = _setting(None, "folder of the run  [default: the next free runs/DATA-MODEL-N]")

    def __attrs_post_init__(self) -> None:
        if not self.compile and self.steps_per_call not in ("auto", "1"):
            raise refusal(f"--steps-per-call {self.steps_per_call} needs a compiled step; leave out --no-compile")
        if self.momentum is not None and self.optimizer != "sgd":
            raise refusal(f"--momentum belongs to --optimizer sgd, not to {self.optimizer}; leave it out")
        if not self.hidden and self.model != "mlp":
            raise refusal(f"--hidden is empty, but model {self.model} needs at least one width")


def flag(name: str) -> str:
    """The command line's name of a setting."""
    return "--" + name.replace("_", "-")


def make(settings: dict[str, Any]) -> TrainConfig:
    """A TrainConfig from plain values; raises ConfigError for what is unknown or does not fit."""
    known = [f.name for f in fields(TrainConfig)]
    for name in settings:
        if name not in known:
            raise refusal(f"unknown setting {name!r}", name, known)
    converter = cattrs.Converter(detailed_validation=False)
    for name, value in settings.items():
        if isinstance(value, bool) != (name == "compile"):
            raise refusal(f"setting {name} can't be {value!r}")
    try:
        made = converter.structure(settings, TrainConfig)
    except (TypeError, ValueError, OverflowError) as e:
        raise refusal(f"a setting does not fit: {e}") from None
    for name, value in settings.items():
        if getattr(made, name) != (tuple(value) if isinstance(value, list) else value):
            raise refusal(f"setting {name} can't be {value!r}")
    return made


def read(path: Path) -> dict[str, Any]:
    """The settings in a run's config.toml, as plain values."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise refusal(f"can't read {path}: {e.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise refusal(f"{path} is no TOML file: {e}") from None
    settings = table.get("settings", table)
    if not isinstance(settings, dict):
        raise refusal(f"{path} has no table [settings]")
    return settings


def write(path: Path, config: TrainConfig, resolved: dict[str, Any]) -> None:
    """The settings, and beside them what this run made of them."""
    settings = {name: value for name, value in asdict(config).items() if value is not None}
    text = tomli_w.dumps(
        {"settings": {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}, **resolved}
    )
    path.write_text(text, encoding="utf-8")
