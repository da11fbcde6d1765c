"""What holds for all tests: two threads, seeded randomness, and how many examples a property is tried on."""

import os
import tempfile

import pytest
import torch
from hypothesis import settings

settings.register_profile("ci", max_examples=25, derandomize=True, deadline=None)
settings.register_profile("thorough", max_examples=500, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# Graphs are shared between the tests of a run, those of the command too, and with nothing before it.
_cache = tempfile.TemporaryDirectory(prefix="pipe-tests-")
os.environ["PIPE_CACHE"] = _cache.name

torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
