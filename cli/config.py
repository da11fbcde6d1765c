"""The settings of a run: the one home of their defaults, their help and their checks. Imports no torch, so that help is
quick."""

from __future__ import annotations

import math
import os
import tomllib
from pathlib import Path
from typing import Any

import cattrs
from attrs import Attribute, field, fields, frozen

DATA = ("digits", "random")
MODELS = ("convnet", "mlp", "transformer")
OPTIMIZERS = {
    "sgd": 0.3,
    "asgd": 0.3,
    "adam": 0.003,
    "adamw": 0.003,
    "adamax": 0.01,
    "nadam": 0.003,
    "radam": 0.01,
    "adadelta": 1.0,
    "adafactor": 0.03,
    "adagrad": 0.03,
    "lamb": 0.01,
    "lion": 0.001,
    "muon": 0.02,
    "rmsprop": 0.003,
    "rprop": 0.001,
    "schedule-free-adamw": 0.01,
}
"""Optimizer -> the learning rate that it gets where none is given."""
MOMENTA = {"sgd": 0.9, "rmsprop": 0.0}
"""Optimizer -> the momentum that it gets where none is given; with 0, it remembers none."""
SCHEDULES = {
    "auto": "cosine; constant for schedule-free-adamw",
    "constant": "",
    "cosine": "down to 0",
    "cosine-restarts": "3 cosines, each twice as long as the last",
    "exponential": "to 1/100",
    "linear": "up from 1/3 in the first tenth",
    "multi-step": "/10 at 1/2 and 3/4 of the run",
    "one-cycle": "up from 1/25 in the first 0.3, then down to 0",
    "plateau": "halved after 3 epochs without a lower held-out loss",
    "polynomial": "a line down to 0",
    "step": "/10 in each third",
    "wsd": "up from 0 in the first 0.05 or in the --warmup, down to 0 in the last 0.2",
}
"""Schedule -> what it does to the learning rate in a run."""
FILES = (".npz", ".csv", ".tsv", ".gz", "-ubyte", ".idx")


def refusal(message: str, word: str = "", known: Any = ()) -> Exception:
    """A ConfigError; imported only here, because whatever imports the library imports torch."""
    from pipeline.errors import ConfigError, did_you_mean

    return ConfigError(message + (did_you_mean(word, known) if word else ""))


def _setting(default: Any, help: str, *checks: Any, fixed: bool = False) -> Any:
    """`fixed`: what a run that goes on can't have otherwise."""
    return field(default=default, validator=list(checks), metadata={"help": help, "fixed": fixed})


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


def _threads(_: Any, attribute: Attribute[Any], value: int | None) -> None:
    if value is not None and not 1 <= value <= 4096:
        raise refusal(f"--threads {value} is out of range: it must be from 1 to 4096")


def _below_one(_: Any, attribute: Attribute[Any], value: float | None) -> None:
    if value is not None and not 0 <= value < 1:
        raise refusal(f"{flag(attribute.name)} {value} is out of range: it must be from 0 to below 1")


def _at_least(low: float, above: bool = False) -> Any:
    def check(_: Any, attribute: Attribute[Any], value: Any) -> None:
        for number in value if isinstance(value, tuple) else (value,):
            if number is None:
                continue
            if not math.isfinite(number) or number < low or (above and number == low):
                bound = f"above {low}" if above else f"at least {low}"
                raise refusal(f"{flag(attribute.name)} {number} is out of range: it must be {bound}")

    return check


def _warmup(_: Any, attribute: Attribute[Any], value: float) -> None:
    if value >= 1 and value % 1:
        raise refusal(f"--warmup {value} is neither a share of the run, below 1, nor a whole number of steps")


def _seed(_: Any, attribute: Attribute[Any], value: int) -> None:
    if not 0 <= value < 2**63:
        raise refusal(f"--seed {value} is out of range: it must be from 0 to 2**63 - 1")


def _steps(_: Any, attribute: Attribute[Any], value: str) -> None:
    if value not in ("auto", "epoch") and not (value.isdecimal() and int(value) > 0):
        raise refusal(f"--steps-per-call {value!r} is neither a positive whole number, 'epoch' nor 'auto'")


@frozen
class TrainConfig:
    """What `pipe train` does. None means: chosen from the other settings."""

    data: str = _setting("digits", "digits, random, or a file: .npz, .csv, or IDX images", _data, fixed=True)
    model: str = _setting("mlp", "mlp, convnet or transformer", _one_of(MODELS), fixed=True)
    hidden: tuple[int, ...] = _setting(
        (128,), "widths between input and output, such as 128,64", _at_least(1), fixed=True
    )
    dropout: float = _setting(0.0, "fraction of activations that training leaves out", _below_one, fixed=True)
    epochs: int = _setting(20, "passes over the training data", _at_least(1))
    batch_size: int = _setting(64, "samples a step", _at_least(1), fixed=True)
    lr: float | None = _setting(
        None, "learning rate  [default: 0.3 for sgd, 0.003 for adam and adamw, others their own]", _at_least(0, True)
    )
    optimizer: str = _setting("sgd", ", ".join(OPTIMIZERS), _one_of(OPTIMIZERS), fixed=True)
    momentum: float | None = _setting(None, "of sgd and rmsprop  [default: 0.9 for sgd]", _at_least(0))
    weight_decay: float | None = _setting(None, "[default: 0; 0.01 for adamw and lamb, 0.1 for muon]", _at_least(0))
    no_decay: str | None = _setting(
        None, 'parameters without weight decay, by patterns of their names: "*.bias,*norm*"', fixed=True
    )
    accumulate: int = _setting(1, "parts that a batch is taken in, with the memory of one", _at_least(1))
    schedule: str = _setting(
        "auto",
        "of the learning rate: " + "; ".join(f"{name} ({what})" if what else name for name, what in SCHEDULES.items()),
        _one_of(SCHEDULES),
    )
    warmup: float = _setting(
        0.0, "in front of any schedule, up from 0: a share of the run where below 1, else steps", _at_least(0), _warmup
    )
    ema: float | None = _setting(
        None,
        "decay of an average of the weights, such as 0.999, evaluated and saved as well  [default: none]",
        _below_one,
    )
    clip: float = _setting(1.0, "largest gradient norm; 0 for no clipping", _at_least(0))
    seed: int = _setting(0, "of the weights, the order and dropout", _seed, fixed=True)
    device: str = _setting("auto", "auto, cpu, cuda or cuda:N")
    precision: str = _setting("fp32", "fp32, or bf16 for the products in the forward", _one_of(("fp32", "bf16")))
    threads: int | None = _setting(None, "of the CPU  [default: 1 for small steps, else all cores]", _threads)
    steps_per_call: str = _setting(
        "auto", "steps in one call of the compiled program: a number, epoch, or auto: about 0.1 s of them", _steps
    )
    compile: bool = _setting(True, "run the step as one compiled graph")
    backend: str = _setting(
        "auto", "what torch.compile compiles it by: auto, native (for a CPU), inductor, or another that torch has"
    )
    on_nonfinite: str = _setting(
        "stop",
        "where a loss or gradient is NaN or infinite: stop, or skip that step",
        _one_of(("stop", "skip")),
        fixed=True,
    )
    save_steps: int | None = _setting(None, "also write a checkpoint after each N steps", _at_least(1))
    save_minutes: float = _setting(
        5.0,
        "minutes between checkpoints inside an epoch; each epoch has one too, as far as they take no 0.5 % of the time",
        _at_least(0),
    )
    keep: int = _setting(2, "how many of the newest checkpoints stay, beside the best", _at_least(1))
    best: str | None = _setting(
        None, "held-out metric that tells the best epoch  [default: accuracy, or r2 for values]"
    )
    out: str | None = _setting(None, "folder of the run  [default: the next free runs/DATA-MODEL-N]", fixed=True)

    def __attrs_post_init__(self) -> None:
        if not self.compile and self.steps_per_call not in ("auto", "1"):
            raise refusal(f"--steps-per-call {self.steps_per_call} needs a compiled step; leave out --no-compile")
        if self.momentum is not None and self.optimizer not in MOMENTA:
            raise refusal(f"--momentum belongs to --optimizer sgd or rmsprop, not to {self.optimizer}; leave it out")
        if self.optimizer == "rprop" and (self.weight_decay is not None or self.no_decay is not None):
            raise refusal("--optimizer rprop has no weight decay; leave out --weight-decay and --no-decay")
        if not self.hidden and self.model != "mlp":
            raise refusal(f"--hidden is empty, but model {self.model} needs at least one width")

    @property
    def own_momentum(self) -> float | None:
        """The momentum that the optimizer gets; None where it has none."""
        return MOMENTA.get(self.optimizer) if self.momentum is None else self.momentum


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
    """The settings in a run's config.toml, as plain values, with the threads that the run took."""
    table = document(path)
    settings = table.get("settings", table)
    if not isinstance(settings, dict):
        raise refusal(f"{path} has no table [settings]")
    run = table.get("run")
    # What threads add up depends on how many they are: the same run again takes as many.
    return {**({"threads": run["threads"]} if isinstance(run, dict) and "threads" in run else {}), **settings}


def document(path: Path) -> dict[str, Any]:
    """All that a config.toml says."""
    try:
        if os.path.lexists(path) and path.exists() and not path.is_file():
            raise refusal(f"can't read {path}: it is no file")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        if isinstance(e, tomllib.TOMLDecodeError | UnicodeDecodeError):
            raise refusal(f"{path} is no TOML file: {e}") from None
        raise refusal(f"can't read {path}: {getattr(e, 'strerror', None) or e}") from None
    except RecursionError:
        raise refusal(f"{path} is no TOML file: it is nested too deep") from None


def resumed(folder: Path, given: dict[str, Any]) -> tuple[TrainConfig, TrainConfig]:
    """The settings of a run that goes on: as they were, and with those given now in their place."""
    if not os.path.lexists(folder / CONFIG):  # Path.exists() raises where a name is too long
        raise refusal(f"{folder} holds no run: it has no {CONFIG}")
    settings = read(folder / CONFIG)
    old, new = make(settings), make({**settings, **given})
    for f in fields(TrainConfig):
        before, now = getattr(old, f.name), getattr(new, f.name)
        if f.metadata["fixed"] and before != now:
            raise refusal(f"{flag(f.name)} {now} would not be the same run, which has {before}; start a new one")
    for name, before, now in (
        ("clip", old.clip, new.clip),
        ("momentum", old.own_momentum, new.own_momentum),
    ):
        if (before == 0) != (now == 0):  # with 0, the stage or its memory is left out
            raise refusal(f"{flag(name)} {now} would not be the same run, which has {before}; start a new one")
    if old.schedule != new.schedule and "plateau" in (old.schedule, new.schedule):  # it remembers what no other does
        raise refusal(f"--schedule {new.schedule} would not be the same run, which has {old.schedule}; start a new one")
    if old.ema is None and new.ema is not None:
        raise refusal(f"--ema {new.ema} would not be the same run, which averages no weights; start a new one")
    return old, new


CONFIG = "config.toml"
