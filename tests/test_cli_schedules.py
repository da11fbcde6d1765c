"""The command's schedules: each trains, is drawn, and goes on or is refused when a run is resumed."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cli import build, config
from cli.commands import show
from cli.recipes.schedule import SCHEDULES
from pipeline import fit
from pipeline.programs.hyper import hyper_values

TINY = ["train", "--no-compile", "--hidden", "4", "--batch-size", "479", "-q"]


def learning_rates(steps=70, **settings):
    """What the settings of a run make of its learning rate."""
    settings = config.make(settings)
    made = settings.schedule.learning_rate(settings.optimizer.base, steps)
    return torch.full((steps,), made) if isinstance(made, float) else made.values(torch.arange(steps))


@given(st.sampled_from(sorted(SCHEDULES)), st.sampled_from([0.0, 0.1, 5.0]), st.integers(6, 70))
def test_each_schedule_runs_behind_a_warm_up(name, warmup, steps):
    """It ends as it does without one, and the warm-up rises from 0 to the learning rate."""
    rates = learning_rates(steps, schedule=name, lr=0.1, warmup=warmup)
    count = round(warmup * steps) if warmup < 1 else int(warmup)
    assert ((rates >= 0) & (rates <= 0.1 + 1e-12)).all()
    assert rates[:count].tolist() == pytest.approx([0.1 * s / count for s in range(count)])
    if name != "wsd":  # which has one of its own otherwise
        rest = learning_rates(steps - count, schedule=name, lr=0.1)
        assert rates[count:].tolist() == pytest.approx(rest.tolist())


OWN = """
from pipeline import Pipeline, backward, forward, load, loss, models, schedules, sources, update
def make():
    train, test = sources.digits()
    batches, model = load.batches(train, size=500, drop_last=True), forward.model(lambda: models.mlp(64, 10))
    rule = update.sgd(schedules.cosine(0.1))
    return Pipeline(batches, model, loss.cross_entropy(), backward.gradients(), rule)
"""


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 479},
        {"batch_size": 1000, "accumulate": 3},
        {"batch_size": 5000, "folds": 3, "fold": 1},
        {"data": "sklearn:wine", "ensemble": 2},
        {"data": "book.txt", "model": "transformer", "model.width": 8, "model.depth": 1, "data.context": 8},
        {"data": "book.txt", "model": "transformer", "model.width": 8, "model.depth": 1, "data.context": 8,
         "batch_size": 10_000},
        {"optimizer": "muon", "batch_size": 1000},
        {"pipeline": "own.py:make"},
    ],
    ids=str,
)  # fmt: skip
def test_a_schedule_ends_with_the_run(settings, tmp_path, monkeypatch):
    """After the last step that is done, and not before, the rate is what it is at its end: 0 of a cosine."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "book.txt").write_text(" ".join(f"word {i % 7} of {i}" for i in range(300)))
    settings = config.make({"epochs": 2, **settings})
    made, state = build.begin(settings)
    *_, report = fit(made.pipe, epochs=2, state=state, compile=False)
    assert report.step == 2 * made.stages.load.batches
    for step, ended in ((report.step, True), (report.step - 1, False)):
        hyper = hyper_values(made.stages.graph, {**report.state.tree, "step": torch.full_like(report.state.step, step)})
        rates = [x for of in hyper.values() for name, x in of.items() if name.endswith("lr")]
        assert rates
        assert all(bool((x.abs() < 1e-12).all()) == ended for x in rates)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300))
def test_a_chart_has_one_size(values):
    """Whatever the values, a chart has its size, with the numbers at the ends of its axes."""
    lines = show.chart("title", range(len(values)), values).splitlines()
    assert (lines[0].strip(), len(lines)) == ("title", show.HEIGHT)
    assert max(map(len, lines)) <= show.WIDTH
    assert any("⠀" < c <= "⣿" for line in lines for c in line)
    ends = [f"{x:.4g}" for x in sorted({min(values), max(values)}, reverse=True)]
    assert [line.split("┤")[0].strip() for line in lines if "┤" in line] == ends
    assert lines[-2].split() == [str(x) for x in sorted({0, len(values) - 1})]


def test_show_draws_the_schedules(pipe):
    """`--schedule` draws that of the run, or the one named; without it nothing is drawn."""
    for args, last in ((["--epochs", 3], 68), (["one-cycle", "--epochs", 1, "--warmup", 5], 22)):
        code, out, err = pipe("show", "--schedule", *args)
        assert (code, err) == (0, "")
        assert re.search(rf"update\.sgd\.lr at each of {last + 1} steps\n *┌─+┐\n *0\.(3|29\d*)┤", out)
        assert out.split()[-2:] == [str(last), "step"]
    assert "no hyperparameter of this run has a schedule" in pipe("show", "--schedule", "constant")[1]
    assert "as long as loss gets better" in pipe("show", "--schedule", "plateau")[1]
    assert "┤" not in pipe("show")[1]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("show", "--schedule", "wds"), "unknown schedule 'wds'; did you mean 'wsd'?"),
        (("train", "--warmup", "-1"), "--warmup -1.0 is out of range"),
        (("train", "--warmup", "2.5"), "--warmup 2.5 is neither a share of the run, below 1, nor a whole number"),
        (("train", "--warmup", "460"), "--warmup 460 is no shorter than the run, which has 460 steps"),
    ],
)
def test_what_does_not_fit_is_one_line(pipe, args, message):
    """Exit code 2, and no traceback."""
    code, _, err = pipe(*args)
    assert code == 2
    assert err.startswith(f"pipe: {message}")
    assert err.count("\n") == 1


def test_a_plateau_goes_on_and_is_verified(pipe, tmp_path, monkeypatch):
    """What it observed is in the checkpoint, with another warm-up too; to or from another schedule is refused."""
    monkeypatch.chdir(tmp_path)
    run = [*TINY, "--schedule", "plateau", "--lr", "2", "--save-steps", "1", "--set", "keep=3"]
    assert pipe(*run, "--epochs", 9, "--out", "whole")[0] == 0
    assert pipe(*run, "--epochs", 8, "--out", "parts")[0] == 0
    assert pipe("train", "--resume", "parts", "--epochs", 9)[::2] == (0, "")
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (tmp_path / "parts/model.safetensors").read_bytes()
    code, out, _ = pipe("train", "--resume", "whole", "--verify")
    assert (code, "is the same, bit for bit" in out) == (0, True)
    assert pipe("train", "--resume", "whole", "--warmup", 2, "--epochs", 10)[::2] == (0, "")
    code, _, err = pipe("train", "--resume", "whole", "--schedule", "cosine")
    assert (code, err) == (
        2, "pipe: --schedule cosine would not be the same run, which has plateau; start a new one\n"
    )  # fmt: skip


def test_another_schedule_behind_a_warm_up_goes_on(pipe, tmp_path, monkeypatch):
    """A run that is resumed may get any schedule without a memory."""
    monkeypatch.chdir(tmp_path)
    assert pipe(*TINY, "--epochs", 1, "--out", "run")[0] == 0
    assert pipe("train", "--resume", "run", "--epochs", 2, "--schedule", "wsd", "--warmup", 0.5)[::2] == (0, "")
