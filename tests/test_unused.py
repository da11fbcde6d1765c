"""Settings that have no effect beside others."""

import pytest

from cli import config
from cli.build import begin
from pipeline.errors import ConfigError

GIVEN = {"data": "digits", "model": "mlp", "epochs": 2, "compile": False}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"text_depth": 1}, "--text-depth 1 has no effect, as no column is a text; leave it out"),
        ({"freeze": "1.*", "thaw": 2}, "--thaw 2 has no effect, as there are 2 epochs; leave it out"),
        ({"shard": 2}, "--shard 2 has no effect, as one process holds all weights; leave it out"),
        ({"backend": "native"}, "--backend native has no effect, as no step is compiled; leave it out"),
        ({"eager_steps": 3}, "--eager-steps 3 has no effect, as no step is compiled; leave it out"),
    ],
)
def test_what_changes_nothing_is_refused(more, message):
    """If somebody writes it; a run that has it can be read."""
    with pytest.raises(ConfigError) as caught:
        begin(config.make(GIVEN, more))
    assert str(caught.value) == message
    begin(config.make({**GIVEN, **more, config.RECORDED: {}}))
