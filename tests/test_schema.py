"""The JSON schema of configs: it takes what the command takes, and knows its names."""

import json
import tomllib

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli import config, folder
from cli.recipes import TABLES, flag_name, home, settings
from cli.schema import FILE, schema
from cli.seal import Seal
from cli.settled import settled
from pipeline.errors import ConfigError
from tests.commands import run
from tests.test_config import data, model, plain

WHOLE = schema()
jsonschema.Draft202012Validator.check_schema(WHOLE)
VALIDATOR = jsonschema.Draft202012Validator(WHOLE)
SETTINGS = sorted({f"{t}.{k}" for t, table in TABLES.items() for r in table.recipes for k in settings(r)})


@given(st.tuples(plain, data, model))
def test_any_config_is_valid(tmp_path_factory, values):
    """As a run writes it, with its records, and with settings outside of their tables; it holds what was drawn."""
    made = config.make(*values)
    text = folder.config_text(made, {"facts": {"device": "cpu"}}, Seal(tmp_path_factory.getbasetemp()))
    VALIDATOR.validate(tomllib.loads(text.decode()))
    VALIDATOR.validate({name: value for name, value in {**values[0], **values[1]}.items() if "." not in name})


@given(st.tuples(plain, data, model), st.sampled_from(SETTINGS), st.integers(0, 20))
def test_a_misspelled_name_is_invalid(values, name, at):
    """In a table or outside, unless the table has arguments of the user's own function."""
    tables = json.loads(json.dumps(config.make(*values).tables))
    table, _, key = name.partition(".")
    wrong = key[:at] + "_x" + key[at:]
    own = tables.setdefault(table, {})
    if not str(own.get(TABLES[table].key, "")).endswith(":make") and table != "pipeline":
        assert not VALIDATOR.is_valid({**tables, table: {**own, wrong: 1}})
    assert not VALIDATOR.is_valid({**tables, wrong: 1})
    assert not VALIDATOR.is_valid({**tables, "run": {**tables["run"], "epochs": "many"}})


@given(st.sampled_from(SETTINGS), st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.booleans())
def test_what_the_schema_refuses_the_command_refuses(name, value):
    """Types, choices and bounds are those of the settings' own checks."""
    table, _, key = name.partition(".")
    if VALIDATOR.is_valid({table: {key: value}}):
        return
    names = [n for n, recipe in TABLES[table].known.items() if n and key in settings(recipe)]
    chosen = {TABLES[table].key: names[0]} if names and key != TABLES[table].key else {}
    with pytest.raises(ConfigError):
        config.make({table: {**chosen, key: value}})


@pytest.mark.parametrize("layer", [
    {"log": ["wandb:proj", "csv"]}, {"log": ["csv:proj"]}, {"model": "./hf"}, {"model": {"name": "./hf"}},
    {"views": 6, "model": "resnet"}, {"views": 3, "model": "resnet"}, {"held_out": 0.5}, {"held_out": 1.0},
    {"steps_per_call": "7"}, {"steps_per_call": "each"}, {"pipeline": "a.py:f"}, {"best": []},
    *({name: "bogus"} for name, table in TABLES.items() if table.key and name != "data"),
])  # fmt: skip
def test_the_schema_takes_what_the_command_takes(tmp_path, monkeypatch, layer):
    """Also of a name alone, of a folder and of a service's project."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hf").mkdir()
    try:
        config.make(layer)
    except ConfigError:
        assert not VALIDATOR.is_valid(layer)
    else:
        VALIDATOR.validate(layer)


def test_each_setting_is_told():
    """By its table and by its flag's name, with a type, a description, and the default if there is one for all."""
    for name in SETTINGS:
        table, _, key = name.partition(".")
        assert WHOLE["properties"][table]["properties"][key]["description"]
        assert flag_name(table, key) in WHOLE["properties"]
        assert home(flag_name(table, key)) == (table, key)
    assert WHOLE["properties"]["run"]["properties"]["epochs"]["default"] == 20


@pytest.mark.parametrize("source", ["digits", "rows.csv", "a.txt"])
def test_a_config_to_start_from_is_valid(tmp_path, monkeypatch, source):
    """With and without what is a comment in it; beside a schema's file it names it."""
    (tmp_path / "rows.csv").write_text("a,b\n" + "".join(f"{i},{i % 2}\n" for i in range(40)))
    (tmp_path / "a.txt").write_text("to be or not to be\n" * 30)
    (tmp_path / FILE).write_text(run("init", "--schema").out)
    assert json.loads((tmp_path / FILE).read_text()) == json.loads(json.dumps(WHOLE))
    assert run("init", source, cwd=tmp_path).code == 0
    text = (tmp_path / "pipe.toml").read_text()
    assert text.startswith(f"#:schema ./{FILE}\n")
    VALIDATOR.validate(tomllib.loads(text))
    lines = [line.removeprefix("# ") for line in text.splitlines() if " =   #" not in line]
    whole = tomllib.loads("\n".join(line for line in lines if line.startswith("[") or " = " in line))
    VALIDATOR.validate(whole)
    monkeypatch.chdir(tmp_path)
    assert settled(config.make(whole))[0] == settled(config.make(tomllib.loads(text)))[0]  # comments are what it has


def test_init_without_data():
    """One line says what to write."""
    code, out, err = run("init")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "pipe init digits" in err
