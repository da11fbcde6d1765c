"""The output of fit(progress=True), on a terminal and in a pipe. The run itself is the same."""

from functools import partial
from io import StringIO

import pytest
from rich.console import Console

from pipeline import fit, progress, testing
from tests import pipes

SMALL = pipes.small()


@pytest.fixture(params=[False, True], ids=["in a pipe", "on a terminal"])
def output(request, monkeypatch):
    """What is printed, and whether to a terminal."""
    screen = StringIO()
    monkeypatch.setattr(
        progress, "Console", partial(Console, file=screen, force_terminal=request.param, width=100, color_system=None)
    )
    return screen, request.param


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 3, "compile": False, "validate": pipes.TEST},
        {"max_steps": 30, "backend": pipes.TRACED},
        {"epochs": 2, "compile": False, "every": 10, "interval": 1e9},
        {"epochs": 3, "backend": pipes.TRACED, "eager_steps": 30},
    ],
    ids=["epochs", "steps", "every", "eager"],
)
def test_the_run_is_the_same(output, options, monkeypatch):
    """The same Reports, though the bar moves more often, and a line for each epoch and validation."""
    monkeypatch.setattr(progress.Follow, "INTERVAL", 1e-9)
    plain = [(r.step, r.complete, dict(r.train), r.state.clone()) for r in fit(SMALL, seed=1, **options)]
    lines, shown = [], []
    for r in fit(SMALL, seed=1, progress=True, **options):
        shown.append((r.step, r.complete, dict(r.train), r.state.clone()))
        lines += [str(r)] if r.complete or r.validate else []
    assert [s[:3] for s in shown] == [p[:3] for p in plain]
    testing.same(shown[-1][3].tree, plain[-1][3].tree)
    screen, terminal = output
    text = screen.getvalue()
    assert all(line in text for line in lines)
    assert ("\N{BOX DRAWINGS HEAVY HORIZONTAL}" in text) == terminal
    assert ("compile=False does without" in text) == (terminal and "compile" not in options)
    assert terminal or text.splitlines() == lines


def test_a_state_is_sent_through(output):
    """As to fit itself: the loop goes on from it, and the line is not printed again."""
    reports = fit(SMALL, epochs=2, seed=1, compile=False, progress=True)
    first = next(reports)
    again = reports.send(first.state.with_hyper(lr=0.0))
    assert again.step == first.step
    weights = {k: p.clone() for k, p in again.state.params.items()}
    [last] = reports
    testing.same(dict(last.state.params), weights)
    screen, terminal = output
    assert terminal or screen.getvalue().count("epoch 1/2") == 1
