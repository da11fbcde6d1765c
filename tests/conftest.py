"""What holds for all tests: two threads, seeded randomness, and how many examples a property is tried on."""

import os
import sys
import tempfile

import pytest
import torch
from hypothesis import settings

from cli.main import main

settings.register_profile("ci", max_examples=25, derandomize=True, deadline=None)
settings.register_profile("thorough", max_examples=500, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# Graphs are shared between the tests of a run, those of the command and of other workers too, and with nothing before.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="pipe-tests-")
    os.environ["PIPE_CACHE"] = _cache.name

torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def pipe(capsys, monkeypatch):
    """The command in this process: a call gives its exit code, and what it said on each stream."""

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["pipe", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return call
