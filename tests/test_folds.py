"""`pipe train --folds`: one run of several, resumed exactly, measured over all rows, and answering by its mean."""

import json
import shutil
import signal
import tomllib

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics as sk

from cli import config, processes
from cli.prepared import prepared
from pipeline import load_run, sources
from pipeline.errors import ConfigError
from tests import forked, kills
from tests.commands import run

FOLDS = 3
TINY = ["train", "--folds", FOLDS, "--no-compile", "--hidden", "8", "--dropout", "0.2", "--batch-size", "479"]
TINY += ["--save-steps", "1", "--epochs", "3"]
TABLE = ["train", "--model", "mlp", "--no-compile", "-q", "--epochs", "3", "--folds", FOLDS]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """All folds of digits, never stopped, and of a table of two classes and of values."""
    root = tmp_path_factory.mktemp("folds")
    rows(200, 0).to_csv(root / "all.csv", index=False)
    rows(90, 1).to_csv(root / "new.csv", index=False)
    two = ["--data", "all.csv", "--target", "kind", "--ignore", "price"]
    two += ["--metric", "roc-auc", "--metric", "log-loss", "--threshold", "f1", "--calibrate"]
    one = ["--data", "all.csv", "--target", "price", "--ignore", "kind", "--ema", "0.5"]
    for args in ([*TINY, "-q", "--out", "whole"], [*TABLE, *two, "--out", "kind"], [*TABLE, *one, "--out", "price"]):
        done = run(*args, cwd=root)
        assert done.code == 0, done.err
    return root


def rows(n, seed):
    """A table with numbers, some missing, and categories, that all folds have."""
    r = np.random.default_rng(seed)
    age, city = r.normal(40, 10, n), r.choice(["Basel", "Bern", "Zug"], n)
    score = age / 10 + 2.0 * (city == "Zug") + r.normal(0, 1, n)
    table = pd.DataFrame({"age": age, "city": city, "kind": np.where(score > 5.5, "b", "a"), "price": 1e4 + 90 * score})
    table.loc[r.random(n) < 0.1, "age"] = None
    return table


def recorded(folder):
    return tomllib.loads((folder / "config.toml").read_text())["folds"]


def held_out(folder, weights="best"):
    """Outputs and targets of all rows, each by the run that held it out, computed in Python."""
    each = []
    for i in range(FOLDS):
        pipe, state, data = load_run(folder / f"fold-{i}", weights=weights)
        batch = data[torch.arange(len(data))]
        with torch.no_grad():
            outputs = pipe.module(state)(*(batch[name] for name in pipe.models[0].reads if name in batch))
        scale = json.loads((folder / f"fold-{i}" / "data.json").read_text())["fitted"]
        if "target_mean" in scale:
            outputs = outputs * scale["target_std"][0] + scale["target_mean"][0]
        each.append((outputs, batch["targets"]))
    return [torch.cat(part) for part in zip(*each, strict=True)]


def sure_of(folder):
    """Calibrated probabilities of class b of all rows, their classes, and the mean of the thresholds."""
    outputs, targets = held_out(folder)
    made = [json.loads((folder / f"fold-{i}" / "decision.json").read_text())["best"] for i in range(FOLDS)]
    counts = [len(load_run(folder / f"fold-{i}")[2]) for i in range(FOLDS)]
    divisor = torch.from_numpy(np.repeat([m["temperature"] for m in made], counts))
    return (outputs.double() / divisor[:, None]).softmax(1)[:, 1], targets, np.mean([m["threshold"] for m in made])


def test_the_metric_of_all_rows_is_no_mean_of_folds(root):
    """Sums of all folds, divided once, are what scikit-learn computes of all held-out rows together."""
    sure, targets, edge = sure_of(root / "kind")
    kept = recorded(root / "kind")
    assert len(targets) == 200
    assert kept["count"] == len(kept["ends"]) == FOLDS
    whole, means = kept["whole"], {k: np.mean([end[k] for end in kept["ends"]]) for k in kept["ends"][0]}
    assert whole["roc auc"] == pytest.approx(sk.roc_auc_score(targets, sure), abs=1e-3)
    assert whole["roc auc"] != pytest.approx(means["roc auc"], abs=1e-6)
    assert whole["accuracy"] == pytest.approx(sk.accuracy_score(targets, sure >= edge))
    assert whole["log loss"] == pytest.approx(sk.log_loss(targets, sure), rel=1e-6)
    values, targets = held_out(root / "price")
    kept = recorded(root / "price")
    assert kept["whole"]["r2"] == pytest.approx(sk.r2_score(targets, values.squeeze(1)), rel=1e-4)
    assert kept["whole"]["mae"] == pytest.approx(sk.mean_absolute_error(targets, values.squeeze(1)), rel=1e-5)
    assert kept["whole"].keys() >= {"ema.r2", "ema.loss", "loss"}
    assert kept["whole"]["r2"] != pytest.approx(np.mean([end["r2"] for end in kept["ends"]]), abs=1e-6)


def test_both_metrics_are_printed_and_listed(root):
    """In one line: mean and deviation over folds, and the value over all samples."""
    code, out, err = run("train", "--resume", root / "whole", "-q")
    assert (code, err) == (0, "")
    ends, whole = (recorded(root / "whole")[k] for k in ("ends", "whole"))
    shares = torch.tensor([end["accuracy"] for end in ends], dtype=torch.float64) * 100
    of_all = f"{100 * whole['accuracy']:.2f} % over all samples"
    line = f"accuracy {shares.mean():.2f} % +- {shares.std():.2f} % over 3 folds, {of_all}"
    assert f"folds   {line}\n" in out
    found = {e["run"]: e for e in json.loads(run("runs", root / "whole", root / "kind", "--json")[1])["runs"]}
    assert (found[str(root / "whole")]["state"], found[str(root / "whole")]["why"]) == ("done", line)


def stopped(folder, step, number):
    """The same run, ended by a signal in fold 1."""
    code = f"""
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_DFL)
from pipeline.checkpoint import Saver
offer = Saver.offer
def watched(self, report, **options):
    if report.step == {step} and "fold-1" in str(self.folder):
        os.kill(os.getpid(), {number:d})
    return offer(self, report, **options)
Saver.offer = watched
from cli.main import main
main()
"""
    return forked.run(*TINY, "--out", str(folder), code=code)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_all_folds_go_on_as_one(root, tmp_path, number):
    """Stopped or killed in the second fold, it is listed so, and ends bit for bit as if it had not been."""
    folder = tmp_path / "run"
    done = stopped(folder, 5, number)
    if number == signal.SIGTERM:
        assert done.returncode == 128 + number, done.stderr
        assert done.stderr.endswith(f"stopped in fold 2/3; go on with all: pipe train --resume {folder}\n")
    entries = {e["run"]: e for e in json.loads(run("runs", tmp_path, "--json")[1])["runs"]}
    assert (entries[str(folder)]["state"], entries[str(folder)]["why"]) == ("stopped", "fold 2/3")
    assert not (folder / "fold-2").exists()
    code, _, err = run("predict", folder, "--data", "x.csv")
    assert code == 2
    assert err == f"pipe: {folder} has not trained all of its 3 folds; go on with it: pipe train --resume {folder}\n"
    before = (folder / "fold-0" / "metrics.jsonl").stat().st_mtime_ns
    code, out, err = run("train", "--resume", folder)
    assert (code, err) == (0, "")
    assert f"fold    1/3: {folder / 'fold-0'}, done\n" in out
    assert "resume  step-00000000" in out
    assert (folder / "fold-0" / "metrics.jsonl").stat().st_mtime_ns == before
    assert_same(folder, root / "whole")


def assert_same(folder, whole):
    assert kills.ended(folder) == kills.ended(whole)
    assert recorded(folder) == recorded(whole)


@pytest.mark.parametrize("kept", range(FOLDS))
def test_folds_do_not_depend_on_each_other(root, tmp_path, kept):
    """Whatever number of folds was finished, the rest come out alike."""
    folder = tmp_path / "run"
    shutil.copytree(root / "whole", folder)
    for i in range(kept, FOLDS):
        shutil.rmtree(folder / f"fold-{i}")
    assert run("train", "--resume", folder, "-q")[0] == 0
    assert_same(folder, root / "whole")


def test_what_is_of_one_run_names_one(root, tmp_path):
    """Other settings, a replay, a report and plain weights, in a line; and a test set has no folds."""
    folder = root / "whole"
    only = f"pipe: {folder} is resumed as it is; for other settings, and to verify, name one run: {folder / 'fold-0'}\n"
    for args in (("--lr", "0.3"), ("--verify",)):
        assert run("train", "--resume", folder, *args) == (2, "", only)
    for command, *more in (("report",), ("export", "--format", "weights")):
        code, _, err = run(command, folder, *more)
        assert (code, len(err.splitlines())) == (2, 1)
        assert f"name one, such as {folder / 'fold-0'}" in err
    code, _, err = run(*TABLE, "--data", root / "all.csv", "--test", root / "new.csv")
    assert (code, err) == (2, "pipe: --folds holds out each sample of --data once; leave out --test\n")


OWN = {"random": {}, "own.npz": {}, "own.py:pair": {}, "all.csv": {"test": "new.csv", "target": "kind"}}


@pytest.mark.parametrize("source", OWN)
def test_data_with_held_out_samples_of_their_own_are_not_split(root, monkeypatch, source):
    """What would split them is refused; a run that has a share that does not count can be read."""
    monkeypatch.chdir(root)
    r = np.random.default_rng(0)
    arrays = {f"{a}_{b}": r.integers(0, 2, (30, *shape)) for a, shape in (("x", (2, 3, 3)), ("y", ()))
              for b in ("train", "test")}  # fmt: skip
    np.savez("own.npz", **arrays)
    (root / "own.py").write_text(
        "import torch\nfrom pipeline import sources\n\ndef pair():\n"
        "    some = {'inputs': torch.zeros(9, 2), 'targets': torch.arange(9) % 2}\n"
        "    return sources.Tensors(some), sources.Tensors(some)\n"
    )
    given = {"data": source, **OWN[source]}
    prepared(config.make(given))
    refused = [{"folds": 3}, {"folds": 3, "fold": 1}, {"held_out": 0.3}]
    if source in ("random", "own.py:pair"):  # a function may draw by it
        prepared(config.make(given, {"split_seed": 3}))
    else:
        refused.append({"split_seed": 3})
    for more in refused:
        with pytest.raises(ConfigError, match=r"leave (those out|it out)"):
            prepared(config.make(given, more))
        if "folds" not in more:
            prepared(config.make({**given, **more, config.RECORDED: {}}))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"fold": 2}, "--set fold=2 needs --folds 3 or more"),
        ({"fold": 2, "folds": 2}, "--set fold=2 needs --folds 3 or more"),
        ({"held_out": 0.3, "folds": 2}, "--held-out has no effect with --folds; leave it out"),
    ],
)
def test_a_fold_that_is_none(given, message):
    with pytest.raises(ConfigError, match=message):
        prepared(config.make({"data": "digits"}, given))


def test_a_fold_that_fails_is_listed(tmp_path):
    """With its number, and why; the next folds do not begin."""
    wild = ["--lr", "1e30", "--clip", "0", "--momentum", "0", "-q", "--out", tmp_path / "wild"]
    assert run(*TINY, *wild)[0] == 2
    [found] = json.loads(run("runs", tmp_path / "wild", "--json")[1])["runs"]
    assert found["state"] == "failed"
    assert found["why"].startswith("fold 1/3: step")


def test_processes_that_are_restarted_go_on_with_all_folds(root, tmp_path, monkeypatch):
    """With the options that they were started with, which the run has recorded."""
    shutil.copytree(root / "whole", tmp_path / "run")
    monkeypatch.setattr(processes, "restarted", lambda: True)
    monkeypatch.setattr(processes, "noted", {processes.FOLDER: str(tmp_path / "run")}.get)
    assert run(*TINY, "--out", "run", cwd=tmp_path)[::2] == (0, "")


def test_set_reaches_each_fold(root, tmp_path):
    """A setting is changed in all that have begun and are not done, and the results are kept."""
    folder = tmp_path / "run"
    shutil.copytree(root / "whole", folder)
    shutil.rmtree(folder / "fold-2")
    code, _, err = run("set", folder, "lr=0.125", "patience=9")
    assert (code, err.count("--lr without effect, as the run is done")) == (0, FOLDS - 1)
    paths = [folder / "config.toml", *folder.glob("fold-*/config.toml")]
    tables = [tomllib.loads(p.read_text()) for p in paths]
    assert [t["run"]["patience"] for t in tables] == [9] * FOLDS
    assert [t["optimizer"].get("lr") for t in tables] == [0.125, *[None] * (FOLDS - 1)]
    assert recorded(folder) == recorded(root / "whole")


@pytest.mark.parametrize("name", ["kind", "price"])
def test_eval_without_data_is_out_of_fold(root, name):
    """The figures that the training printed, of the weights that predict; of classes, by the mean of the thresholds."""
    code, out, _ = run("eval", root / name, "--json", cwd=root)
    assert code == 0
    found, whole = json.loads(out), recorded(root / name)["whole"]
    assert {metric: found["metrics"][metric] for metric in whole} == whole
    if name == "kind":
        sure, targets, edge = sure_of(root / name)
        assert found["threshold"]["from probability"] == pytest.approx(edge)
        expected = sk.confusion_matrix(targets, sure >= edge)
        assert found["confusion"] == expected.tolist()
        assert found["metrics"]["accuracy"] == pytest.approx(expected.trace() / expected.sum())
        assert found["baseline"]["accuracy"] == pytest.approx(max(np.bincount(targets)) / len(targets))
        assert "by always predicting '" in run("eval", root / name, cwd=root)[1]
    else:
        _, targets = held_out(root / name)
        counts = [len(load_run(root / name / f"fold-{i}")[2]) for i in range(FOLDS)]
        folds = np.split(np.asarray(targets).ravel(), np.cumsum(counts)[:-1])
        means = [np.mean(np.concatenate([*folds[:i], *folds[i + 1 :]])) for i in range(FOLDS)]
        constants = np.repeat(means, counts)
        assert found["baseline"]["r2"] == pytest.approx(sk.r2_score(np.concatenate(folds), constants), abs=1e-4)
        assert "by the constant of each fold" in run("eval", root / name, cwd=root)[1]


@pytest.mark.parametrize("name", ["kind", "price"])
def test_eval_on_other_data_is_of_the_mean_prediction(root, tmp_path, name):
    """The metrics are of what `predict` answers, with its threshold."""
    code, out, _ = run("eval", root / name, "--data", root / "new.csv", "--json", cwd=root)
    assert code == 0
    found = json.loads(out)["metrics"]
    to = ("--out", tmp_path / "p.csv", "--json")
    said = json.loads(run("predict", root / name, "--data", root / "new.csv", *to, cwd=root)[1])
    assert (said["run"], said["folds"]) == (str(root / name), FOLDS)
    table = pd.read_csv(tmp_path / "p.csv")
    if name == "price":
        assert found["r2"] == pytest.approx(sk.r2_score(table.price, table.prediction), rel=1e-3)
        assert found["mae"] == pytest.approx(sk.mean_absolute_error(table.price, table.prediction), rel=1e-4)
        return
    assert found["accuracy"] == pytest.approx((table.kind == table.prediction).mean())
    sure = np.where(table.prediction == "b", table.probability, 1 - table.probability)
    assert found["log loss"] == pytest.approx(sk.log_loss(table.kind == "b", sure), rel=1e-4)
    assert found["roc auc"] == pytest.approx(sk.roc_auc_score(table.kind == "b", sure), abs=1e-3)


@pytest.mark.parametrize("name", ["kind", "price"])
def test_the_mean_is_exported_as_one_program(root, tmp_path, name):
    """From raw columns to what `predict` answers: each run's own preparation is inside."""
    code, _, err = run("export", root / name, "--out", tmp_path / "m.pt2", cwd=root)
    assert (code, err) == (0, "")
    program = torch.export.load(tmp_path / "m.pt2").module()
    numbers, categories = json.loads((tmp_path / "m.pt2.json").read_text())["inputs"]
    table = pd.read_csv(root / "new.csv")
    [city] = categories["columns"]
    given = [torch.tensor(table[[c["name"] for c in numbers["columns"]]].to_numpy())]
    given.append(torch.tensor(table[city["name"]].map(city["codes"]).to_numpy())[:, None])
    assert run("predict", root / name, "--data", root / "new.csv", "--out", tmp_path / "p.npz", cwd=root)[0] == 0
    key = "probabilities" if name == "kind" else "prediction"
    np.testing.assert_allclose(program(*given).detach(), np.load(tmp_path / "p.npz")[key], rtol=1e-5)


def test_folds_with_other_categories_are_no_program(tmp_path):
    """A city that one row alone has is unknown to the fold that holds it out."""
    table = rows(60, 0).drop(columns="price")
    table.loc[7, "city"] = "Uri"
    table.to_csv(tmp_path / "a.csv", index=False)
    assert run(*TABLE, "--data", "a.csv", "--target", "kind", "--out", "f", cwd=tmp_path)[0] == 0
    code, _, err = run("export", "f", cwd=tmp_path)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "column 'city' has other categories or words in f/fold-" in err
    assert run("eval", "f", "--data", "a.csv", cwd=tmp_path)[0] == 0


def test_runs_that_leave_out_other_rows_have_no_mean(tmp_path):
    """As many of each, but others: each fold ignores a column that is constant in its training rows."""
    table = rows(40, 0)[["age", "kind"]].fillna(40.0)
    for i, name in enumerate("xy"):
        held = sources.Split(folds=2, fold=i).rows(40, labels=(table.kind == "b").to_numpy())[1].numpy()
        table[name] = 1.0
        table.loc[held, name] = np.arange(len(held)) / 7
    table.to_csv(tmp_path / "a.csv", index=False)
    train = [*TABLE, "--data", "a.csv", "--target", "kind", "--out", "f"]
    assert run(*train, "--folds", 2, cwd=tmp_path)[0] == 0
    bad = table.astype({"x": object, "y": object})
    bad.loc[2, "x"] = bad.loc[5, "y"] = "?!"
    bad.to_csv(tmp_path / "bad.csv", index=False)
    for i in range(2):
        code, out, err = run("predict", f"f/fold-{i}", "--data", "bad.csv", "--skip-bad", cwd=tmp_path)
        assert (code, len(out.splitlines())) == (0, 40)
        assert f"1 row that can't be read is left out: line {7 if i == 0 else 4}" in err
    for command in ("predict", "eval"):
        code, _, err = run(command, "f", "--data", "bad.csv", "--skip-bad", cwd=tmp_path)
        assert (code, len(err.splitlines())) == (2, 1)
        assert "line 4 can be read by some of the runs alone" in err


def test_the_curves_of_all_folds_are_one_picture(root):
    """Named by their folders."""
    done = run("plot", "price", "--metric", "loss", "--out", "price.svg", cwd=root)
    assert done.code == 0, done.err
    assert all(f"fold-{i}" in (root / "price.svg").read_text() for i in range(FOLDS))


def test_folds_by_time_do_not_hold_out_all(tmp_path):
    """The rows before the first fold are training rows of each, as `eval` says."""
    rows(80, 0).assign(day=range(80)).to_csv(tmp_path / "a.csv", index=False)
    train = [*TABLE, "--data", "a.csv", "--target", "price", "--ignore", "kind", "--set", "time=day", "--out", "f"]
    assert run(*train, cwd=tmp_path)[0] == 0
    out = run("eval", "f", cwd=tmp_path)[1]
    assert "a.csv, all samples but the first 1/4 by 'day', each by the run that held it out" in out
