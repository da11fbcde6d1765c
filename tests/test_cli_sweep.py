"""pipe sweep: many runs from the command line."""

import csv
import itertools
import json
import os
import random
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from cli import config as settings
from cli import html_report
from cli.main import cli
from cli.saved_run import Past
from cli.sweep import groups, picture
from cli.sweep.grid import Axis, combinations, split_axes
from pipeline import update
from pipeline.errors import ConfigError
from tests import forked, kills, pipes

SMALL = ("--model", "mlp", "--hidden", "8", "--no-compile", "--epochs", "2", "--batch-size", "256", "-q")


def pipe(*args):
    return CliRunner().invoke(cli, list(args), catch_exceptions=False)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_grid_of_settings_and_seeds(here):
    """Each member is the run that pipe train makes of its settings: the same weights, and it can go on."""
    assert pipe("sweep", "--lr", "0.1..1:log:2", "--momentum", "0,0.9", "--seeds", "2", *SMALL).exit_code == 0
    [folder] = (here / "runs").iterdir()
    rows = list(csv.DictReader((folder / "sweep.csv").open()))
    assert len(rows) == 8
    assert {(r["lr"], r["momentum"], r["seed"]) for r in rows} == {
        (lr, momentum, seed) for lr in ("0.1", "1.0") for momentum in ("0.0", "0.9") for seed in "01"
    }
    best = max(rows, key=lambda r: float(r["validate/accuracy"]))
    chosen = json.loads((folder / "best" / "metrics.jsonl").read_text().splitlines()[-1])
    assert chosen["validate/accuracy"] == float(best["validate/accuracy"])
    assert (folder / "sweep.svg").read_text().startswith("<svg")
    row = next(r for r in rows if (r["lr"], r["momentum"], r["seed"]) == ("1.0", "0.9", "1"))
    alone = ("--lr", "1.0", "--momentum", "0.9", "--seed", "1", "--set", "split_seed=0", "--out", "alone")
    assert pipe("train", *alone, *SMALL).exit_code == 0
    mine, other = (load_file(p / "model.safetensors") for p in (folder / row["run"], here / "alone"))
    for name, weights in mine.items():
        torch.testing.assert_close(weights, other[name], rtol=1e-5, atol=1e-5)
    assert pipe("train", "--resume", str(folder / "best"), "--epochs", "3", "-q").exit_code == 0
    assert len((folder / "best" / "metrics.jsonl").read_text().splitlines()) == 3
    assert "accuracy" in pipe("eval", str(folder / "members" / "000")).output


@pytest.mark.parametrize(
    ("source", "axis"),
    [
        ("table.csv", ("optimizer", ("sgd", "adamw"))),
        ("table.csv", ("model", ("mlp", "realmlp"))),
        ("book.txt", ("depth", ("1", "2"))),
    ],
)
def test_a_member_has_the_defaults_of_its_own_model_and_optimizer(here, source, axis):
    """Those that pipe train chooses for its settings, and not those chosen for another value on the axis."""
    x = [0.1 * (k % 37) for k in range(240)]
    (here / "table.csv").write_text("a,b,y\n" + "".join(f"{v},{v * v},{3 * v - 1}\n" for v in x))
    (here / "book.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    name, values = axis
    given = ("--data", source, *(["--model", "transformer"] * (source == "book.txt")), "--epochs", "1", "--no-compile")
    assert pipe("sweep", *given, f"--{name}", ",".join(values), "--out", "sweep", "-q").exit_code == 0
    for k, value in enumerate(values):
        config = ("train", *given, f"--{name}", value, "--set", "split_seed=0", "--out", value, "-q")
        assert pipe(*config).exit_code == 0
        mine, alone = (settings.make(settings.read(p / "config.toml")).flat for p in
                       (here / "sweep" / "members" / f"00{k}", here / value))  # fmt: skip
        assert {n: v for n, v in mine.items() if v != alone[n]}.keys() <= {"out", "best", "eager_steps"}
    assert pipe("sweep", "--resume", str(here / "sweep"), "-q").exit_code == 0


def test_models_of_other_numbers_of_epochs_need_one(here):
    """And the patience that a model's defaults bring is said to be left out."""
    (here / "table.csv").write_text("a,y\n" + "".join(f"{v % 37},{v % 5}\n" for v in range(240)))
    given = ("--data", "table.csv", "--no-compile")
    with pytest.raises(ConfigError, match="a sweep has one number of epochs, not 256 and 20: add --epochs 256"):
        pipe("sweep", *given, "--model", "tabm,mlp")
    done = pipe("sweep", *given, "--model", "tabm", "--epochs", "1", "--lr", "0.001,0.002")
    assert done.exit_code == 0
    assert "1 of each run: the model's patience does not apply to a sweep" in done.output
    with pytest.raises(ConfigError, match="--patience does not apply"):
        pipe("sweep", *given, "--lr", "0.1,0.2", "--patience", "3")


def test_settings_are_drawn(here):
    """So many as are asked for, and other models are groups of their own."""
    done = pipe(
        "sweep", "--lr", "0.01..1:log", "--hidden", "8", "--optimizer", "sgd,adamw", "--random", "3", *SMALL[4:]
    )
    assert done.exit_code == 0
    rows = list(csv.DictReader(next((here / "runs").glob("*/sweep.csv")).open()))
    assert len(rows) == 3
    assert all(0.01 <= float(r["lr"]) <= 1 for r in rows)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--lr", "0..1:log:3"), "is no range"),
        (("--lr", "1..0.1:3"), "is no range"),
        (("--lr", "0.1..1"), "has no number of values"),
        (("--lr", "a,b"), "is no number"),
        (("--epochs", "1.5"), "is no whole number"),
        (("--random", "3"), "nothing to draw"),
        (("--lr", "0.1,-1"), "out of range"),
        (("--optimizer", "sgd,adamm"), "did you mean 'adam"),
        (("--eager-steps", "5"), "--eager-steps does not apply to a sweep; leave it out"),
        (("--folds", "3"), "--folds does not apply to a sweep; leave it out"),
        (("--patience", "3"), "--patience does not apply"),
        (("--best", "acuracy"), "did you mean 'accuracy'"),
        (("--resume", "nowhere"), "holds no run"),
        (("--resume", "nowhere", "--lr", "1"), "leave out others"),
        (("--resume", "nowhere", "--halving"), "leave out others"),
        (("--resume", "nowhere", "--seeds", "2"), "leave out others"),
        (("--ensemble", "4"), "--ensemble does not apply to a sweep"),
        (("--set", "keep=3"), "--set keep does not apply to a sweep; leave it out"),
        (("--set", "run.steps_per_call=2,3"), "--set steps_per_call does not apply to a sweep; leave it out"),
        (("--lr", "0.3", "--set", "optimizer.lr=0.1,0.2"), "optimizer.lr is given twice; leave one out"),
        (("--text-depth", "0,1"), "--text-depth 1 has no effect, as no column is a text"),
        (
            ("--data", "sklearn:diabetes", "--model", "mlp", "--loss", "quantile,mse"),
            "have different metrics, pinball and r2; add --best r2",
        ),
    ],
)
def test_bad_sweeps_are_one_line(here, args, said):
    with pytest.raises(ConfigError, match=said):
        pipe("sweep", *args)
    assert not list(here.glob("runs/*/members"))


def test_values_of_options():
    """Lists, ranges and single values, of numbers, whole numbers and names."""
    single, axes = split_axes(
        {"lr": "0.1,0.2", "epochs": "3", "batch_size": "32..128:3", "model": "mlp,convnet", "hidden": "8,8",
         "data": "a.csv,b.csv"}
    )  # fmt: skip
    assert single == {"epochs": 3, "hidden": "8,8", "data": "a.csv,b.csv"}  # one table of two files
    assert [a.values for a in axes] == [(0.1, 0.2), (32, 80, 128), ("mlp", "convnet")]
    assert len(combinations(axes, None, 0)) == 12
    drawn = combinations([Axis("lr", (), 1e-3, 1.0, True)], 100, 7)
    assert drawn == combinations([Axis("lr", (), 1e-3, 1.0, True)], 100, 7)
    assert sum(row["lr"] < 10**-1.5 for row in drawn) in range(30, 70)


def test_members_are_the_runs_of_pipe_train_on_one_split(here):
    """Whatever their seeds: with the threshold and the temperature that it fits. They keep the last epoch alone, and
    whatever reads a member takes that for its best one."""
    rows = [(k % 37, k * k % 11, "yes" if k % 37 > k * k % 11 + 9 else "no") for k in range(240)]
    with (here / "data.csv").open("w") as file:
        csv.writer(file).writerows([("a", "b", "kind"), *rows])
    given = ("--data", "data.csv", "--threshold", "f1", "--calibrate", "--optimizer", "adamw", "--lr", "0.1",
             "--schedule", "constant", *SMALL, "--batch-size", "32", "--epochs", "4")  # fmt: skip
    assert pipe("sweep", *given, "--seed", "1,2", "--out", "sweep").exit_code == 0
    for member, seed in (("000", "1"), ("001", "2")):
        alone = ("--seed", seed, "--set", "split_seed=1", "--out", f"alone{seed}")
        assert pipe("train", *given, *alone).exit_code == 0
        folder = here / "sweep" / "members" / member
        mine, its = (json.loads((p / "decision.json").read_text())["last"] for p in (folder, here / f"alone{seed}"))
        for number in ("temperature", "threshold", "value"):
            assert mine[number] == pytest.approx(its[number], rel=1e-3)
        assert load_file(folder / "best.safetensors").keys() == load_file(folder / "model.safetensors").keys()
        told = json.loads(pipe("eval", str(folder), "--json").stdout)
        past = Past(folder)
        past.rows[0]["validate/average precision"] = 1.5  # as if an earlier epoch had been better
        assert (told["epoch"], html_report._best(past)[:2]) == (4, (4, "average precision"))


def test_widths_are_no_values_to_sweep_over(here):
    """Which is said if nothing else varies."""
    done = pipe("sweep", "--hidden", "4,5", *SMALL[4:])
    assert (done.exit_code, "nothing varies: --hidden 4,5 is one model" in done.stderr) == (0, True)


def test_a_sweep_that_is_killed_goes_on_bit_for_bit():
    """A few kills at random moments; every member is that of the sweep never killed, and as many are dropped."""
    [(times, runs, same)] = kills.campaign(2, ["uncompiled halving"], 40, 1.0, 0, forked.Process).values()
    assert (times, runs) == (2, same)


def test_tables_and_pictures_of_few_and_many():
    """The best settings first, and no more than fit."""
    chance = random.Random(1)
    own = {"epoch": 1, "better": {"loss": "low"}}
    rows = [({"lr": chance.uniform(0.1, 1), "momentum": m}, [{**own, "validate/loss": chance.random()}])
            for m in (0.0, 0.5) for _ in range(100)]  # fmt: skip
    rows.append(({"lr": 9.0, "momentum": 0.0}, [{"epoch": 1, "validate/loss": None}]))
    made = picture.table(["lr", "momentum"], rows, "loss")
    assert made.row_count == picture.ROWS
    assert "181 more settings" in str(made.caption)
    means = [float(re.sub("[^0-9.]", "", str(c))) for c in made.columns[2]._cells]
    assert means == sorted(means)
    for part in (rows[:3], rows):
        assert picture.picture(["lr", "momentum"], part, "loss").axes


def test_the_best_value_at_an_end_is_said():
    """A sweep whose best learning rate is the largest may have a better one beyond it; two values have no ends."""
    axes = [Axis("lr", (0.01, 0.1, 1.0)), Axis("momentum", (0.0, 0.9)), Axis("clip", low=0.1, high=10.0, log=True)]
    names = [a.name for a in axes]
    losses = {(1.0, 0.9, 9.9): 0.1, (0.1, 0.0, 1.0): 0.2, (0.01, 0.0, 0.5): 0.3}
    points = [
        (dict(zip(names, at, strict=True)), [{"epoch": 1, "validate/loss": loss, "better": {"loss": "low"}}])
        for at, loss in losses.items()
    ]
    assert picture.edges(axes, points[1:], "loss") == []
    lr, clip = picture.edges(axes, points, "loss")
    assert lr == "the best lr, 1, is at the upper end of what was tried"
    assert clip.startswith("the best clip, 9.9, is at the upper end")


def test_an_ensemble_is_one_run(here):
    """What is after a run takes all members as one model: figures, answers, a program, from any of its weights."""
    rows = ["a,b,kind", *(f"{x % 7},{x % 5},{'yes' if x % 7 > x % 5 else 'no'}" for x in range(90))]
    (here / "data.csv").write_text("\n".join(rows))
    data = ("--data", "data.csv", "--target", "kind", "--ensemble", "3")
    assert pipe("train", *data, *SMALL, "--batch-size", "8", "--out", "whole").exit_code == 0
    last = json.loads((here / "whole" / "metrics.jsonl").read_text().splitlines()[-1])
    found = json.loads(pipe("eval", "whole", "--weights", "last", "--json").stdout)["metrics"]
    assert found == pytest.approx({k: last[f"validate/{k}"] for k in found})
    assert {"votes.accuracy", "members.accuracy", "members.accuracy/2", "calibration error"} <= found.keys()
    told = pipe("predict", "whole", "--data", "data.csv").output
    share = sum(row["prediction"] == row["kind"] for row in csv.DictReader(told.splitlines())) / 90
    assert share > 0.8
    assert "off by" in pipe("export", "whole").output
    assert pipe("train", "--resume", "whole", "--epochs", "3", "-q").exit_code == 0
    now = pipe("predict", "whole", "--data", "data.csv", "--weights", "last").output
    shutil.rmtree(here / "whole" / "checkpoints")
    assert pipe("predict", "whole", "--data", "data.csv", "--weights", "last").output == now
    weights = load_file(here / "whole" / "model.safetensors")
    assert {name.split(".")[1] for name in weights} == {"0", "1", "2"}


@given(st.integers(1, 300), st.integers(1, 100))
def test_rungs_halve_runs_and_double_epochs(count, epochs):
    """Every rung has twice the epochs of the one before, the last one all, and each one runs to drop."""
    ends = groups.rungs(count, epochs, True)
    assert ends[-1] == epochs
    assert all(a == b // 2 for a, b in itertools.pairwise(ends))
    assert 2 ** (len(ends) - 1) <= count
    assert ends[0] >= 1
    assert groups.rungs(count, epochs, False) == [epochs]


@given(st.integers(1, 200), st.integers(1, 40))
def test_members_are_packed_into_few_widths(count, full):
    """All are trained once, in parts of one width, which is at most a few times wider than it has to be."""
    alive = [SimpleNamespace(name=str(i), config=SimpleNamespace(run=SimpleNamespace(seed=i)), hyper={})
             for i in range(count)]  # fmt: skip
    made = SimpleNamespace(pipe=pipes.digits(update.sgd(0.1)))
    found = list(groups.chunks("0-0", made, alive, full, (0, 1), 0))
    assert [m for chunk in found for m in chunk.members] == alive
    widths = {chunk.runs.members for chunk in found}
    [one] = widths
    assert one == full or (len(found) == 1 and one < groups.NARROWER * count)


def test_halving_lets_the_better_half_go_on(here):
    """A member that went on is the one of the sweep that drops none, and what was dropped can go on by itself."""
    options = ("--lr", "0.01..1:log:4", "--momentum", "0.9", "--seeds", "2", *SMALL, "--epochs", "4", "--at-once", "4")
    for name, more in (("all", ()), ("halved", ("--halving",))):
        assert pipe("sweep", *options, *more, "--out", name).exit_code == 0
    rows, every = (list(csv.DictReader((here / n / "sweep.csv").open())) for n in ("halved", "all"))
    assert sorted(int(r["epochs"]) for r in rows) == [1, 1, 1, 1, 2, 2, 4, 4]
    first = [json.loads((here / "all" / r["run"] / "metrics.jsonl").open().readline()) for r in every]
    best = sorted(range(8), key=lambda i: -first[i]["validate/accuracy"])[:4]
    assert {i for i in range(8) if int(rows[i]["epochs"]) > 1} == set(best)
    for row in rows:
        own, other = (here / name / row["run"] for name in ("halved", "all"))
        lines = [(p / "metrics.jsonl").read_text().splitlines() for p in (own, other)]
        assert len(lines[0]) == int(row["epochs"])
        if len(lines[0]) == 4:
            mine, its = (load_file(p / "model.safetensors") for p in (own, other))
            for name, weights in mine.items():
                torch.testing.assert_close(weights, its[name], rtol=1e-5, atol=1e-5)
    dropped = here / "halved" / next(r["run"] for r in rows if r["epochs"] == "1")
    assert json.loads((dropped / "status.json").read_text())["why"] == "after epoch 1 of 4, by --halving"
    assert pipe("train", "--resume", str(dropped), "-q").exit_code == 0
    assert len((dropped / "metrics.jsonl").read_text().splitlines()) == 4
    chosen = next(r for r in rows if r["run"].endswith(os.path.basename(os.readlink(here / "halved" / "best"))))
    assert chosen["epochs"] == "4"


def test_halving_goes_by_what_was_known_then(here):
    """Going on with a sweep drops the same runs, also where those that went on did worse later."""
    options = ("--lr", "1e27..1e30:log:4", "--halving", *SMALL, "--epochs", "4", "--out", "wild")
    assert pipe("sweep", *options).exit_code == 0
    first = (here / "wild" / "sweep.csv").read_text(), os.readlink(here / "wild" / "best")
    assert pipe("sweep", "--resume", "wild", "-q").exit_code == 0
    assert ((here / "wild" / "sweep.csv").read_text(), os.readlink(here / "wild" / "best")) == first


@pytest.mark.parametrize(("copies", "width"), [(1000, 32), (20, 20), (0.5, 1)])
def test_members_at_once_fit_in_half_of_the_memory(monkeypatch, copies, width):
    """32 on a CPU, fewer if they do not fit, and always one."""
    [member] = groups.members([{}], [settings.make({"hidden": [8]})], 1)
    monkeypatch.setattr(groups.room, "free", lambda device: 2 * copies * groups.memory_of(member))
    assert groups.width([member]) == width


def test_settings_without_a_flag_have_several_values_too(here):
    """--set takes lists and ranges as flags do."""
    args = ("--set", "smoothing=0,0.1", "--set", "optimizer.lr=0.1..0.2:2", *SMALL, "--out", "set")
    assert pipe("sweep", *args).exit_code == 0
    rows = list(csv.DictReader((here / "set" / "sweep.csv").open()))
    assert {(r["smoothing"], r["optimizer.lr"]) for r in rows} == {
        (s, lr) for s in ("0.0", "0.1") for lr in ("0.1", "0.2")
    }
