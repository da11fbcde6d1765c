"""The profile of a step: all its time, in the right rows, and nothing left behind."""

import json

import pytest
import torch
from attrs import evolve
from torch import nn
from torch.nn.modules import module as hooks

from pipeline import Pipeline, backward, forward, load, loss, place, profile, sweep, update
from pipeline.errors import ConfigError

ROWS = {"inputs": torch.randn(96, 64), "targets": torch.arange(96) % 10}


class Two(nn.Module):
    """A small layer, and a large one that is called twice."""

    def __init__(self):
        super().__init__()
        self.small, self.large = nn.Linear(64, 256), nn.Linear(256, 256)
        self.head = nn.Linear(256, 10)

    def forward(self, x):
        return self.head(self.large(self.large(self.small(x).relu()).relu()))


@pytest.fixture(scope="module")
def profiled():
    pipe = Pipeline(load.batches(ROWS, size=96), forward.model(Two), loss.cross_entropy(), backward.gradients(),
                    update.adamw(1e-3))  # fmt: skip
    before = len(hooks._global_forward_hooks), len(hooks._global_forward_pre_hooks)
    found = profile(pipe, steps=4)
    assert (len(hooks._global_forward_hooks), len(hooks._global_forward_pre_hooks)) == before
    return found


def test_the_rows_are_all_of_a_step(profiled):
    """They add up to torch's own sum, to the stages of the pipeline, and to the operations and Python."""
    own = sum(e.self_cpu_time_total for e in profiled.events.key_averages()) / 1e6 / 4
    assert sum(r.seconds for r in profiled.rows) == pytest.approx(profiled.total)
    assert profiled.total == pytest.approx(own, rel=0.02)
    assert sum(profiled.operations.values()) + profiled.python == pytest.approx(profiled.total)
    stages = [*dict.fromkeys(r.stage for r in profiled.rows)]
    assert stages == ["load", "forward.model", "loss.cross_entropy", "backward.gradients", "update.adamw"]


def test_a_backward_is_in_the_row_of_its_forward(profiled):
    """Each layer has both, in the model's order, and the large one more of each than the small one; a row's operations
    keep the memory of what they make."""
    rows = {r.module: r for r in profiled.rows if r.stage == "forward.model"}
    assert [*rows] == ["", "small", "large", "head"]
    for part in ("forward", "backward"):
        assert getattr(rows["large"], part) > getattr(rows["small"], part) > 0
    assert rows["small"].kept >= 96 * 256 * 4
    assert profiled.products > 0
    assert profiled.rate > 0


def test_a_profile_reads_as_a_table_and_writes_a_trace(profiled, tmp_path):
    """A share for each row of some length, and the ranges of stages and modules in the trace."""
    text = str(profiled)
    assert "forward.model" in text
    assert "  large" in text
    assert "in matrix products" in text
    profiled.trace(tmp_path / "trace.json")
    names = {e.get("name") for e in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]}
    assert {"pipe: step", "pipe: stage loss.cross_entropy", "pipe: module large"} <= names


def test_bf16_is_advised_where_it_is_faster(profiled, monkeypatch):
    """Not on a device without instructions for it, nor for a pipeline that has it."""
    monkeypatch.setattr("pipeline.profiling.fast_bf16", lambda device: True)
    stages = forward.model(Two), loss.cross_entropy(), backward.gradients(), update.sgd(0.1)
    lows = [profile(Pipeline(place.on("cpu", precision=p), *stages), ROWS, steps=1).low for p in ("fp32", "bf16")]
    assert lows == [True, False]
    for low in lows:
        advice = evolve(profiled, products=profiled.total, low=low).advice()
        assert any("bf16" in text for text in advice) is low


def test_a_profile_needs_one_pipeline_and_batches():
    """A sweep and a pipeline without data are refused, with what to write."""
    pipe = Pipeline(forward.model(Two), loss.cross_entropy(), backward.gradients(), update.sgd(0.1))
    with pytest.raises(ConfigError, match="pass a batch"):
        profile(pipe)
    with pytest.raises(ConfigError, match="takes a Pipeline, not a Sweep"):
        profile(sweep(pipe, hyper={"lr": [0.1, 0.2]}, order="shared"))


def test_the_command_prints_it_and_writes_a_trace(pipe, tmp_path, monkeypatch):
    """With the settings of a training; an ensemble is refused."""
    monkeypatch.chdir(tmp_path)
    code, out, err = pipe("profile", "--no-compile", "--steps", 2, "--trace", "t.json")
    assert code == 0, err
    assert "update.sgd" in out
    assert json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    code, _, err = pipe("profile", "--no-compile", "--ensemble", 3)
    assert code == 2
    assert "leave out --ensemble" in err
