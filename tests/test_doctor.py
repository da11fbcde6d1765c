"""`pipe doctor`: what it finds on a machine, and what it advises."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cli import doctor
from pipeline.compile import cache
from pipeline.compile.backends import native
from pipeline.errors import CaptureError
from tests.commands import run as pipe


def test_a_machine_that_trains(tmp_path):
    """It says all in lines or as one object, and exits with 0 where nothing stops training."""
    said, as_json = pipe("doctor", cwd=tmp_path), pipe("doctor", "--json", cwd=tmp_path)
    assert said.code == as_json.code == 0
    facts = json.loads(as_json.out)
    assert facts["ok"]
    for check in facts["checks"]:
        assert check["state"] in ("ok", "slow")
        assert (check["state"] == "ok") == (not check["advice"])
        assert f"{check['name']:<10}" in said.out
    assert torch.__version__ in said.out
    assert str(cache.folder()) in said.out
    assert str(tmp_path.resolve()) in said.out


def test_a_machine_without_a_compiler(tmp_path):
    """Without a compiler runs are uncompiled, which is slow and no end; the real compiler is asked."""
    command = [sys.executable, "-m", "cli.main", "doctor", "--json"]
    root = str(Path(__file__).parent.parent)
    env = {**os.environ, "CXX": "/no/compiler", "PYTHONPATH": root}
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 0
    assert checks["compiler"]["state"] == "slow"
    assert "C++ can't be compiled here" in checks["compiler"]["found"]


def test_the_trial_compiles():
    """The trial names a compiler, and fails where a folder runs no programs."""
    name, seconds = native.trial()
    assert name
    assert seconds > 0
    with (
        mock.patch.object(native.ctypes, "CDLL", side_effect=OSError("failed to map segment")),
        pytest.raises(CaptureError, match="failed to map segment"),
    ):
        native.trial()


def test_what_stops_training(tmp_path, monkeypatch):
    """A full disk ends the command with 1, and a line says what to do."""
    full = SimpleNamespace(f_bavail=1, f_frsize=4096, f_flag=0)
    monkeypatch.setattr(doctor.os, "statvfs", lambda path: full)
    done = pipe("doctor", cwd=tmp_path)
    assert done.code == 1
    assert "stops runs: 4.1 kB is too little; remove files" in done.out


@pytest.mark.parametrize(
    ("cores", "quota", "threads", "asked", "advice"),
    [
        (4, None, 4, "", ""),
        (4, None, 4, "4", ""),
        (4, None, 1, "1", "OMP_NUM_THREADS=1 leaves 3 unused; unset it"),
        (4, None, 4, "many", "OMP_NUM_THREADS=many is not from 1 to 4; unset it"),
        (4, None, 4, "0", "OMP_NUM_THREADS=0 is not from 1 to 4; unset it"),
        (4, None, 9, "9", "OMP_NUM_THREADS=9 is not from 1 to 4; unset it"),
        (8, 2.0, 8, "", "this container may use 2 cores, and torch starts 8 threads; set OMP_NUM_THREADS=2"),
        (8, 2.0, 2, "2", ""),
    ],
)
def test_cores(monkeypatch, cores, quota, threads, asked, advice):
    """Threads beyond the cores of the container, or fewer than them, are told."""
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    monkeypatch.setattr(doctor.os, "cpu_count", lambda: cores)
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda _: range(cores))
    monkeypatch.setattr(doctor.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr(doctor, "_quota", lambda: quota)
    monkeypatch.setattr(doctor.torch, "get_num_threads", lambda: threads)
    assert doctor.cores().advice == advice


def test_quota_of_a_control_group(tmp_path):
    """The limit of either version of control groups is read, and no limit is none."""
    assert doctor._quota(tmp_path) is None
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    for text, cores in (("-1", None), ("150000", 1.5)):
        (tmp_path / "cpu/cpu.cfs_quota_us").write_text(text)
        assert doctor._quota(tmp_path) == cores
    for text, cores in (("max 100000\n", None), ("200000 100000\n", 2.0)):
        (tmp_path / "cpu.max").write_text(text)
        assert doctor._quota(tmp_path) == cores


def test_folders(tmp_path, monkeypatch):
    """A folder that is gone or not writable stops training; one that runs no programs is slow."""
    assert doctor.disk("runs", tmp_path).state == "ok"
    assert doctor.disk("runs", tmp_path / "gone").state == "stops"
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert doctor.disk("temp", tmp_path).advice == "set TMPDIR to another folder"
    monkeypatch.undo()
    noexec = SimpleNamespace(f_bavail=2**30, f_frsize=4096, f_flag=os.ST_NOEXEC)
    monkeypatch.setattr(doctor.os, "statvfs", lambda path: noexec)
    assert doctor.disk("temp", tmp_path).state == "slow"
    assert doctor.disk("runs", tmp_path).state == "ok"


def test_a_cache_of_somebody_else(tmp_path, monkeypatch):
    """A cache that others may write loads nothing, which costs each run a compilation."""
    (tmp_path / "open").mkdir(mode=0o777)
    (tmp_path / "open").chmod(0o777)
    monkeypatch.setenv("PIPE_CACHE", str(tmp_path / "open"))
    assert "none of which is loaded" in doctor.programs().found
    assert "others may write" in doctor.programs().advice


@given(st.integers(0, 2**40))
def test_little_space(free):
    """The less is free, the worse the state."""
    state, advice = doctor._short(free, doctor.NO_DISK, doctor.SMALL_DISK, "remove files")
    assert state == ("ok" if free >= doctor.SMALL_DISK else "slow" if free >= doctor.NO_DISK else "stops")
    assert (state == "ok") == (advice == "")
