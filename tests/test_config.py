"""The settings: defaults, checks, and TOML there and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli import config, folder
from pipeline.errors import ConfigError

configs = st.builds(
    config.TrainConfig,
    data=st.sampled_from(config.DATA),
    model=st.sampled_from(config.MODELS),
    hidden=st.lists(st.integers(1, 999), min_size=1, max_size=3).map(tuple),
    epochs=st.integers(1, 10**6),
    lr=st.none() | st.floats(1e-9, 1e9),
    optimizer=st.sampled_from(sorted({*config.OPTIMIZERS} - {"rprop"})),
    no_decay=st.none() | st.text(max_size=20),
    accumulate=st.integers(1, 99),
    schedule=st.sampled_from(sorted(config.SCHEDULES)),
    warmup=st.floats(0, 1, exclude_max=True) | st.integers(1, 10**6).map(float),
    seed=st.integers(0, 2**63 - 1),
    compile=st.booleans(),
    out=st.none() | st.just("there"),
)


@given(configs)
def test_a_config_written_and_read_is_the_same(tmp_path_factory, made):
    """config.toml holds every setting."""
    path = tmp_path_factory.getbasetemp() / "config.toml"
    folder.write_config(path.parent, made, {"run": {"device": "cpu"}})
    assert config.make(config.read(path)) == made


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch": 3}, "unknown setting 'epoch'; did you mean 'epochs'?"),
        ({"epochs": "many"}, "a setting does not fit"),
        ({"compile": 3}, "setting compile can't be 3"),
        ({"epochs": 2.7}, "setting epochs can't be 2.7"),
        ({"hidden": "64"}, "setting hidden can't be '64'"),
        ({"epochs": True}, "setting epochs can't be True"),
        ({"hidden": [64, -1]}, "--hidden -1 is out of range"),
        ({"lr": float("inf")}, "--lr inf is out of range"),
        ({"seed": 2**63}, "--seed"),
    ],
)
def test_what_does_not_fit(settings, message):
    """Each is one message."""
    with pytest.raises(ConfigError) as caught:
        config.make(settings)
    assert message in str(caught.value)


@pytest.mark.parametrize(("text", "message"), [("epochs = ", "is no TOML file"), ("settings = 3", "no table")])
def test_files_that_are_no_config(tmp_path, text, message):
    """A file that can't be read is named."""
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        config.read(path)
