"""Help: a screen for each command, all of it by --help-all, and defaults that are those of a run."""

import inspect
import re
from pkgutil import resolve_name

import pytest
from click.testing import CliRunner

from cli import config
from cli.commands import COMMANDS
from cli.flags import flags
from cli.main import cli
from cli.recipes.data import DATA
from cli.recipes.model import MODELS, Fixed
from cli.recipes.rule import OPTIMIZERS
from cli.recipes.setting import SET_ONLY, flag

SETTINGS = ("train", "show", "sweep", "bench")
BY_ROWS = {"epochs", "batch_size", "compile", "threads"}
"""Settings whose default depends on the number of rows."""


def helped(*words, columns=80):
    return CliRunner().invoke(cli, words, prog_name="pipe", terminal_width=columns).output


def about(name):
    """What --help-all says of a setting, on one line."""
    text = re.split(r"\n  (?=-)|\n\n", helped("train", "--help-all").partition("\nData:")[2])
    return " ".join(next(t for t in text if re.match(rf"{flag(name)}\b(?!-)", t.strip())).split())


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_a_screen(command):
    """The help of each command has at most 40 lines of at most 80 columns."""
    lines = helped(*command.split(), "--help").splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("Usage: pipe")


@pytest.mark.parametrize("command", SETTINGS)
def test_all_of_the_help(command):
    """--help-all has each flag, and says more than --help, whose flags it has too."""
    short, whole = (
        set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", helped(command, h), re.M)) for h in ("--help", "--help-all")
    )
    assert short < whole
    assert {flag(name) for name in flags()} <= whole
    assert all(name in helped(command, "--help-all") for name in SET_ONLY)


@pytest.mark.parametrize("name", ["day_first", "skip_bad", "compile"])
def test_flags_that_say_no(name):
    """The opposite of a flag is written as the flag is: --no-day-first."""
    assert f"{flag(name)} / --no-{flag(name)[2:]}" in about(name)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_weight_decay_of_a_rule(optimizer):
    """The help says the weight decay that the rule has by default."""
    number = inspect.signature(resolve_name(OPTIMIZERS[optimizer].home)).parameters.get("weight_decay")
    groups = re.findall(r"([a-z, ]+) ([\d.]+)", about("weight_decay"))
    said = {name.strip(): float(value) for names, value in groups for name in names.split(",")}
    assert said["else"] == 0
    assert number is None or number.default == said.get(optimizer, 0)


@pytest.mark.parametrize("model", ["realmlp", "tabm"])
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_choices_of_models_of_tables(model, task):
    """The help says each default that a model of tables replaces, or that it is by the rows."""
    fixed = Fixed("t.csv", (4,), True, 2 if task == "classification" else 1, task, {}, ("inputs", "targets"))
    chosen = config.make({"model": model, "data": "t.csv"})
    for name, value in chosen.model.recipe(fixed, 1000, chosen).items():
        table, _, key = name.partition(".")
        key = table if key == "name" else key
        if key in SET_ONLY or key == "model":
            continue
        text = about(key)
        number = f"{value:g}" if isinstance(value, float) and not isinstance(value, bool) else str(value)
        if key in BY_ROWS:
            assert model in text or "small" in text
        elif key == "lr" and task == "regression" and model == "realmlp":
            assert f"of values {number}" in text
        else:
            assert re.search(rf"{model} {number}\b|\b{number} for {model}\b|\b{number} for realmlp, {model}\b", text), (
                key,
                text,
            )


@pytest.mark.parametrize("name", [*MODELS])
def test_sizes_and_optimizers_of_models(name):
    """The help says the sizes and the optimizer that a model has by default."""
    if MODELS[name].picks:
        pytest.skip("it stands for another model")
    chosen = config.make({"model": name})
    for key in ("hidden", "widths", "depth", "dropout"):
        if hasattr(chosen.model, key):
            value = getattr(chosen.model, key)
            first, *others = about(key).partition("[default: ")[2].rstrip("]").split("; ")
            said = {n: v for v, _, names in (o.partition(" for ") for o in others) for n in names.split(", ")}
            assert said.get(name, first) == (",".join(map(str, value)) if isinstance(value, tuple) else f"{value:g}")
    rule = about("optimizer").partition("[default: ")[2]
    if MODELS[name].recipe is MODELS["mlp"].recipe:
        assert chosen.optimizer.name == ("adamw" if re.search(rf"\b{name}\b", rule) else "sgd")


def test_held_out_share_and_model_by_data():
    """The help says which data hold out another share, or get another model than the first."""
    for kind, recipe in DATA.items():
        share, text = recipe(source="x").held_out, about("held_out")
        assert share == (0.1 if kind in text.partition(";")[2] else 0.2)
        assert (recipe.model or "mlp") == ("table" if kind in about("model").partition("table for")[2] else "mlp")
