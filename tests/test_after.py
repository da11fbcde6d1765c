"""What is done after a training: eval, predict, export, runs, plot, report, and a run back in Python."""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

import pipeline
from cli import html_report
from cli import saved_run as past
from cli.folder import accept
from cli.main import main
from cli.prepared import fixed
from cli.settled import settled
from cli.worst import WORST
from pipeline import PipeError, load_run, log, sources
from pipeline.sources import csv, formats
from tests import pipes

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def people(n, seed):
    """A table with numbers, categories, truths and dates, some of them missing."""
    r = np.random.default_rng(seed)
    age, city, member = r.integers(18, 90, n), r.choice(["Basel", "Bern", "Zug, west"], n), r.random(n) < 0.5
    since = pd.Timestamp("2015-01-01") + pd.to_timedelta(r.integers(0, 3000, n), unit="D")
    score = age / 30 + (city == "Zug, west") * 1.5 + member + since.month.to_numpy() / 6 + r.normal(0, 0.3, n)
    table = pd.DataFrame({
        "kind": np.select([score > 4.5, score > 3.2], ["gold", "silver"], "plain"),
        "age": age.astype(float), "city": city, "member": member, "since": since.strftime("%Y-%m-%d"),
        "price": 1000 + 100 * score, "tax": 50 - 3 * score,
    })  # fmt: skip
    for name in ("age", "city"):
        table.loc[r.random(n) < 0.1, name] = None
    return table


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs on digits and on tables, a few epochs each."""
    where = tmp_path_factory.mktemp("after")
    before = os.getcwd()
    os.chdir(where)
    train, test = people(300, 0), people(120, 1)
    classes, values = ["price", "tax"], ["kind"]
    for name, drop in (("kinds", classes), ("prices", values)):
        train.drop(columns=drop).to_csv(f"{name}.csv", index=False)
        test.drop(columns=drop).to_csv(f"{name}_test.csv", index=False)
    one = ["--data", "kinds.csv", "--target", "kind", "--test", "kinds_test.csv", "--epochs", "6"]
    two = ["--data", "prices.csv", "--target", "price,tax", "--test", "prices_test.csv", "--epochs", "3"]
    runs = {"kinds": one, "prices": two, "digits": ["--epochs", "5", "--batch-size", "479", "--lr", "0.5", "-v"]}
    try:
        for name, args in runs.items():
            called("train", *args, "--out", name, "-q", "--no-compile" if name != "digits" else "--no-eager-start")
        yield where
    finally:
        os.chdir(before)


def called(*args):
    """The command, ending well."""
    argv, sys.argv = sys.argv, ["pipe", *map(str, args)]
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.argv = argv
    assert ended.value.code == 0


@pytest.fixture(autouse=True)
def _there(folder, monkeypatch):
    monkeypatch.chdir(folder)


@pytest.mark.parametrize("weights", ["best", "last"])
@pytest.mark.parametrize("name", ["kinds", "prices", "digits"])
def test_eval_gives_what_training_printed(pipe, name, weights):
    """Every figure equals the line of its epoch in metrics.jsonl, to the last bit, compiled or not."""
    code, out, _ = pipe("eval", name, "--weights", weights, "--json")
    assert code == 0
    found = json.loads(out)
    rows = {row["epoch"]: row for row in log.read(f"{name}/metrics.jsonl")}
    assert found["metrics"] == {k: rows[found["epoch"]][f"validate/{k}"] for k in found["metrics"]}
    if weights == "best" and name != "prices":
        assert found["metrics"]["accuracy"] == max(row["validate/accuracy"] for row in rows.values())
    assert len(pd.read_json(f"{name}/metrics.jsonl", lines=True)) == len(rows)
    if "confusion" in found:
        right = sum(row[i] for i, row in enumerate(found["confusion"]))
        assert right / sum(map(sum, found["confusion"])) == pytest.approx(found["metrics"]["accuracy"])
        assert [c["class"] for c in found["classes"]] == [*past.Past(past.Path(name)).about.classes]


def test_eval_prints_tables(pipe):
    """Metrics, a line a class, and the confusion matrix."""
    code, out, _ = pipe("eval", "kinds")
    assert code == 0
    lines = out.splitlines()
    assert re.fullmatch(r"run     kinds, weights of epoch \d \(best\)", lines[0])
    assert [line.split()[0] for line in lines if re.match(r" +\w+ +\d\.\d{4} ", line)] == ["gold", "plain", "silver"]
    assert "rows true, columns predicted" in lines
    assert pipe("eval", "kinds", "--data", "kinds_test.csv")[1].splitlines()[2:4] == lines[2:4]


def test_values_that_a_run_never_saw_are_counted(pipe, tmp_path):
    """By column, with the most frequent ones; missing values are not among them."""
    rows = pd.read_csv("kinds_test.csv")
    rows.loc[:2, "city"] = ["Atlantis", "El Dorado", "Atlantis"]
    rows.to_csv(tmp_path / "new.csv", index=False)
    code, _, err = pipe("predict", "kinds", "--data", tmp_path / "new.csv")
    said = f"3 of {len(rows)} rows have values of city that the run never saw, such as Atlantis, El Dorado"
    assert (code, err.strip()) == (0, f"pipe: {tmp_path / 'new.csv'}: {said}; they count as missing")
    assert pipe("predict", "kinds", "--data", "kinds_test.csv")[2] == ""


def test_rows_without_a_target_are_counted(pipe, tmp_path):
    """`eval` leaves them out, and says how many of the whole file they are."""
    rows = pd.read_csv("kinds_test.csv")
    rows.loc[[0, 5], "kind"] = None
    rows.to_csv(tmp_path / "new.csv", index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv, "BLOCK", 1 << 10)
        code, _, err = pipe("eval", "kinds", "--data", tmp_path / "new.csv")
    assert (code, err.strip()) == (0, f"pipe: {tmp_path / 'new.csv'}: 2 rows without 'kind' are left out")


@pytest.mark.parametrize("end", ["csv", "parquet", "npz"])
def test_predictions_are_beside_the_rows(pipe, end, tmp_path):
    """In the file's order, in each format; the accuracy recomputed from the file is eval's."""
    out = tmp_path / f"preds.{end}"
    assert pipe("predict", "kinds", "--data", "kinds_test.csv", "--out", out)[0] == 0
    wanted = pd.read_csv("kinds_test.csv")
    accuracy = json.loads(pipe("eval", "kinds", "--json")[1])["metrics"]["accuracy"]
    if end == "npz":
        found = np.load(out)
        assert (found["prediction"] == wanted["kind"]).mean() == accuracy
        assert np.allclose(found["probabilities"].sum(1), 1, atol=1e-6)
        assert np.array_equal(found["probabilities"].max(1), found["probability"])
        return
    made = pd.read_csv(out) if end == "csv" else pl.read_parquet(out).to_pandas()
    assert [*made] == [*wanted, "prediction", "probability"]
    assert (made["prediction"] == made["kind"]).mean() == accuracy
    assert (made["city"].fillna("") == wanted["city"].fillna("")).all()


def test_values_are_in_the_targets_own_units(pipe):
    """Of several values, a column each; without --out, as CSV to the terminal; the target need not be there."""
    test = pd.read_csv("prices_test.csv")
    test.drop(columns=["price", "tax"])[["since", "age", "member", "city"]].to_csv("new.csv", index=False)
    code, out, _ = pipe("predict", "prices", "--data", "new.csv")
    assert code == 0
    made = pd.read_csv(pd.io.common.StringIO(out))
    assert [*made] == ["since", "age", "member", "city", "prediction_price", "prediction_tax"]
    metrics = json.loads(pipe("eval", "prices", "--json")[1])["metrics"]
    off = np.abs(made[["prediction_price", "prediction_tax"]].to_numpy() - test[["price", "tax"]].to_numpy()).mean()
    assert off == pytest.approx(metrics["mae"], rel=1e-5)


def test_other_files_than_tables(pipe, tmp_path):
    """Arrays, by number of the row; with targets they can be evaluated."""
    _, test = sources.digits()
    arrays = {k: t.numpy() for k, t in test.tensors.items()}
    np.savez(tmp_path / "more.npz", **arrays)
    made = pd.read_csv(pd.io.common.StringIO(pipe("predict", "digits", "--data", tmp_path / "more.npz")[1]))
    assert [*made] == ["row", "prediction", "probability"]
    accuracy = json.loads(pipe("eval", "digits", "--data", tmp_path / "more.npz", "--json")[1])["metrics"]["accuracy"]
    assert (made["prediction"] == arrays["targets"]).mean() == accuracy
    wrong = {
        "shape": {"inputs": arrays["inputs"][:, :, :4]},
        "no array 'inputs'": {"input": arrays["inputs"]},
        "no class": {**arrays, "targets": arrays["targets"] + 5},
    }
    for said, content in wrong.items():
        np.savez(tmp_path / "wrong.npz", **content)
        code, _, err = pipe("eval" if said == "no class" else "predict", "digits", "--data", tmp_path / "wrong.npz")
        assert code == 2
        assert said in err


@given(size=st.integers(20, 400), quoted=st.booleans(), ends=st.sampled_from(["\n", "\r\n"]), last=st.booleans())
def test_a_table_in_stretches_is_the_table(tmp_path_factory, size, quoted, ends, last):
    """Whatever the size of a stretch, its rows and their lines are those that are read at once."""
    path = tmp_path_factory.getbasetemp() / "stretched.csv"
    rows = [f'{i},{"" if i % 5 else "x"}{i},{chr(34) + "a,b" + ends + "c" + chr(34) if quoted and i % 3 == 0 else "d"}'
            for i in range(40)]  # fmt: skip
    path.write_bytes((ends.join(["n,t,q", *rows]) + (ends if last else "")).encode())
    whole = formats.read_table(path)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(csv, "BLOCK", size)
        parts = [*formats.table_blocks(path)]
    for name, column in whole.cells.items():
        assert pl.concat([p.cells[name] for p in parts]).to_list() == column.to_list()
    where = [p.where(i) for p in parts for i in range(len(p))]
    assert where == [whole.where(i) for i in range(len(whole))]


OUTSIDE = """
import json, os, sys, onnxruntime, torch
for folder in sys.argv[1:]:
    os.chdir(folder)
    given = torch.load("given.pt")
    program, session = torch.export.load("model.torch").module(), onnxruntime.InferenceSession("model.onnx")
    names = [i.name for i in session.get_inputs()]
    made = {"torch": [], "onnx": []}
    for n in (1, 7, 256):
        values = [t[torch.arange(n) % len(t)] for t in given]
        made["torch"].append(program(*values))
        found = session.run(None, {name: t.numpy() for name, t in zip(names, values)})[0]
        made["onnx"].append(torch.from_numpy(found))
    torch.save(made, "made.pt")
assert not any(name.split(".")[0] in ("pipeline", "cli") for name in sys.modules)
"""


def test_an_exported_program_needs_nothing_of_ours(pipe, tmp_path):
    """Loaded in another process, from data as they are, it gives the live model's answers in batches of any size."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folders = {name: tmp_path / name for name in ("kinds", "prices", "digits")}
    for name, folder in folders.items():
        folder.mkdir()
        _export(pipe, name, folder)
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", OUTSIDE, *folders.values()], cwd=tmp_path, env=env, check=True)
    for name, folder in folders.items():
        live = np.load(_predictions(pipe, name, folder))
        wanted = torch.from_numpy(live["probabilities"] if "probabilities" in live else np.stack([*live.values()], 1))
        for rows in torch.load(folder / "made.pt").values():
            for made in rows:
                same = wanted[torch.arange(len(made)) % len(wanted)]
                torch.testing.assert_close(made, same, atol=1e-5, rtol=1e-5)


def _export(pipe, name, tmp_path):
    """Programs of both kinds, and the held-out rows as they take them."""
    for kind in ("torch", "onnx"):
        path = tmp_path / f"model.{kind}"
        code, out, err = pipe("export", name, "--format", kind, "--out", path)
        assert code == 0, err
        assert "held-out samples, off by" in out
        facts = json.loads(path.with_name(f"{path.name}.json").read_text())
    test = pd.read_csv(f"{name}_test.csv") if name != "digits" else None
    if test is None:
        given = [sources.digits()[1].tensors["inputs"]]
    else:
        raw = {**test, "since": (pd.to_datetime(test["since"]) - pd.Timestamp(0)).dt.days}
        numbers = [torch.tensor(raw[c["name"]].to_numpy(float)) for c in facts["inputs"][0]["columns"]]
        [city] = facts["inputs"][1]["columns"]
        codes = torch.tensor(test["city"].map(city["codes"]).fillna(facts["inputs"][1]["missing"]).to_numpy(int))
        given = [torch.stack(numbers, 1), codes[:, None]]
    torch.save(given, tmp_path / "given.pt")


def _predictions(pipe, name, tmp_path):
    data = f"{name}_test.csv"
    if name == "digits":
        data = tmp_path / "inputs.npz"
        np.savez(data, inputs=sources.digits()[1].tensors["inputs"].numpy())
    pipe("predict", name, "--data", data, "--out", tmp_path / "live.npz")
    return tmp_path / "live.npz"


def test_weights_say_what_they_are_of(pipe, tmp_path):
    """best.safetensors and model.safetensors have their epoch in the file, and are what export writes."""
    best = json.loads(pipe("eval", "digits", "--json")[1])
    for name, epoch in (("best", best["epoch"]), ("model", 5)):
        with safe_open(f"digits/{name}.safetensors", framework="pt") as file:
            about = json.loads(file.metadata()["about"])
            assert about["epoch"] == epoch
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118  # no mapping
        if name == "best":
            assert about["accuracy"] == best["metrics"]["accuracy"]
            pipe("export", "digits", "--format", "weights", "--out", tmp_path / "w.safetensors")
            with safe_open(tmp_path / "w.safetensors", framework="pt") as file:
                assert all(torch.equal(t, file.get_tensor(k)) for k, t in tensors.items())


def test_the_best_weights_are_the_average_if_its_metric_says_so(pipe, tmp_path):
    """The file, predictions, eval and load_run have the weights of which the metric is, not those beside them."""
    run = tmp_path / "averaged"
    how = ("--model", "mlp", "--no-compile", "-q", "--epochs", 4, "--ema", 0.9, "--best", "ema.loss")
    code, out, _ = pipe("train", "--data", "kinds.csv", "--target", "kind", *how, "--out", run)
    assert code == 0
    assert "best.safetensors: the average of the best epoch" in out
    best = min(log.read(run / "metrics.jsonl"), key=lambda r: r["validate/ema.loss"])
    assert best["validate/loss"] != pytest.approx(best["validate/ema.loss"], rel=1e-3)
    found = json.loads(pipe("eval", run, "--json")[1])
    assert (found["epoch"], found["metrics"]["loss"]) == (best["epoch"], pytest.approx(best["validate/ema.loss"]))
    stages, state, held_out = load_run(run)
    assert stages.evaluate(state, held_out)["loss"] == pytest.approx(best["validate/ema.loss"])
    own = stages.weights(state)
    pipe("export", run, "--format", "weights", "--out", tmp_path / "w.safetensors")
    for path in (run / "best.safetensors", tmp_path / "w.safetensors"):
        with safe_open(path, framework="pt") as file:
            assert all(torch.equal(t, file.get_tensor(k)) for k, t in own.items())


def test_a_run_comes_back_in_python():
    """load_run gives the pipeline, the State and the data; module() the trained nn.Module."""
    pipe, state, held_out = load_run("digits", weights="last")
    rows = log.read("digits/metrics.jsonl")
    found = pipe.evaluate(state, held_out)
    assert found["accuracy"] == rows[-1]["validate/accuracy"]
    module = pipe.module(state)
    right = (module(held_out.tensors["inputs"]).argmax(1) == held_out.tensors["targets"]).double().mean()
    assert right.item() == pytest.approx(found["accuracy"])
    assert not module.training
    with torch.no_grad():
        module[1].weight.zero_()
    assert state.params["1.weight"].any()
    with pytest.raises(PipeError, match="did you mean 'best'"):
        load_run("digits", weights="bets")


def test_data_that_have_changed_since_are_no_measure(pipe):
    """Other data are measured in the units that the run has learned; what needs its own data is refused or left out."""
    given = {name: ("eval", name, "--data", f"{name}_test.csv", "--json") for name in ("prices", "kinds")}
    before = {name: json.loads(pipe(*args)[1]) for name, args in given.items()}
    texts = {name: Path(f"{name}.csv").read_text() for name in given}
    try:
        for name in given:
            table = pd.read_csv(f"{name}.csv")
            changed = table.assign(price=3 * table.price) if name == "prices" else table[::2]
            changed.to_csv(f"{name}.csv", index=False)
        after = {name: json.loads(pipe(*args)[1]) for name, args in given.items()}
        assert after["prices"] == before["prices"]
        assert after["kinds"] == {k: v for k, v in before["kinds"].items() if k != "baseline"}
        assert "baseline  unknown: the data in " in pipe(*given["kinds"][:-1])[1]
        assert "have changed since the run was made" in pipe("eval", "prices")[2]
        with pytest.raises(PipeError, match="have changed since the run was made"):
            load_run("prices")
    finally:
        for name, text in texts.items():
            Path(f"{name}.csv").write_text(text)


def test_code_in_a_config_is_not_run_unasked(pipe, tmp_path):
    """eval, and load_run in Python, ask to be trusted with code that a config names."""
    (tmp_path / "mine.py").write_text(
        "from pipeline import *\n"
        "def make():\n"
        "    train, test = sources.digits()\n"
        "    model = forward.model(lambda: models.mlp(64, 10))\n"
        "    return Pipeline(load.batches(train, size=512), model, loss.cross_entropy(), evaluate.accuracy(),"
        " backward.gradients(), update.sgd(0.1)), test\n"
    )
    own = tmp_path / "own"
    assert pipe("train", f"{tmp_path}/mine.py:make", "--epochs", "1", "--no-compile", "--out", own, "-q")[0] == 0
    assert 'best = "accuracy"' in (own / "config.toml").read_text()  # as no other reader knows the pipeline
    assert "add --trust" in pipe("eval", own)[2]
    with pytest.raises(PipeError, match="pass trust=True"):
        load_run(own)
    pipeline_, state, test = load_run(own, trust=True)
    assert json.loads(pipe("eval", own, "--trust", "--json")[1])["metrics"] == pipeline_.evaluate(state, test)
    code, _, err = pipe("predict", own, "--data", "new.npz", "--trust")
    assert code == 2
    assert "pipeline.load_run" in err


def test_runs_are_listed(pipe):
    """What differs between them, sorted and filtered; side by side; as JSON."""

    def listed(*args):
        code, out, _ = pipe("runs", ".", *args)
        assert code == 0
        head, *lines = out.partition("\n\n")[0].splitlines()
        return [line.split()[0] for line in lines], head + out.partition("\n\n")[2]

    names, differing = listed()
    assert names == ["digits", "kinds", "prices"]
    assert {"lr", "target", "epochs", "telemetry"} <= set(re.findall(r"\w+", differing))
    assert "seed" not in differing
    accuracies = {name: json.loads(pipe("eval", name, "--json")[1])["metrics"]["accuracy"] for name in names[:2]}
    assert listed("--sort", "accuracy")[0] == [*sorted(accuracies, key=accuracies.get, reverse=True), "prices"]
    assert listed("--filter", "lr=0.5")[0] == ["digits"]
    found = json.loads(pipe("runs", ".", "--json")[1])["runs"]
    rows = log.read("digits/metrics.jsonl")
    assert found[0]["best"]["value"] == max(r["validate/accuracy"] for r in rows)
    assert found[0]["state"] == "done"
    beside = pipe("runs", "kinds", "prices")[1].splitlines()
    assert beside[0].split() == ["kinds", "prices"]
    assert ["target", "kind", "price,tax"] in [line.split() for line in beside]


def test_a_run_tells_how_it_ended(pipe, tmp_path):
    """running, done, stopped and failed, from its folder."""

    def state():
        return json.loads(pipe("runs", tmp_path, "--json")[1])["runs"][0]

    out = tmp_path / "run"
    args = ["train", "--no-compile", "--batch-size", "512", "-q"]
    pipe(*args, "--epochs", "8", "--minutes", "1e-9", "--out", out)
    assert state()["state"] == "stopped"
    assert "minutes have passed" in state()["why"]
    with (out / ".lock").open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert state()["state"] == "running"
        for command in ("eval", "report", "export"):
            code, _, err = pipe(command, out)
            assert code == 2
            assert "is still training" in err
    pipe("train", "--resume", out, "-q", "--minutes", "100")
    assert state()["state"] == "done"
    assert state()["epochs"] == 8
    pipe(*args, "--epochs", "3", "--lr", "1e30", "--clip", "0", "--momentum", "0", "--out", tmp_path / "wild")
    assert json.loads(pipe("runs", tmp_path / "wild", "--json")[1])["runs"][0]["state"] == "failed"


def test_folds_are_listed_with_their_mean(pipe, tmp_path):
    """The folder of folds can be trained again, and says what they came to."""
    args = ["train", "--data", "sklearn:wine", "--folds", "2", "--epochs", "1", "--no-compile", "-q"]
    assert pipe(*args, "--out", tmp_path / "f")[0] == 0
    found = {e["run"]: e for e in json.loads(pipe("runs", tmp_path, "--json")[1])["runs"]}
    whole = found.pop(str(tmp_path / "f"))
    mean = sum(e["best"]["value"] for e in found.values()) / 2
    assert len(found) == 2
    assert f"accuracy {100 * mean:.2f} %" in whole["why"]
    assert pipe("show", tmp_path / "f")[0] == 0


@pytest.mark.parametrize("target", ["kind", "price"])
def test_folds_predict_their_mean(pipe, target, tmp_path):
    """Probabilities, or values in their units, of runs that prepared the rows each by its own fold."""
    args = ["train", "--data", f"{target}s.csv", "--target", target]
    more = ["--folds", "3", "--model", "mlp", "--epochs", "2", "--no-compile", "-q", "--out", tmp_path / "f"]
    assert pipe(*args, *more)[0] == 0

    def predicted(run):
        code, _, err = pipe(
            "predict", run, "--data", f"{target}s_test.csv", "--out", (out := tmp_path / f"{run.name}.npz")
        )
        assert code == 0, err
        return np.load(out)["probabilities" if target == "kind" else "prediction"]

    each = [predicted(tmp_path / "f" / f"fold-{i}") for i in range(3)]
    np.testing.assert_allclose(predicted(tmp_path / "f"), np.mean(each, 0), rtol=1e-6)


def test_bad_rows_are_left_out_and_counted(pipe, tmp_path):
    """Without the option, the first is refused by its line; with it, all others are as they were."""
    lines = Path("kinds_test.csv").read_text().splitlines()
    bad = tmp_path / "bad.csv"
    at = lines[0].split(",").index("age")
    wrong = lines[1].split(",")
    wrong[at] = "old"
    bad.write_text("\n".join([*lines[:3], ",".join(wrong), "a,b", *lines[3:]]))
    assert pipe("predict", "kinds", "--data", bad)[0] == 2
    code, out, err = pipe("predict", "kinds", "--data", bad, "--skip-bad")
    assert (code, err.strip()) == (0, f"pipe: {bad}: 2 rows that can't be read are left out: line 4, 5")
    assert out == pipe("predict", "kinds", "--data", "kinds_test.csv")[1]
    assert pipe("predict", "kinds", "--data", bad, "--skip-bad", "--out", tmp_path / "p.npz")[0] == 0
    assert np.load(tmp_path / "p.npz")["line"].tolist() == [2, 3, *range(6, len(lines) + 3)]
    texts = pl.read_csv("\n".join([*lines[:3], ",".join(wrong), *lines[3:]]).encode(), infer_schema=False)
    texts.write_parquet(tmp_path / "bad.parquet")  # which has rows, no lines
    _, _, err = pipe("predict", "kinds", "--data", tmp_path / "bad.parquet", "--skip-bad")
    assert err.strip() == f"pipe: {tmp_path / 'bad.parquet'}: 1 row that can't be read is left out: row 3"


def test_patience_ends_a_run_that_can_go_on(pipe, tmp_path):
    """It ends so many epochs after the best one, is whole, and goes on with more patience, as if never stopped."""
    args = ["--no-compile", "--batch-size", "256", "--lr", "1e-9", "--epochs", "9"]
    code, out, _ = pipe("train", *args, "--patience", "2", "--out", tmp_path / "a")
    assert code == 0
    assert "no better accuracy for 2 epochs, in epoch 3 of 9" in out
    assert [r["epoch"] for r in log.read(tmp_path / "a" / "metrics.jsonl")] == [1, 2, 3]
    assert "to wait longer, add --patience 4" in pipe("train", "--resume", tmp_path / "a")[1]
    assert pipe("train", "--resume", tmp_path / "a", "--patience", "20")[0] == 0
    pipe("train", *args, "--out", tmp_path / "b")
    same = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert same[0] == same[1]
    rows = log.read(tmp_path / "b" / "metrics.jsonl")
    best = json.loads(pipe("eval", tmp_path / "b", "--json")[1])
    assert len({r["validate/accuracy"] for r in rows}) == 1
    assert best["epoch"] == max(r["epoch"] for r in rows if r["validate/loss"] == min(r["validate/loss"] for r in rows))
    pipe("train", *args, "--lr", "1.0", "--out", tmp_path / "c")
    best = json.loads(pipe("eval", tmp_path / "c", "--json")[1])
    assert best["epoch"] < 9
    shutil.rmtree(tmp_path / "c" / "checkpoints" / f"step-{best['step']:09d}")
    code, _, err = pipe("train", "--resume", tmp_path / "c")
    assert code == 0
    assert "best.safetensors is not written" in err


def test_a_config_says_what_happened(pipe, tmp_path):
    """To go on with fewer epochs than were done changes nothing; a folder stands for its config."""
    shutil.copytree("digits", tmp_path / "run")
    before = (tmp_path / "run" / "config.toml").read_text()
    code, out, _ = pipe("train", "--resume", tmp_path / "run", "--epochs", "2")
    assert code == 0
    assert "all 5 epochs" in out
    assert (tmp_path / "run" / "config.toml").read_text() == before
    assert "update.sgd" in pipe("show", "digits")[1]
    assert pipe("train", "kinds", "--epochs", "1", "--out", tmp_path / "again", "-q")[0] == 0
    assert '[data]\nsource = "kinds.csv"' in (tmp_path / "again" / "config.toml").read_text()


def test_the_command_logs_for_tensorboard(pipe, tmp_path):
    """Into the run's folder."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    args = ["train", "--epochs", "2", "--batch-size", "512", "--no-compile", "-q", "--log", "tensorboard"]
    assert pipe(*args, "--out", tmp_path / "run")[0] == 0
    found = events.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    found.Reload()
    rows = log.read(tmp_path / "run" / "metrics.jsonl")
    assert [s.value for s in found.Scalars("validate/loss")] == pytest.approx([r["validate/loss"] for r in rows])


def test_telemetry_is_in_the_lines(pipe):
    """With -v, gradient norm, update ratio and learning rate of each epoch; a resumed run keeps them."""
    row = log.read("digits/metrics.jsonl")[-1]
    assert row["train/gradient norm"] > 0
    assert row["train/update ratio/1"] > 0
    assert row["train/learning rate"] > 0
    assert "telemetry = true" in past.Path("digits/config.toml").read_text()


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))


@pytest.mark.parametrize("name", ["kinds", "prices", "digits"])
def test_a_report_is_one_page(pipe, name, tmp_path):
    """With curves, classes, the worst samples, and the command; and nothing from elsewhere."""
    assert pipe("report", name, "--out", tmp_path / "page.html")[0] == 0
    text = (tmp_path / "page.html").read_text()
    page = Page(text)
    assert [tag for tag, _ in page.seen].count("svg") == 1
    for _, attrs in page.seen:
        for link in ("src", "href", "xlink:href"):
            assert (attrs.get(link) or "data:").startswith(("data:", "#"))
    assert "script" not in [tag for tag, _ in page.seen]
    images = [attrs for tag, attrs in page.seen if tag == "img"]
    assert len(images) == (WORST if name == "digits" else 0)
    assert f"The worst {WORST} of the held-out samples" in text
    assert ("Confusion matrix" in text) == (name != "prices")
    command = html_report.command(past.Past(past.Path(name)))
    assert command.startswith("pipe train --data ")
    if CHROMIUM is not None:
        opened = subprocess.run(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", "--no-first-run", f"--user-data-dir={tmp_path}/profile",
             "--enable-logging=stderr", "--dump-dom", (tmp_path / "page.html").as_uri()],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert "Settings" in opened.stdout
        assert "CONSOLE" not in opened.stderr


def test_the_command_in_a_report_makes_the_run_again(pipe, tmp_path):
    """With the same weights, to the last bit."""
    import shlex

    words = shlex.split(html_report.command(past.Past(past.Path("kinds"))))
    assert pipe(*words[1:], "--out", tmp_path / "again", "-q")[0] == 0
    names = ("model.safetensors", "best.safetensors")
    assert all((tmp_path / "again" / n).read_bytes() == (past.Path("kinds") / n).read_bytes() for n in names)


@pytest.mark.parametrize("more", [("--epochs", 20), ("--optimizer", "sgd"), ("--lr", 0.003), ("--set", "k=2")], ids=str)
def test_the_command_in_a_report_names_what_the_recipe_would_not_choose(pipe, monkeypatch, more):
    """Its settings are the run's; TabM has 256 epochs, where others have 20."""
    import shlex

    given = []
    monkeypatch.setattr("cli.training.train", lambda config, **how: (given.append(config), None, None))
    assert pipe("train", "--data", "kinds.csv", "--target", "kind", "--model", "tabm", *more)[0] == 0
    config, data = settled(given[0])
    about, facts = SimpleNamespace(fixed=fixed("kinds.csv", data)), {"training_samples": len(data.train)}
    command = html_report.command(SimpleNamespace(config=config, about=about, facts=facts))
    assert pipe(*shlex.split(command)[1:])[0] == 0
    assert settled(given[1])[0] == config


def test_curves_are_drawn(pipe, tmp_path):
    """Each run has them; several are drawn over each other."""
    assert past.Path("digits/curves.svg").read_text().startswith("<svg")
    out = tmp_path / "both.png"
    assert pipe("plot", "kinds", "digits", "--metric", "accuracy", "--out", out)[0] == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    code, _, err = pipe("plot", "kinds", "--metric", "acuracy")
    assert code == 2
    assert "did you mean 'accuracy'" in err


WRONG = {
    "holds no run": ["eval", "nothing"],
    "no column 'age'": ["predict", "kinds", "--data", "no_age.csv"],
    "line 3, column 'age': 'old' is not a number": ["predict", "kinds", "--data", "old.csv"],
    "'platinum' is no class": ["eval", "kinds", "--data", "platinum.csv"],
    "exists already": ["predict", "kinds", "--data", "kinds_test.csv", "--out", "kinds.csv"],
    "is none of .csv": ["predict", "kinds", "--data", "kinds_test.csv", "--out", "preds.txt"],
    "which is of another kind": ["predict", "digits", "--data", "kinds_test.csv"],
    "is no other data": ["predict", "kinds", "--data", "digits"],
    "no weights 'ema'": ["predict", "kinds", "--data", "kinds_test.csv", "--weights", "ema"],
    "was made by pipe-train 99.0": ["eval", "newer"],
    "is damaged": ["eval", "damaged"],
    "can't read rotten/best.safetensors": ["predict", "rotten", "--data", "kinds_test.csv"],
    "is not what a run writes": ["export", "odd"],
    "to sort by; did you mean 'accuracy'": ["runs", ".", "--sort", "acuracy"],
    "no run has a setting 'lrr'; did you mean 'lr'": ["runs", ".", "--filter", "lrr=1"],
    "there is no run in": ["runs", "empty"],
    "can't write": ["export", "kinds", "--format", "weights", "--out", "kinds.csv/w.safetensors"],
}


@pytest.mark.parametrize("said", WRONG, ids=lambda said: said.replace("/", " "))
def test_wrong_input_is_one_line(pipe, said):
    """It ends with 2, and nothing is overwritten."""
    test = pd.read_csv("kinds_test.csv")
    test.drop(columns="age").to_csv("no_age.csv", index=False)
    test.astype({"age": object}).assign(age=["1", "old", *["3"] * 118]).to_csv("old.csv", index=False)
    test.assign(kind="platinum").to_csv("platinum.csv", index=False)
    for name in ("newer", "damaged", "odd", "rotten"):
        if not os.path.exists(name):
            shutil.copytree("kinds", name)
    os.makedirs("empty", exist_ok=True)
    config = past.Path("newer/config.toml")
    config.write_text(re.sub(r'pipe-train = ".*"', 'pipe-train = "99.0"', config.read_text()))
    for path in [*past.Path("damaged/checkpoints").glob("*/state.safetensors"), past.Path("damaged/best.safetensors")]:
        raw = bytearray(path.read_bytes())
        raw[-5] ^= 1
        path.write_bytes(raw)
    shutil.rmtree("rotten/checkpoints")
    past.Path("rotten/best.safetensors").write_bytes(past.Path("damaged/best.safetensors").read_bytes())
    past.Path("odd/data.json").write_text("[]")
    for name in ("newer", "odd", "rotten"):
        accept(past.Path(name))
    before = past.Path("kinds.csv").read_bytes()
    code, out, err = pipe(*WRONG[said])
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 1
    assert past.Path("kinds.csv").read_bytes() == before
    for name in ("newer", "damaged", "odd", "rotten"):
        shutil.rmtree(name)


def test_a_notebook_shows_tables_and_curves():
    """A Report, a list of them, a Pipeline and a State have HTML, escaped."""
    pipe = pipes.digits(size=512)
    reports = pipeline.Reports(pipeline.fit(pipe, epochs=2, compile=False))
    assert "<svg" in reports._repr_html_()
    assert "train/loss" in reports._repr_html_()
    assert "<td>loss</td>" in reports[-1]._repr_html_()
    assert "<td>1.weight</td>" in reports[-1].state._repr_html_()
    assert "<td>forward.model</td>" in pipe._repr_html_()
    assert pipeline.Reports()._repr_html_() == "no complete epoch yet"


def test_a_function_of_data_is_called_as_by_the_run(pipe, tmp_path, monkeypatch):
    """With its options and the seed of its split: `pipe eval --data` gives what `pipe eval` does, for the same name."""
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(
        "import torch\n\ndef make(seed, scale=1.0):\n    g = torch.Generator().manual_seed(seed)\n"
        "    return tuple((scale * torch.randn(40, 2, generator=g), torch.arange(40) % 2) for _ in range(2))\n"
    )
    assert pipe("train", "--data", "own.py:make", "--set", "data.scale=5", "--seed", 3, "--epochs", 1, "--no-compile",
                "--out", "r", "-q")[0] == 0  # fmt: skip
    said = [pipe("eval", "r", "--trust", "--json", *more) for more in ((), ("--data", "own.py:make"))]
    assert all(code == 0 for code, _, _ in said), said
    assert json.loads(said[0][1])["metrics"] == json.loads(said[1][1])["metrics"]
