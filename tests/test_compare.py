"""pipe compare: two settings on the same seeds, and what their differences say."""

import csv
import json
import math
import os
import signal

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from cli import comparison
from cli.paired import MOST, POWER, paired, power, sentences, settling
from pipeline import Report, until
from tests import commands

NUMBERS = st.floats(-100, 100, allow_nan=False).map(lambda x: round(x, 3))


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=40))
def test_the_paired_t_test_is_scipys(pairs):
    """Mean, interval, p and signs of any pairs whose differences are not all the same."""
    a, b = np.array(pairs).T
    assume(np.ptp(b - a) > 1e-6)
    mine, other = paired(b - a), stats.ttest_rel(b, a)
    low, high = other.confidence_interval(0.95)
    assert (mine.mean, mine.p) == pytest.approx(((b - a).mean(), other.pvalue), rel=1e-6, abs=1e-12)
    assert (mine.low, mine.high) == pytest.approx((low, high), rel=1e-6, abs=1e-9)
    assert (mine.above, mine.below) == ((b > a).sum(), (b < a).sum())
    turned = paired(a - b)
    assert (turned.mean, turned.p, turned.low, turned.above) == (-mine.mean, mine.p, -mine.high, mine.below)


@given(st.floats(0.01, 3), st.integers(2, 300))
def test_the_power_is_that_of_the_noncentral_t(effect, count):
    """Both tails, wherever scipy has them."""
    t, shift = stats.t.ppf(0.975, count - 1), effect * math.sqrt(count)
    tails = stats.nct.sf(t, count - 1, shift) + stats.nct.cdf(-t, count - 1, shift)
    assume(math.isfinite(tails))
    assert power(effect, count) == pytest.approx(tails, abs=1e-4)


@given(st.floats(0.01, 30), st.floats(0.1, 10))
def test_the_seeds_that_settle_are_the_fewest(effect, spread):
    """One less has too little power; so much is needed for either sign and any unit."""
    count = settling(effect * spread, spread)
    assert count == settling(-effect * spread, spread)
    if count is None:
        assert power(effect, MOST) < POWER
    else:
        assert power(effect, count) >= POWER - 1e-9
        assert count == 2 or power(effect, count - 1) < POWER + 1e-9


def test_known_numbers_of_seeds():
    """Cohen's table of the paired t test, as in G*Power; a difference of nothing is settled by no number."""
    assert [settling(d, 1.0) for d in (0.2, 0.5, 0.8, 1.0)] == [199, 34, 15, 10]
    assert settling(0.01, 1.0) is None
    assert settling(0.0, 1.0) is None


def test_differences_without_a_spread_are_no_certainty():
    """Two seeds with the same gain are a coin that fell twice; a gain of 0 is none."""
    assert (paired([0.5, 0.5]).p, paired([0.5] * 10).p) == (0.5, 2**-9)
    assert paired([0.5, 0.5]).settle == 6
    assert paired([0.5] * 6).p < 0.05 < paired([0.5] * 5).p
    assert (paired([0.0] * 5).p, paired([0.0] * 5).settle) == (1.0, None)


@pytest.mark.parametrize(
    ("differences", "metric", "better", "said"),
    [
        ([0.01, 0.02, 0.03, 0.02], "accuracy", "high", "B is better: accuracy 2.00 points higher (95 % interval 0.70"),
        ([0.01, 0.02, 0.03, 0.02], "loss", "low", "A is better: loss 0.02 lower (95 % interval 0.00701 to 0.033)"),
        ([-1.0, -2.0, -3.0], "ema.loss", "low", "no difference seen: ema.loss 2 lower with B (95 % interval -0.484 to"),
        ([1.0, -2.0, 0.9], "loss", "low", "no number of seeds under 1,000 would show one of this size"),
        ([0.0, 0.0], "r2", "high", "no difference seen: the mean r2 of A and B is the same"),
    ],
)  # fmt: skip
def test_the_verdict_names_the_better_one(differences, metric, better, said):
    """By the direction of the metric, with an interval of the winner's gain."""
    verdict, pairs = sentences(paired(differences), metric, better)
    assert said in verdict
    wins = sum((d > 0) == (better == "high") for d in differences if d)
    assert pairs.startswith(f"pairs   B is better with {wins} of {len(differences)} seeds")


@pytest.fixture
def here(tmp_path):
    """A folder with a table that takes no time, and two configs."""
    rows = [(x % 7, x * x % 5, x / 7, "yes" if x % 7 > x * x % 5 else "no") for x in range(120)]
    with (tmp_path / "data.csv").open("w") as file:
        csv.writer(file).writerows([("a", "b", "c", "kind"), *rows])
    for name, lr in (("A", 0.01), ("B", 0.3)):
        (tmp_path / f"{name}.toml").write_text(CONFIG.format(lr=lr))
    return tmp_path


CONFIG = """
[data]
source = "data.csv"
target = "kind"
[model]
name = "mlp"
hidden = [4]
[optimizer]
name = "sgd"
lr = {lr}
[run]
epochs = 3
batch_size = 16
compile = false
"""


def compare(here, *args):
    return commands.run("compare", *args, cwd=here)


def result(folder):
    return json.loads((folder / "compare.json").read_text())["result"]


def test_pairs_are_the_runs_of_pipe_train(here):
    """Each value is the last of pipe train with its seed and the common split; more seeds leave the earlier ones."""
    done = compare(here, "A.toml", "B.toml", "--seeds", 3, "--out", "out")
    assert (done.code, done.err) == (0, "")
    assert "6 of A and B as one program, 6 at once" in done.out
    first = result(here / "out")
    for side, name in (("A", "a"), ("B", "b")):
        alone = ("--set", "seed=2", "--set", "split_seed=0", "--out", name, "-q")
        assert commands.run("train", f"{side}.toml", *alone, cwd=here).code == 0
        last = json.loads((here / name / "metrics.jsonl").read_text().splitlines()[-1])
        assert last["validate/accuracy"] == pytest.approx(first[side][2], abs=1e-6)
    members = {p: p.stat().st_mtime_ns for p in (here / "out" / "members").glob("*/model.safetensors")}
    assert len(members) == 6
    more = compare(here, "A.toml", "B.toml", "--seeds", 5, "--out", "out")
    assert (more.code, more.err) == (0, "")
    assert "done    6 of 10 runs" in more.out
    assert {p: p.stat().st_mtime_ns for p in members} == members
    both = result(here / "out")
    assert (both["A"][:3], both["B"][:3], both["seeds"]) == (first["A"], first["B"], [0, 1, 2, 3, 4])
    assert both["p"] == pytest.approx(stats.ttest_rel(both["B"], both["A"]).pvalue)
    assert (here / "out" / "compare.svg").read_text().startswith("<svg")
    loss = compare(here, "A.toml", "B.toml", "--out", "out", "--metric", "loss", "-q")
    assert (loss.code, result(here / "out")["better"]) == (0, "low")
    for args, said in [
        (("B.toml", "A.toml"), "--lr of A is 0.3, and was 0.01 in out; choose another --out"),
        (("A.toml", "B.toml", "--seeds", 2), "out has 5 seeds already: --seeds 5 or more"),
    ]:
        refused = compare(here, *args, "--out", "out")
        assert refused.code == 2
        assert said in refused.err
    (here / "data.csv").write_text((here / "data.csv").read_text() + "1,1,0.5,no\n")
    changed = compare(here, "A.toml", "B.toml", "--out", "out")
    assert changed.code == 2
    assert "have changed since the run was made" in changed.err


def test_counts_are_compared_in_their_own_units(here):
    """The targets of B are scaled once, as A's are, though both have the same data."""
    rows = [(x % 40 / 40, 1 + x % 40) for x in range(120)]
    with (here / "counts.csv").open("w") as file:
        csv.writer(file).writerows([("a", "count"), *rows])
    config = CONFIG.format(lr=0.01).replace("data.csv", "counts.csv").replace("kind", "count")
    (here / "C.toml").write_text(config + '[loss]\nname = "poisson"\n')
    done = compare(here, "C.toml", "--set", "lr=0.0101", "--seeds", 2, "--out", "counts")
    assert (done.code, done.err) == (0, "")
    found = result(here / "counts")
    assert found["metric"] == "poisson deviance"
    assert found["B"] == pytest.approx(found["A"], rel=0.05)


@given(st.lists(st.integers(0, 6) | st.just(None), min_size=1, max_size=20), st.integers(1, 4))
def test_a_run_with_a_patience_counts_by_its_best_epoch_until_then(losses, patience):
    """The one that pipe train keeps: fit, until.no_better and Saver in the place of what is compared."""
    better = {"loss": "low"}
    rows = [{"epoch": k, "better": better, "validate/loss": loss} for k, loss in enumerate(losses, 1)]
    assert comparison._end(rows, "loss", None) is rows[-1]
    stop = until.no_better("loss", epochs=patience)
    best = None
    for k, loss in enumerate(losses, 1):
        value = math.nan if loss is None else float(loss)
        if value == value and (best is None or value <= best[0]):
            best = value, k
        if stop(Report(k, 1, k, 1, 1.0, True, {}, {"loss": value}, better=better)):
            break
    found = comparison._end(rows, "loss", patience)
    assert best is None or found["epoch"] == best[1]


def test_other_shapes_are_two_programs(here):
    """A run and its change are compared too, each with members of its own."""
    assert commands.run("train", "A.toml", "--out", "runs/base", "-q", cwd=here).code == 0
    done = compare(here, "base", "--set", "hidden=[5]", "--seeds", 2)
    assert (done.code, done.err) == (0, "")
    assert "2 of A as one program" in done.out
    assert "2 of B as one program" in done.out
    assert "B       data.csv, mlp 3-5-2: hidden [5]" in done.out
    [folder] = (here / "runs").glob("compare-*")
    assert len(result(folder)["B"]) == 2


def test_a_comparison_that_is_stopped_goes_on(here, monkeypatch):
    """After a signal, what is finished stays, and the result is that of a comparison never stopped."""
    assert compare(here, "A.toml", "--set", "hidden=[5]", "--seeds", 2, "--out", "whole").code == 0
    train, calls = comparison.Trainer.train, []

    def stopping(self, chunk, show):
        calls.append(chunk.name)
        seen = []

        def shown(rows):
            show(rows)
            seen.append(rows)
            if len(calls) == 2 and len(seen) == 2:  # in the second epoch of B
                os.kill(os.getpid(), signal.SIGINT)

        return train(self, chunk, shown)

    monkeypatch.setattr(comparison.Trainer, "train", stopping)
    args = ("A.toml", "--set", "hidden=[5]", "--seeds", 2, "--out", "stopped")
    stopped = compare(here, *args)
    assert stopped.code == 130
    assert "with 2 of 4 runs; go on with the same command and --out stopped" in stopped.err
    calls.clear()
    assert compare(here, *args).code == 0
    assert len(calls) == 1
    assert result(here / "stopped") == result(here / "whole")
    rows = (here / "stopped" / "members" / "b-000" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["epoch"] for row in rows] == [1, 2, 3]


OWN = """
import torch

class Relu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.relu()

    @staticmethod
    def backward(ctx, grad):
        return grad * (ctx.saved_tensors[0] > 0)

class Net(torch.nn.Linear):
    def forward(self, x):
        return Relu.apply(super().forward(x))

def make(inputs, outputs):
    return Net(inputs, outputs)
"""


def test_what_vmap_does_not_take_is_trained_one_by_one(here):
    """Such as a model that only the tape differentiates: each run is that of pipe train, and is not done again."""
    (here / "own.py").write_text(OWN)
    (here / "A.toml").write_text((here / "A.toml").read_text().replace('"mlp"\nhidden = [4]', '"own.py:make"'))
    args = ("A.toml", "--set", "lr=0.3", "--trust", "--out", "out", "--seeds")
    done = compare(here, *args, 2)
    assert (done.code, done.err) == (0, "")
    assert "one by one: stage 'backward.gradients'" in done.out
    last = json.loads((here / "out" / "members" / "b-001" / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["epoch"], last["validate/accuracy"]) == (3, result(here / "out")["B"][1])
    assert commands.run("train", "--resume", "out/members/b-001", "--epochs", 3, "--trust", "-q", cwd=here).code == 0
    again = compare(here, *args, 2)
    assert "trained" not in again.out
    assert again.code == 0


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("A.toml",), "there is nothing to compare with: name B"),
        (("A.toml", "A.toml"), "A and B are the same settings; change one"),
        (("A.toml", "--set", "seed=3"), "A and B are the same settings, but for the seed"),
        (("A.toml", "B.toml", "--set", "seed=3"), "--seed is 0 in A and 3 in B; to pair them, add --set seed=0"),
        (("A.tml", "B.toml"), "there is no config or run A.tml; did you mean 'A.toml'?"),
        (("A.toml", "--set", "lrr=1"), "did you mean 'lr'?"),
        (("A.toml", "B.toml", "--metric", "acuracy"), "--metric 'acuracy' is no metric of this run; did you mean"),
        (("A.toml", "B.toml", "--seeds", "1"), "1 is not in the range"),
        (("A.toml", "--set", "held_out=0.3"), "A and B hold out different samples; add --set=held_out=0.2"),
        (("A.toml", "--set", "target=c"), "compare settings of one task, on the same data"),
        (("A.toml", "--set", "smoothing=0.1", "--metric", "loss"), "the losses of A and B are different ones"),
        (("A.toml", "--set", "lr=1", "--set", "best=loss"), "add --metric accuracy"),
        (("A.toml", "--set", "calibrate=true"), "--calibrate changes no metric of a comparison; give it to both"),
        (("A.toml", "--set", "threshold=f1"), "--threshold changes no metric of a comparison; give it to both"),
        (("A.toml", "--set", "ensemble=3"), "--ensemble does not apply to a comparison; leave it out"),
        (("A.toml", "--set", "lr=1e30"), "the run of B with seed 0 did not end with a finite accuracy"),
    ],
)
def test_bad_comparisons_are_one_line(here, args, said):
    """Each names what is wrong and what to write instead, before anything is trained, or after it diverged."""
    ended = compare(here, *args, *(() if "--seeds" in args else ("--seeds", "2")), "-q")
    assert ended.code == 2
    assert said in ended.err
    assert len(ended.err.splitlines()) == 1
