"""The two routes to gradients; their equality is among the laws."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pipeline import Pipeline, backward, forward, loss, testing, update
from pipeline.errors import ConfigError, WiringError
from tests import pipes

BATCH = {"inputs": torch.randn(6, 4), "targets": torch.arange(6) % 3}


def test_unknown_routes_and_counts_are_refused():
    """The message says what there is."""
    with pytest.raises(WiringError, match="'functional' or 'tape'"):
        backward.gradients(route="tapes")
    with pytest.raises(ConfigError, match="accumulate=0"):
        backward.gradients(accumulate=0)


class Checkpointed(pipes.Linear):
    """A layer whose activations are computed again in the backward."""

    def forward(self, x):
        return checkpoint(self.layer, x, use_reentrant=False)


def test_the_tape_allows_activation_checkpointing():
    """A checkpointed model trains by the tape as the plain one does by functions."""
    stages = loss.cross_entropy(), update.sgd(0.1)
    by_tape = Pipeline(forward.model(Checkpointed), stages[0], backward.gradients(route="tape"), stages[1])
    plain = Pipeline(forward.model(pipes.Linear), stages[0], backward.gradients(), stages[1])
    testing.same(by_tape.step(by_tape.init(0), BATCH)[0].tree, plain.step(plain.init(0), BATCH)[0].tree, 1e-6)


@pytest.mark.parametrize("route", ["functional", "tape"])
def test_unused_parameters_have_gradients_of_zeros(route):
    """A parameter that the loss does not depend on stays where it is."""

    class Unused(pipes.Linear):
        def __init__(self):
            super().__init__()
            self.extra = nn.Parameter(torch.ones(2))

    pipe = Pipeline(forward.model(Unused), loss.cross_entropy(), backward.gradients(route=route), update.sgd(0.1))
    state, _ = pipe.step(pipe.init(0), BATCH)
    assert state.params["extra"].tolist() == [1.0, 1.0]
