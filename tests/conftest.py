"""Settings of all tests: threads, seeds, what the processes of a run share, and how much is tried.

`HYPOTHESIS_PROFILE=thorough` tries 500 drawn examples of each property in place of 25, and the tests marked `thorough`
too: combinations whose parts other tests hold, such as one more rule with the same backend. Each law stands without
them, with each backend and with each model. Graphs that otherwise run as they were traced then go through AOTAutograd,
and C++ is optimized as for a user.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from cli.main import main

settings.register_profile("ci", max_examples=25, derandomize=True, deadline=None)
settings.register_profile("thorough", max_examples=500, deadline=None)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")
settings.load_profile(PROFILE)

# The tests of a run, their commands and xdist's workers share compiled programs and headers; two runs share none.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _shared = tempfile.TemporaryDirectory(prefix="pipe-tests-")
    os.environ |= {"PIPE_CACHE": f"{_shared.name}/cache", "TESTS_HEADERS": f"{_shared.name}/headers"}
    os.environ.setdefault("TESTS_LEVEL", "-O3" if PROFILE == "thorough" else "-O1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # workers and commands share the cores: no thread may spin
    os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")  # it need not build a file for each set of instructions
    if "CXX" not in os.environ and sys.platform == "linux" and shutil.which("g++"):
        os.environ["CXX"] = str(Path(__file__).parent / "compiler" / "g++")

THREADS = min(2, torch.get_num_threads())
torch.set_num_threads(THREADS)

LONGEST = ("backends", "mesh", "device", "readme", "examples", "shapes", "cli", "modules", "ids", "transformers",
           "asan", "draws", "sampling", "joint", "after", "parts", "cli_resume", "attack", "cli_sweep", "members",
           "fused")  # fmt: skip
"""Files that take longest, in this order."""


def pytest_collection_modifyitems(config, items):
    """Leave out what is thorough; the longest files come first, so that workers end together."""
    if PROFILE != "thorough":
        config.hook.pytest_deselected(items=[i for i in items if i.get_closest_marker("thorough")])
        items[:] = [i for i in items if not i.get_closest_marker("thorough")]
    ranks = {f"test_{name}": rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Workers take a file at a time, in this order: tests of a file share pipelines."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    torch.set_num_threads(THREADS)  # a command may have changed it, and programs of other threads are compiled anew


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
