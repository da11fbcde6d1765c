"""The command on rare classes, several labels, counts and quantiles: weights, draws, goals, thresholds, baselines."""

import json
import tomllib

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from cli import config, goal
from cli.build import job
from cli.predictions import Predictions
from cli.recipes.loss import Loss
from cli.saved_run import Past
from pipeline import fit
from pipeline.errors import ConfigError
from pipeline.state import format_metric
from tests.commands import run

QUICK = ["--no-compile", "--epochs", "3", "--model", "mlp", "--hidden", "8"]


@pytest.fixture(scope="module")
def rare(tmp_path_factory):
    """A folder with a table of two classes, 4 % of them "yes"; of three classes; of counts; and one to predict."""
    folder = tmp_path_factory.mktemp("rare")
    r = np.random.default_rng(0)
    x = r.normal(size=(1500, 3)).round(3)
    score = x[:, 0] + 0.5 * x[:, 1] + r.normal(0, 0.3, 1500)
    columns = {f"x{i}": x[:, i] for i in range(3)}
    answer = np.where(score > np.quantile(score, 0.96), "yes", "no")
    pl.DataFrame({**columns, "answer": answer}).write_csv(folder / "two.csv")
    pl.DataFrame({**columns, "kind": np.array(["a", "b", "c"])[np.digitize(score, [1.0, 1.6])]}).write_csv(
        folder / "three.csv"
    )
    pl.DataFrame({**columns, "visits": r.poisson(np.exp(0.8 * x[:, 0] + 3)) + 0.0}).write_csv(folder / "counts.csv")
    pl.DataFrame(columns)[:200].write_csv(folder / "new.csv")
    return folder


def trained(rare, name, *options, data="two.csv"):
    """A run of the command: its output, and its folder."""
    ended = run("train", "--data", rare / data, *QUICK, "--out", rare / name, *options)
    assert ended.code == 0, ended.err
    return ended.out, rare / name


def made(rare, **settings):
    return job(config.make({"model": "mlp", "hidden": [8], "data": str(rare / "two.csv"), **settings}))


# -- weights and draws


@given(st.lists(st.integers(1, 500), min_size=2, max_size=8))
def test_balanced_weights_are_sklearns(counts):
    """Each class counts alike in the loss of all training samples."""
    rows = np.repeat(np.arange(len(counts)), counts)
    found = Loss(class_weights="balanced").weights(counts, [*map(str, range(len(counts)))])
    assert found == pytest.approx(compute_class_weight("balanced", classes=np.arange(len(counts)), y=rows))
    assert [w * n for w, n in zip(found, counts, strict=True)] == pytest.approx(
        [sum(counts) / len(counts)] * len(counts)
    )


@pytest.mark.parametrize(
    ("weights", "said"),
    [("yess=3", "no class 'yess'.*did you mean 'yes'"), ("yes", "no NAME=WEIGHT"), ("yes=many", "'many' is no weight"),
     ("yes=-1", "'-1' is no weight")],
)  # fmt: skip
def test_weights_that_fit_no_class_are_refused(weights, said):
    """By what they name, with the classes."""
    with pytest.raises(ConfigError, match=said):
        Loss(class_weights=weights).weights([9, 1], ["no", "yes"])


def test_a_run_with_weights_has_torchs_loss(rare):
    """Of training samples alone, and for any size of the parts of a batch."""
    weights = torch.tensor([1.0, 20.0])
    for accumulate in (1, 3):
        made_job = made(rare, class_weights="yes=20", batch_size=2000, accumulate=accumulate, epochs=1)
        state = made_job.pipe.init(0)
        module = made_job.pipe.module(state)
        [report] = fit(made_job.pipe, epochs=1, state=state, compile=False)
        whole = made_job.train.tensors
        expected = F.cross_entropy(module(whole["inputs"]), whole["targets"], weights)
        assert report.train["loss"] == pytest.approx(expected.item(), rel=1e-5)
    balanced = made(rare, class_weights="balanced")
    assert goal.class_counts(balanced.prepared).tolist() == balanced.train.tensors["targets"].bincount().tolist()


def test_balanced_draws_have_each_class_equally_often_and_resume(rare):
    """As the stage that draws does; a run that was stopped goes on with the same bits."""
    made_job = made(rare, sample="balanced", batch_size=100)
    [targets] = [torch.cat([b["targets"] for b in made_job.stages.load.epoch(0, e)]) for e in (3,)]
    assert len(targets) == len(made_job.train)
    assert abs(targets.double().mean() - 0.5) < 4 * 0.5 / len(targets) ** 0.5
    _, folder = trained(rare, "drawn", "--sample", "balanced", "--save-steps", "10")
    ended = run("train", "--resume", folder, "--verify")
    assert (ended.code, "bit for bit" in ended.out) == (0, True)
    assert run("train", "--resume", folder, "--sample", "each").code == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--class-weights", "balanced", "--data", "sklearn:diabetes"], "--class-weights are not for regression"),
     (["--sample", "balanced", "--data", "sklearn:diabetes"], "--sample balanced is for classes"),
     (["--threshold", "f1", "--data", "sklearn:wine"], "--threshold is for two classes"),
     (["--calibrate", "--data", "sklearn:diabetes"], "--calibrate is for probabilities"),
     (["--best", "roc-auc", "--data", "sklearn:diabetes"], "--best roc-auc is not for regression"),
     (["--quantile", "0.9", "--data", "sklearn:diabetes"], "--quantile belongs to --loss quantile, not to mse"),
     (["--loss", "poisson", "--data", "sklearn:wine"], "--loss poisson is not for classification"),
     (["--threshold", "f2"], "unknown threshold 'f2'"),
     (["--sample", "some"], "unknown sample 'some'")],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_a_line(rare, options, said):
    """Exit code 2, with what to write."""
    ended = run("train", *QUICK, "--out", "none", *options, cwd=rare)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert said in ended.err


# -- goals and baselines


def test_a_rare_class_gives_another_goal_and_a_baseline(rare):
    """It is said and recorded; the result has that of a constant beside it, and a class that is never predicted."""
    out, folder = trained(rare, "plain", "--optimizer", "sgd", "--lr", "0.1", "--weight-decay", "0.5")
    assert "96.0 % of the training samples are of class 'no': the best epoch is by balanced accuracy; --best" in out
    assert "baseline  balanced accuracy 50.00 %, accuracy 96.00 % by always predicting 'no'\n" in out
    assert "warning the model is no better than that by balanced accuracy\n" in out
    assert "warning class 'yes' is never predicted, and 12 of the 300 samples are of it; try --class-weights" in out
    assert tomllib.loads((folder / "config.toml").read_text())["run"]["best"] == "balanced accuracy"
    seen = run("eval", folder)
    for line in out.splitlines():
        if line.startswith(("baseline", "warning")):
            assert line in seen.out
    figures = json.loads(run("eval", folder, "--json").out)
    entropy = pytest.approx(-0.96 * np.log(0.96) - 0.04 * np.log(0.04), rel=1e-4)
    assert figures["baseline"] == {"accuracy": pytest.approx(0.96), "balanced accuracy": 0.5, "loss": entropy}
    out, folder = trained(rare, "as asked", "--best", "accuracy")
    assert "best epoch is by" not in out
    assert "best    accuracy" in out


def test_a_model_that_learned_says_no_warning(rare):
    """With weights it finds the rare class; the baseline stays."""
    out, folder = trained(rare, "weighted", "--class-weights", "balanced", "--metric", "average-precision")
    assert "warning" not in out + run("eval", folder, "--data", rare / "two.csv").out
    assert "baseline  balanced accuracy 50.00 %" in out
    assert json.loads(run("eval", folder, "--json").out)["metrics"]["balanced accuracy"] > 0.8
    assert "best    balanced accuracy" in out
    assert "average precision" in run("report", folder).out + (folder / "report.html").read_text()


@pytest.mark.parametrize("best", ["roc-auc", "average-precision", "f1-score", "log-loss", "calibration-error"])
def test_the_best_epoch_by_any_metric(rare, best):
    """Named as a metric of the command, it is measured too, and may change when a run goes on."""
    out, folder = trained(rare, f"by {best}", "--best", best)
    assert f"best    {best.replace('-', ' ')} " in out
    ended = run("train", "--resume", folder, "--epochs", "4", "--best", "accuracy")
    assert (ended.code, "best    accuracy" in ended.out) == (0, True)


def test_the_baseline_of_values_is_the_mean(rare):
    """r2 and the errors of the training mean; with counts, and with a quantile, by their own metric."""
    out, folder = trained(rare, "values", "--metric", "rmse", data="counts.csv")
    past = Past(folder)
    truth = past.made[0].held_out.tensors["targets"].double()
    mean = past.made[0].train.tensors["targets"].double().mean().expand(len(truth))
    figures = json.loads(run("eval", folder, "--json").out)["baseline"]
    assert figures["r2"] == pytest.approx(sklearn_metrics.r2_score(truth, mean), abs=1e-6)
    assert figures["mae"] == pytest.approx(sklearn_metrics.mean_absolute_error(truth, mean), rel=1e-5)
    assert figures["rmse"] == pytest.approx(sklearn_metrics.root_mean_squared_error(truth, mean), rel=1e-5)
    line = ", ".join(format_metric(name, figures[name]) for name in ("r2", "rmse", "mae"))
    assert f"baseline  {line} by always predicting the mean, {mean[0]:.4g}\n" in out


@pytest.mark.parametrize("options", [["--loss", "poisson"], ["--loss", "quantile", "--quantile", "0.9"]])
def test_counts_and_quantiles_are_predicted_in_their_units(rare, options):
    """What `predict` and the exported program give is what the metrics of the training are of."""
    name = options[1]
    out, folder = trained(rare, name, *options, "--epochs", "20", "--lr", "0.01", "--optimizer", "adamw",
                          data="counts.csv")  # fmt: skip
    metric = {"poisson": "poisson deviance", "quantile": "pinball"}[name]
    assert f"best    {metric}" in out
    past = Past(folder)
    module, _, _ = past.module("best")
    held_out = past.made[0].held_out.tensors
    with torch.no_grad():
        values = Predictions(past.about)(module(held_out["inputs"])).double()
    truth = held_out["targets"].double()
    if name == "poisson":
        expected = sklearn_metrics.mean_poisson_deviance(truth, values)
    else:
        expected = sklearn_metrics.mean_pinball_loss(truth, values, alpha=0.9)
        assert 0.8 < float((truth <= values).double().mean()) < 0.98
    assert json.loads(run("eval", folder, "--json").out)["metrics"][metric] == pytest.approx(expected, rel=1e-4)
    rows = pl.read_csv(run("predict", folder, "--data", rare / "new.csv").out.encode())
    assert rows["prediction"].min() > (0 if name == "poisson" else -50)
    assert run("export", folder).code == 0


# -- decisions


@pytest.mark.parametrize("options", [[], ["--ensemble", "2"]], ids=["one", "ensemble"])
def test_a_threshold_is_kept_and_used(rare, options):
    """Chosen on held-out samples by F1, it decides in eval, predict and the exported facts; probabilities are
    calibrated, and ranks stay."""
    name = f"decided{len(options)}"
    asked = ["--threshold", "f1", "--calibrate", "--metric", "log-loss", "--lr", "0.05"]
    out, folder = trained(rare, name, *asked, *options)
    assert "the threshold is chosen after the training: the best epoch is by average precision; --best" in out
    kept = json.loads((folder / "decision.json").read_text())["best"]
    past = Past(folder)
    module, _, _ = past.module("best")
    batch = past.made[0].held_out.tensors
    with torch.no_grad():
        outputs = module(batch["inputs"]).double()
    chances = (outputs / kept["temperature"]).softmax(1)
    truth, scores = batch["targets"], chances[:, 1].numpy()
    at = sklearn_metrics.f1_score(truth, scores >= kept["threshold"])
    assert kept["value"] == pytest.approx(at)
    assert at >= sklearn_metrics.f1_score(truth, scores >= 0.5)
    figures = json.loads(run("eval", folder, "--json").out)
    assert figures["classes"][1]["f1"] == pytest.approx(at)
    assert figures["threshold"] == {"class": "yes", "from probability": kept["threshold"], "chosen by": "f1"}
    assert figures["metrics"]["log loss"] == pytest.approx(sklearn_metrics.log_loss(truth, chances), rel=1e-4)
    accuracy = sklearn_metrics.accuracy_score(truth, scores >= kept["threshold"])
    assert figures["metrics"]["accuracy"] == pytest.approx(accuracy)
    assert f"class 'yes' from probability {kept['threshold']:.4f} on: f1 {at:.4f}" in out
    run("predict", folder, "--data", rare / "new.csv", "--out", rare / f"{name}.csv")
    rows = pl.read_csv(rare / f"{name}.csv")
    yes = rows["prediction"] == "yes"
    assert yes.any()
    assert (rows["probability"].filter(yes) >= kept["threshold"] - 1e-6).all()
    assert run("export", folder).code == 0
    facts = json.loads((folder / "model.pt2.json").read_text())
    assert facts["threshold"]["from probability"] == kept["threshold"]
    program = torch.export.load(folder / "model.pt2").module()
    numbers = torch.tensor(rows.select("x0", "x1", "x2").to_numpy())
    chosen = torch.where(yes.to_torch(), program(numbers)[:, 1], program(numbers)[:, 0])
    torch.testing.assert_close(chosen.double(), rows["probability"].to_torch(), atol=1e-5, rtol=1e-4)
    assert run("report", folder).code == 0


def test_a_decision_may_be_made_afterwards_and_is_of_its_weights(rare):
    """A finished run gets it by --resume; other weights say that they have none."""
    _, folder = trained(rare, "later")
    assert not (folder / "decision.json").exists()
    ended = run("train", "--resume", folder, "--threshold", "balanced-accuracy")
    assert (ended.code, "class 'yes' from probability" in ended.out) == (0, True)
    kept = json.loads((folder / "decision.json").read_text())
    assert kept["last"]["by"] == kept["best"]["by"] == "balanced-accuracy"
    best = next(line for line in ended.out.splitlines() if line.startswith("best "))
    again = run("train", "--resume", folder)  # nobody revoked it
    assert (best in again.out, json.loads((folder / "decision.json").read_text())) == (True, kept)
    assert run("eval", folder, "--json").out.count("from probability") == 1
    assert run("train", "--resume", folder, "--threshold", "none").code == 0
    assert json.loads((folder / "decision.json").read_text())["best"]["threshold"] is None
    (folder / "decision.json").write_text("{}")
    assert "run.json is another" in run("eval", folder).err


def test_several_labels_have_weights_a_temperature_and_a_baseline(rare):
    """Each label is a task of its own."""
    r = np.random.default_rng(1)
    x = r.normal(size=(300, 1, 4)).astype("float32")
    np.savez(rare / "labels.npz", inputs=x, targets=(x[:, 0, :2] > 1.2).astype("float32"))
    out, folder = trained(rare, "labels", "--class-weights", "balanced", "--calibrate", "--metric", "f1-score",
                          data="labels.npz")  # fmt: skip
    assert "by always predicting the more frequent side of each label" in out
    assert json.loads((folder / "decision.json").read_text())["last"]["temperature"] != 1
    share = made(rare, data=str(rare / "labels.npz")).train.tensors["targets"].mean(0)
    found = goal.class_weights(config.make({"class_weights": "balanced"}), Past(folder).made[0].prepared, 2)
    torch.testing.assert_close(found, (1 - share) / share)
