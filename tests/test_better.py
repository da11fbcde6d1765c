"""Which run, and which epoch of it, is better, for the command."""

import json
import re
import shutil

import pytest

from pipeline import checkpoint, log
from pipeline.direction import direction, directions, rank
from pipeline.errors import ConfigError

OWN = """
import torch
from pipeline import *

def wrong(outputs, targets):
    return {"sum": (outputs.argmax(1) != targets).sum(), "n": torch.tensor(len(targets))}

def make():
    train, test = sources.digits()
    sums = {"sum": torch.int64, "n": torch.int64}
    wer, odd = (
        evaluate.metric(name, wrong, lambda s, name=name: {name: s["sum"] / s["n"]}, sums, better=better)
        for name, better in (("wer", "low"), ("odd", None))
    )
    host = evaluate.on_host("host", lambda outputs: outputs.abs().max().item(), lambda x: {"far": max(x)}, better="low")
    model = forward.model(lambda: models.mlp(64, 8, 10))
    stages = load.batches(train, size=256), model, loss.cross_entropy(), odd, wer, host
    return Pipeline(*stages, backward.gradients(), update.adam(0.03)), test
"""


def test_metrics_of_ones_own_choose_the_best_epoch(pipe, tmp_path, monkeypatch):
    """By what they declare: in train, runs, plot and sweep, also on the host; what declares nothing is refused
    before the first step, and a run whose lines declare nothing has no best epoch."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    options = ("--epochs", "3", "--no-compile", "-q")
    for best in ("wer", "far"):
        assert pipe("train", "own.py:make", *options, "--best", best, "--out", best)[0] == 0
        rows = log.read(f"{best}/metrics.jsonl")
        assert [r.get("better") for r in rows] == [{"wer": "low", "loss": "low", "far": "low"}, None, None]
        least = min(r[f"validate/{best}"] for r in rows)
        [run] = json.loads(pipe("runs", best, "--json")[1])["runs"]
        assert (run["best"]["metric"], run["best"]["value"]) == (best, least)
        assert checkpoint.newest(f"{best}/checkpoints").saved.best.value == least
        assert pipe("plot", best, "--out", f"{best}.svg")[0] == 0
        assert f"best: epoch {run['best']['epoch']}" in (tmp_path / f"{best}.svg").read_text()
    for command in ("train", "sweep"):
        code, _, err = pipe(command, "own.py:make", *options, "--best", "odd", "--out", "odd")
        assert code != 0
        assert "nothing says whether --best 'odd' is better high or low" in err
        assert "known of wer, loss" in err
        shutil.rmtree("odd", ignore_errors=True)
    listed = pipe("runs", ".", "--sort", "wer")[1].splitlines()[1:]
    found = [float(text) for line in listed for text in re.findall(r"wer (\d\.\d+) in", line)]
    assert found == sorted(found)
    assert "'odd' is better high or low" in pipe("runs", ".", "--sort", "odd")[2]
    assert pipe("sweep", "own.py:make", *options, "--best", "wer", "--seeds", "3", "--out", "all")[0] == 0
    ends = [log.read(p / "metrics.jsonl")[-1]["validate/wer"] for p in sorted((tmp_path / "all" / "members").iterdir())]
    assert log.read("all/best/metrics.jsonl")[-1]["validate/wer"] == min(ends)
    lines = tmp_path / "wer" / "metrics.jsonl"
    lines.write_text(re.sub(', "better": {[^}]*}', "", lines.read_text()))
    assert json.loads(pipe("runs", "wer", "--json")[1])["runs"][0]["best"] is None


def test_views_have_the_direction_of_their_metric():
    """Of averages, of members, and of several data sets by name; a metric's own name comes first, and what declares
    nothing has none."""
    declared = {"wer": "low", "x.wer": "high", "odd": None, "a.loss": None, "loss": "low"}
    names = ["wer", "x.wer", "far.x.wer", "test.ema.wer", "odd", "ema.odd", "a.loss", "b.loss", "other"]
    assert directions(declared, names) == {
        "wer": "low", "x.wer": "high", "far.x.wer": "high", "test.ema.wer": "low", "b.loss": "low",
    }  # fmt: skip
    assert directions({**declared, "": "high"}, ["far.bleu"]) == {"far.bleu": "high"}
    with pytest.raises(ConfigError, match="nothing says whether 'odd'"):
        direction("odd", directions(declared, names))


def test_ties_go_by_the_loss_of_the_same_view():
    """Of an average by the average's own loss; where it has none, by the loss; what is no number comes last."""
    a = {"ema.accuracy": 1.0, "ema.loss": 0.1, "loss": 9.0}
    b = {"ema.accuracy": 1.0, "ema.loss": 0.2, "loss": 0.0}
    assert rank("ema.accuracy", "high", a) < rank("ema.accuracy", "high", b)
    assert rank("top.accuracy", "high", {"top.accuracy": 1, "loss": 1}) < rank(
        "top.accuracy", "high", {"top.accuracy": 1}
    )
    for way in ("high", "low"):
        assert rank("r2", way, {"r2": -5.0}) < rank("r2", way, {"r2": float("nan")}) == rank("r2", way, {"r2": None})
