"""A process beside this one: what it leaves, and that it leaves nothing else."""

import fcntl
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

from pipeline import beside
from pipeline.beside import Beside

pytestmark = pytest.mark.skipif(not beside.possible(), reason="needs Linux")


def alive(pid):
    return Path(f"/proc/{pid}").exists()


def test_its_files_come_back_and_nothing_else(tmp_path, capfd):
    """No value, no output, no file for the time being, and no process."""
    numbers = []

    def work():
        numbers.append(1)
        print("heard")
        Path(tempfile.mkdtemp(), "left").write_text("")
        (tmp_path / "folder").write_text(tempfile.gettempdir())

    process = Beside(work)
    process.wait()
    process.wait()
    assert not numbers
    assert capfd.readouterr() == ("", "")
    assert not Path((tmp_path / "folder").read_text()).exists()
    assert not alive(process._pid)


def test_it_computes_with_several_threads(tmp_path):
    """Those of OpenMP do not survive a fork, so a product in its first thread would never end."""
    torch.set_num_threads(2)
    big = torch.ones(512, 512)
    total = (big @ big).sum()

    def work():
        torch.set_num_threads(2)
        assert (big @ big).sum() == total
        (tmp_path / "done").touch()

    Beside(work).wait()
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize("work", [lambda: 1 / 0, lambda: os._exit(3)])
def test_a_failure_is_its_own(work, capfd):
    Beside(work).wait()
    assert capfd.readouterr() == ("", "")


def test_what_fails_before_its_work_ends_it(tmp_path, monkeypatch):
    """It never goes on as a second copy of this program."""
    monkeypatch.setattr(os, "nice", lambda by: 1 / 0)
    mine = os.getpid()
    try:
        Beside((tmp_path / "done").touch).wait()
    finally:
        if os.getpid() != mine:
            (tmp_path / "copy").touch()
            os._exit(1)
    assert not [*tmp_path.iterdir()]


def test_another_fork_does_not_end_it():
    """Though it has a copy of what would, as of all objects."""
    process = Beside(lambda: time.sleep(60))
    if (pid := os.fork()) == 0:
        process._end()
        os._exit(0)
    os.waitpid(pid, 0)
    time.sleep(0.2)
    assert os.waitid(os.P_PID, process._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def test_no_lock_outlives_its_holder(tmp_path):
    """A file that this process locks, and closes, is free, though the other process goes on."""
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        process = Beside(lambda: time.sleep(60))
        time.sleep(0.5)
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert alive(process._pid)
    pid = process._pid
    del process
    assert not alive(pid)


@pytest.mark.parametrize("end", ["", "os.kill(os.getpid(), 9)"])
def test_it_ends_with_this_process(end):
    """Also if that is killed."""
    code = f"""
import os, time
from pipeline.beside import Beside
process = Beside(lambda: time.sleep(60))
print(process._pid, flush=True)
{end}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    deadline = time.monotonic() + 10
    while alive(int(done.stdout)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
