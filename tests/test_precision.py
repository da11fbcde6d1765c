"""--precision auto: the choice between fp32 and bf16 on a CPU, and where it is made."""

import math
import tomllib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cli import config, precision
from cli.build import placed
from cli.precision import CLOSE, FASTER, Look, decided

losses = st.lists(st.floats(0.1, 10), min_size=1, max_size=3)
seconds = st.floats(1e-3, 10)


@given(losses, seconds, seconds, st.floats(-2 * CLOSE, 2 * CLOSE))
def test_bf16_is_faster_and_as_exact(values, exact, half, off):
    """It is chosen if both are so, by the worst of the losses, and by nothing else."""
    moved = [*values[:-1], values[-1] * (1 + off)]
    close = abs(moved[-1] - values[-1]) / values[-1] <= CLOSE
    name, _ = decided(Look(exact, values), Look(half, moved))
    assert (name == "bf16") == (close and exact / half >= FASTER)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_keeps_fp32(loss):
    assert decided(Look(2.0, [1.0, 1.0]), Look(1.0, [1.0, loss])) == ("fp32", "the losses of bf16 are off by inf %")


@pytest.fixture
def able(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)


def test_fp16_skips_steps_and_counts_them(pipe, tmp_path):
    """So it does not stop, and says so to who asked for it; a run from before that has both goes on."""
    args = ["--no-compile", "--epochs", "1", "--precision", "fp16", "--hidden", "8"]
    code, out, _ = pipe("train", *args, "--out", tmp_path / "a")
    assert (code, "skipped " in out) == (0, True)
    code, _, err = pipe("train", *args, "--set", "on_nonfinite=stop")
    assert (code, "by skipping steps; leave it out" in err) == (2, True)
    placed(config.make({config.RECORDED: {}, "precision": "fp16", "on_nonfinite": "stop"}))


def test_a_small_step_stays_in_fp32(able, pipe, tmp_path):
    """Without a try; the run keeps the choice, and goes on with it."""
    args = ["--no-compile", "--epochs", "1", "--out", tmp_path / "a"]
    code, out, _ = pipe("train", "--precision", "auto", *args)
    assert (code, "fp32: a step has" in out, "trying" in out) == (0, True, False)
    assert tomllib.loads((tmp_path / "a" / "config.toml").read_text())["run"]["precision"] == "fp32"
    assert pipe("train", "--resume", tmp_path / "a", "--verify")[0] == 0


@pytest.mark.parametrize("way", [["--no-compile"], []], ids=["uncompiled", "compiled"])
def test_a_large_step_is_tried_in_both(able, pipe, tmp_path, monkeypatch, way):
    """As the run will take it; its losses are compared, and the run loads the program that was tried."""
    seen = []

    def judge(exact, half):
        seen.append((exact, half))
        return "bf16", "for a test"

    monkeypatch.setattr(precision, "LARGE", 1e3)
    monkeypatch.setattr(precision, "decided", judge)
    args = ["--epochs", "1", "--out", tmp_path / "a", *way]
    code, out, _ = pipe("train", "--precision", "auto", *args)
    assert (code, "bf16: for a test" in out) == (0, True)
    assert tomllib.loads((tmp_path / "a" / "config.toml").read_text())["run"]["precision"] == "bf16"
    [(exact, half)] = seen
    assert len(exact.losses) == len(half.losses) == 1 + precision.STEPS
    assert exact.losses == pytest.approx(half.losses, rel=0.02)
    assert exact.losses != half.losses
    assert way or "from the cache" in out


def test_elsewhere_it_is_refused(pipe):
    for command in (["bench", "--precision", "auto"], ["train", "--folds", "3", "--precision", "auto"]):
        code, _, err = pipe(*command)
        assert (code, "name fp32 or bf16" in err) == (2, True), err
