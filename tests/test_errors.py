import difflib

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from pipeline import Pipeline, backward, errors, forward, loss, update
from pipeline.errors import PipeError, StageError, did_you_mean

words = st.text("abcdefghij", min_size=4, max_size=12)
ALL = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, PipeError)]


@given(st.sets(words, min_size=1, max_size=6), st.data())
def test_a_slip_finds_its_word(known, data):
    """A known word with two letters exchanged brings up a known word as near as that one."""
    word = data.draw(st.sampled_from(sorted(known)))
    i = data.draw(st.integers(0, len(word) - 2))
    slip = word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    assume(difflib.SequenceMatcher(None, slip, word).ratio() >= 0.6)
    ending = did_you_mean(slip, known)
    near = ending.removeprefix("; did you mean '").removesuffix("'?")
    assert near in known
    assert difflib.SequenceMatcher(None, near, slip).ratio() >= difflib.SequenceMatcher(None, word, slip).ratio()


@given(st.sets(words, min_size=1))
def test_a_word_like_none_lists_them_all(known):
    """A word that is near to none brings up all that are known, sorted."""
    assert did_you_mean("zzzz", known) == f"; known: {', '.join(sorted(known))}"


def test_nothing_known_says_nothing():
    """Where nothing is known, nothing is proposed."""
    assert did_you_mean("word", []) == ""


@pytest.mark.parametrize("error", ALL)
def test_every_error_is_one_for_the_user(error):
    """Every error has a sentence about itself, and an exit code above 0 that is not an interpreter's."""
    assert error.__doc__
    assert error.exit_code > 1
    message = "failed because of this"
    made = error("a.stage", message) if error is StageError else error(message)
    assert message in str(made)


def test_a_stage_error_names_its_stage():
    """A StageError tells which stage failed, in its message and as a value."""
    error = StageError("update.sgd", "failed")
    assert (str(error), error.stage) == ("stage 'update.sgd' failed", "update.sgd")


class Block(nn.Module):
    def __init__(self, width, fault):
        super().__init__()
        self.body, self.out, self.fault = nn.Linear(width, 4), nn.Linear(4, 4), fault

    def forward(self, x):
        return x + self.out(self.fault(torch.relu(self.body(x))))


@pytest.mark.parametrize(
    ("width", "fault", "said"),
    [
        (5, lambda x: x, "in '1.body' (test_errors.py:"),
        (4, lambda x: x.double(), "in '1.out' (test_errors.py:"),
        (4, lambda x: x.long(), "in '1.out' (test_errors.py:"),
        (4, lambda x: x.view(5, -1), "in '1' (test_errors.py:"),
        (4, lambda x: x @ torch.ones(3, 4), "in '1' (test_errors.py:"),
        (4, lambda x: x * torch.ones(3), "in '1' (test_errors.py:"),
    ],
)
def test_a_wrong_shape_or_dtype_names_its_submodule_and_line(width, fault, said):
    """In one line, in plain steps and while a graph is traced."""
    net = nn.Sequential(Block(4, torch.tanh), Block(width, fault), nn.Linear(4, 3))
    pipe = Pipeline(forward.model(net), loss.cross_entropy(), backward.gradients(), update.sgd(0.1))
    batch = {"inputs": torch.randn(8, 4), "targets": torch.arange(8) % 3}
    for step in (pipe.step, pipe.compile()):
        with pytest.raises(StageError) as e:
            step(pipe.init(0), batch)
        assert str(e.value).startswith("stage 'forward.model' failed on inputs (8, 4) float32: ")
        assert said in str(e.value)
        assert "\n" not in str(e.value)
