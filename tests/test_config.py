"""The settings: defaults, checks, and TOML there and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli import arguments, config, folder
from cli.recipes import home
from cli.recipes.rule import OPTIMIZERS
from cli.recipes.schedule import SCHEDULES
from cli.seal import Seal
from pipeline.errors import ConfigError

plain = st.fixed_dictionaries(
    {
        "epochs": st.integers(1, 10**6),
        "schedule": st.sampled_from(sorted(SCHEDULES)),
        "warmup": st.floats(0, 1, exclude_max=True) | st.integers(1, 10**6).map(float),
        "seed": st.integers(0, 2**63 - 1),
        "compile": st.booleans(),
        "accumulate": st.integers(1, 99),
        "optimizer": st.sampled_from(sorted({*OPTIMIZERS} - {"rprop"})),
    },
    optional={
        "lr": st.floats(1e-9, 1e9),
        "no_decay": st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=20),
        "out": st.just("there"),
    },
)
data = st.sampled_from([
    {"data": "digits"}, {"data": "sklearn:wine"}, {"data": "houses.csv", "target": "price", "header": False},
    {"data": "text:x/y", "context": 7}, {"data": "somewhere.py:make", "data.size": 3},
])  # fmt: skip
model = st.one_of(
    st.fixed_dictionaries({"model": st.just("mlp"), "hidden": st.lists(st.integers(1, 999), max_size=3)}),
    st.fixed_dictionaries({"model": st.just("transformer"), "width": st.integers(1, 99), "depth": st.integers(1, 9)}),
    st.fixed_dictionaries({"model": st.just("my.module:make"), "model.any": st.integers() | st.text(max_size=9)}),
)


@given(st.tuples(plain, data, model))
def test_a_config_written_and_read_is_the_same(tmp_path_factory, values):
    """config.toml holds every setting, those of the user's own functions too."""
    made = config.make(*values)
    path = tmp_path_factory.getbasetemp() / "config.toml"
    path.write_bytes(folder.config_text(made, {"facts": {"device": "cpu"}}, Seal(path.parent)))
    assert config.make(config.read(path)) == made


@given(plain, st.tuples(data, model))
def test_a_later_layer_wins(values, others):
    """Whatever came before, what a layer says is so, by short names or whole ones."""
    made = config.make({"model": "resnet", "depth": 3}, values, *others)
    for name, value in values.items():
        assert made.flat[name] == value
    table, key = home("lr")
    assert config.make(values, {f"{table}.{key}": 0.125}).optimizer.lr == 0.125
    assert config.make(values, {table: {key: 0.125}}) == config.make(values, {"lr": 0.125})


def test_another_choice_forgets_what_the_first_one_brought(tmp_path):
    """Of a run: another optimizer has its own numbers unless they are written, another folder its own weights and
    tokens."""
    run = {config.RECORDED: {}, "optimizer": "sgd", "lr": 0.1, "momentum": 0.5, "weight_decay": 0.1, "nesterov": True}
    other = config.make(run, {"optimizer": "adamw"}).optimizer
    assert (other.lr, other.momentum, other.weight_decay, other.nesterov) == (None, None, None, False)
    assert config.make(run, {"optimizer": "adamw", "lr": 0.2}).optimizer.lr == 0.2
    assert config.make(config.make(run, {"lr": 0.2}).given, {"optimizer": "adamw"}).optimizer.lr == 0.2
    assert config.make(run, {"optimizer": "sgd"}).optimizer.lr == 0.1
    assert config.make({"optimizer": "sgd", "lr": 0.1}, {"optimizer": "adamw"}).optimizer.lr == 0.1
    a, b = tmp_path / "a", tmp_path / "b"
    for path in (a, b):
        path.mkdir()
    first = config.make({"data": "text:t", "model": str(a)}).tables | {config.RECORDED: {}}
    first["finetune"]["init_sha256"] = "0"
    made = config.make(first, {"model": str(b)})
    assert (made.finetune.init, made.finetune.init_sha256) == (str(b), None)
    assert made.data.tokenizer == str(b / "tokenizer.json")
    assert config.make(first, {"model": "mlp"}).finetune.init is None
    assert config.make(first, {"model": str(b), "tokenizer": "x"}).data.tokenizer == "x"


def test_a_default_that_is_named_is_the_default(tmp_path):
    """Such as the optimizer of a folder, or of a table."""
    for first, name in (({"model": str(tmp_path)}, "adamw"), ({"data": "sklearn:wine", "model": "mlp"}, "sgd")):
        assert config.make(first, {"optimizer": name}).optimizer == config.make(first).optimizer


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (("optimizer.lr=0.01", "model.hidden=[1, 2]"), {"optimizer.lr": 0.01, "model.hidden": [1, 2]}),
        (("model=mlp", "run.compile=false"), {"model": "mlp", "run.compile": False}),
        (("steps_per_call=auto", "steps_per_call=2"), {"steps_per_call": "2"}),
    ],
)
def test_assignments_are_tomls_or_text(texts, found):
    """--set takes numbers, lists and words without quotes."""
    assert arguments.assigned_settings(texts) == found


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch": 3}, "unknown setting 'epoch'; did you mean 'epochs'?"),
        ({"epochs": "many"}, "setting epochs can't be 'many'"),
        ({"compile": 3}, "setting compile can't be 3"),
        ({"epochs": 2.7}, "setting epochs can't be 2.7"),
        ({"hidden": "64"}, "setting hidden can't be '64'"),
        ({"hidden": 64}, "setting hidden can't be 64; write [64]"),
        ({"epochs": True}, "setting epochs can't be True"),
        ({"hidden": [64, -1]}, "--hidden -1 is out of range"),
        ({"model": "resnet", "heads": 3}, "--set heads belongs to --model transformer, not to resnet; leave it out"),
        ({"heads": 3}, "--set heads belongs to --model transformer, not to mlp; leave it out"),
        ({"optimizer.lrr": 3}, "unknown setting 'optimizer.lrr'; did you mean 'lr'?"),
        ({"optimiser.lr": 3}, "unknown setting 'optimiser.lr'"),
        ({"data": "my_date"}, "unknown data 'my_date'"),
        ({"lr": float("inf")}, "--lr inf is out of range"),
        ({"seed": 2**63}, "--seed"),
    ],
)
def test_what_does_not_fit(settings, message):
    """Each is one message."""
    with pytest.raises(ConfigError) as caught:
        config.make(settings)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs = ", "is no TOML file"),
        ("settings = 3", "unknown setting 'settings'"),
        ("data = 3", "data can't be 3"),
        ("lr = 1\n[optimizer]\nlr = 2", r"--lr is given twice, alone and in \[optimizer\]; leave one out"),
    ],
)
def test_files_that_are_no_config(tmp_path, text, message):
    """A file that can't be read is named."""
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        config.make(config.read(path))
