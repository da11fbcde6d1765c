"""How well and how fast are tables learned with defaults, beside the best of others?

`python -m benchmarks.tables`: tables that packages ship, each split five times into 80 % to learn from and 20 % to
compare on. All ways get the same columns, prepared by the rows to learn from: numbers with a mark for missing ones, and
codes of categories. Those that choose an epoch do it on 20 % of the rows to learn from. One thread; seconds are the
processor's, so that other work beside it counts little.

Each measurement is kept in tables.jsonl beside the results, and a second call goes on from there. `--only wine,ours`
takes tables and ways with these words, `--rounds 2` as many splits. Ways and tables whose package is missing are named.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import polars
import torch
from attrs import frozen
from torch import Tensor

from benchmarks import report
from cli import build, config
from cli.settled import settled
from pipeline import State, fit, place
from pipeline.direction import rank
from pipeline.errors import PipeError
from pipeline.sources import Prepared, Split
from pipeline.sources.formats import read_table
from pipeline.sources.frame import Frame
from pipeline.sources.learned import Learned

tables = importlib.import_module("pipeline.sources.table")  # the function of this name hides the module

SPLITS = 5
TABLES: dict[str, tuple[str, str, str | None]] = {
    "iris": ("sklearn", "target", None),
    "wine": ("sklearn", "target", None),
    "breast_cancer": ("sklearn", "target", None),
    "diabetes": ("sklearn", "target", None),
    "penguins": ("palmerpenguins/data/penguins.csv", "species", None),
    "weather": ("vega_datasets/_data/seattle-weather.csv", "weather", None),
    "gbsg2": ("lifelines/datasets/gbsg2.csv", "cens", None),
    "fair": ("statsmodels/datasets/fair/fair.csv", "affairs", None),
    "travel": ("statsmodels/datasets/modechoice/modechoice.csv", "choice", None),
    "votes": ("statsmodels/datasets/anes96/anes96.csv", "vote", None),
    "juice": ("ISLP/data/OJ.csv", "Purchase", None),
    "seats": ("ISLP/data/Carseats.csv", "Sales", None),
    "wages": ("ISLP/data/Wage.csv", "wage", "logwage"),
    "colleges": ("ISLP/data/College.csv", "Grad.Rate", "Unnamed: 0"),
    "boston": ("ISLP/data/Boston.csv", "medv", None),
    "credit": ("ISLP/data/Credit.csv", "Balance", "ID"),
    "cars": ("ISLP/data/Auto.csv", "mpg", "name"),
    "players": ("ISLP/data/Hitters.csv", "Salary", None),
    "default": ("ISLP/data/Default.csv", "default", None),
    "bicycles": ("ISLP/data/Bikeshare.csv", "bikers", "casual,registered"),
}
"""Name -> a file of a package, or scikit-learn's; the target; columns to leave out."""


@frozen(eq=False)
class Task:
    """A table, split: rows to learn from, with an inner split of their own, and rows to compare on."""

    data: Prepared
    test: dict[str, Tensor]
    seed: int

    @property
    def values(self) -> bool:
        return self.data.task == "regression"

    def columns(self) -> tuple[Any, np.ndarray, Any, np.ndarray]:
        """Columns and targets, to learn from and to compare on, in pandas, with categories as texts."""
        import pandas

        sides = [self.data.train.tensors, self.data.held_out.tensors]  # type: ignore[attr-defined]  # they are Tensors
        both = {k: torch.cat([side[k] for side in sides]) for k in sides[0]}
        found = []
        for rows in (both, self.test):
            x = {f"n{i}": c for i, c in enumerate(rows["inputs"].double().numpy().T)}
            for i, size in enumerate(self.data.sizes.get("categories", ())):
                kinds = [str(k) for k in range(size)]
                x[f"c{i}"] = pandas.Categorical(rows["categories"][:, i].numpy().astype(str), categories=kinds)
            found += [pandas.DataFrame(x), rows["targets"].numpy().reshape(len(rows["targets"]), -1)[:, 0]]
        return found[0], found[1], found[2], found[3]

    def error(self, predicted: Any) -> float:
        """Share of wrong classes, or root mean squared error in deviations of the targets."""
        wanted = self.test["targets"].numpy().reshape(len(self.test["targets"]), -1)[:, 0]
        predicted = np.asarray(predicted).reshape(len(wanted), -1)[:, 0]
        if self.values:
            return float(np.sqrt(np.mean((predicted - wanted) ** 2)) / wanted.std())
        return float(np.mean(predicted.astype(wanted.dtype) != wanted))


def task(name: str, seed: int) -> Task:
    """A table in the split of a seed. Raises ImportError if its package is missing."""
    file, target, ignored = TABLES[name]
    frame = _sklearn(name) if file == "sklearn" else _shipped(file)
    frame = tables.with_targets(frame.without(frame.named(ignored)), [target])
    whole = tables.prepare(lambda: frame, target, Split(0.2, seed))
    labels = Learned(**whole.fitted["targets"]).targets(frame) if whole.task == "classification" else None
    train, held = (rows.numpy() for rows in Split(0.2, seed).rows(len(frame), labels=labels))
    data = tables.prepare(lambda: frame.take(train), target, Split(0.2, seed), whole.task)
    return Task(data, tables.apply(data.fitted, frame.take(held)), seed)


def _sklearn(name: str) -> Frame:
    from sklearn import datasets

    raw = getattr(datasets, f"load_{name}")(**({"scaled": False} if name == "diabetes" else {}))
    names = raw.get("target_names")
    target = raw.target if names is None else [str(names[i]) for i in raw.target]
    columns = {**dict(zip(map(str, raw.feature_names), raw.data.T, strict=True)), "target": target}
    return Frame(name, polars.DataFrame(columns), np.arange(len(target)) + 1)


def _shipped(file: str) -> Frame:
    package, _, rest = file.partition("/")
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(f"no package {package}")
    return read_table(Path(spec.origin).parent / rest)


def ours(model: str) -> Callable[[Task], tuple[Any, float]]:
    """Predictions of the best epoch, and processor seconds of the training with programs that are compiled already."""

    def run(t: Task) -> tuple[Any, float]:
        chosen = config.make({"data": "table:none", "model": model, "run.seed": t.seed, "run.threads": 1})
        chosen, data = settled(chosen, t.data)
        made = build.job(chosen, data)
        state, step = build.first(made, chosen), made.pipe.compile() if chosen.run.compile else False
        if step:
            step.prepare(state, made.validation)
        began, best, tree = time.process_time(), (float("inf"), float("inf")), state.tree
        since, metric = 0, made.best or "loss"
        for r in fit(made.pipe, epochs=chosen.run.epochs, state=state, validate=made.validation, compile=step):
            if (new := rank(metric, r.better[metric], r.validate)) <= best:
                since, best, tree = since if new[0] == best[0] else r.epoch, new, place.host(r.state.tree)
            if chosen.run.patience is not None and r.epoch - since >= chosen.run.patience:
                break
        seconds = time.process_time() - began
        module = made.pipe.module(State(tree)).eval()
        reads = ["inputs", *(["categories"] if "categories" in t.test else [])]
        with torch.no_grad():
            outputs = module(*(t.test[name] for name in reads))
        if not t.values:
            return outputs.argmax(1), seconds
        mean, std = (outputs.new_tensor(t.data.fitted[f"target_{k}"]) for k in ("mean", "std"))
        return (outputs * std + mean).squeeze(1), seconds

    return run


def theirs(make: Callable[[Task], Any]) -> Callable[[Task], tuple[Any, float]]:
    """Predictions of a model with the methods of scikit-learn, and processor seconds of fitting."""

    def run(t: Task) -> tuple[Any, float]:
        x, y, test, _ = t.columns()
        model = make(t)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            began = time.process_time()
            model.fit(x, y)
            seconds = time.process_time() - began
            return model.predict(test), seconds

    return run


def linear(t: Task) -> Any:
    from sklearn.compose import make_column_selector, make_column_transformer
    from sklearn.linear_model import LogisticRegression, RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    words = OneHotEncoder(handle_unknown="ignore"), make_column_selector(dtype_include="category")
    return make_pipeline(make_column_transformer(words, remainder="passthrough"),
                         RidgeCV() if t.values else LogisticRegression(max_iter=2_000))  # fmt: skip


def trees(t: Task) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    kind = HistGradientBoostingRegressor if t.values else HistGradientBoostingClassifier
    return kind(categorical_features="from_dtype", random_state=t.seed)


def lightgbm(t: Task) -> Any:
    import lightgbm

    kind = lightgbm.LGBMRegressor if t.values else lightgbm.LGBMClassifier
    return kind(random_state=t.seed, n_jobs=1, verbose=-1)


def catboost(t: Task) -> Any:
    import catboost

    categories = [f"c{i}" for i in range(len(t.data.sizes.get("categories", ())))]
    kind = catboost.CatBoostRegressor if t.values else catboost.CatBoostClassifier
    return kind(random_seed=t.seed, thread_count=1, verbose=0, allow_writing_files=False, cat_features=categories)


def pytabkit(name: str) -> Callable[[Task], Any]:
    def make(t: Task) -> Any:
        from pytabkit.models.sklearn import sklearn_interfaces

        kind = getattr(sklearn_interfaces, f"{name}_{'Regressor' if t.values else 'Classifier'}")
        return kind(device="cpu", random_state=t.seed, n_cv=1, n_refit=0, n_threads=1, verbosity=0)

    return make


WAYS: dict[str, Callable[[Task], tuple[Any, float]]] = {
    "ours": ours("table"),
    "ours, realmlp": ours("realmlp"),
    "pytabkit's RealMLP": theirs(pytabkit("RealMLP_TD")),
    "pytabkit's TabM": theirs(pytabkit("TabM_D")),
    "LightGBM": theirs(lightgbm),
    "CatBoost": theirs(catboost),
    "HistGradientBoosting": theirs(trees),
    "logistic or ridge regression": theirs(linear),
}


def measured(found: list[dict[str, Any]]) -> str:
    """Mean errors by table and way, and over the tables that all ways have: mean rank and median processor seconds. Of
    splits that all ways have, if there are any of the table."""
    ways = [w for w in WAYS if any(r["way"] == w for r in found)]
    of = {(r["table"], r["split"]): {x["way"] for x in found if (x["table"], x["split"]) == (r["table"], r["split"])}
          for r in found}  # fmt: skip
    complete = {table for (table, _), done in of.items() if done >= {*ways}}
    found = [r for r in found if r["table"] not in complete or of[r["table"], r["split"]] >= {*ways}]
    errors = {(r["table"], r["way"]): [x["error"] for x in found if (x["table"], x["way"]) == (r["table"], r["way"])]
              for r in found}  # fmt: skip
    shown = [n for n in TABLES if any((n, w) in errors for w in ways)]
    lines = ["| table | " + " | ".join(ways) + " |", "| --- |" + " ---: |" * len(ways)]
    for name in shown:
        cells = [f"{statistics.mean(e):.4f}" if (e := errors.get((name, w))) else "-" for w in ways]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    whole = [n for n in shown if all((n, w) in errors for w in ways)]
    if whole:
        means = np.array([[statistics.mean(errors[n, w]) for w in ways] for n in whole])
        ranks = [(row[:, None] > row).sum(1) + 0.5 * (row[:, None] == row).sum(1) + 0.5 for row in means]
        lines.append("| **mean rank** | " + " | ".join(f"{r:.2f}" for r in np.mean(ranks, 0)) + " |")
    seconds = [statistics.median(r["seconds"] for r in found if r["way"] == w) for w in ways]
    lines.append("| seconds of one processor, median | " + " | ".join(f"{s:.2f}" for s in seconds) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables")
    parser.add_argument("--only", default="", help="tables and ways with one of these words, comma-separated")
    parser.add_argument("--rounds", type=int, default=SPLITS, help=f"splits ({SPLITS})")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    kept = report.RESULTS / "tables.jsonl"
    found = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    words = [w for w in options.only.split(",") if w]
    names = [n for n in TABLES if not words or any(w in n for w in words)] or list(TABLES)
    ways = [w for w in WAYS if not words or any(x in w for x in words)] or list(WAYS)
    missing: dict[str, str] = {}
    for seed in range(options.rounds):
        for name in names:
            for way in ways:
                if way in missing or any((r["table"], r["way"], r["split"]) == (name, way, seed) for r in found):
                    continue
                try:
                    split = task(name, seed)
                    predicted, seconds = WAYS[way](split)
                except (ImportError, PipeError) as e:
                    missing[way if isinstance(e, ImportError) and "no package" not in str(e) else name] = str(e)
                    continue
                found.append({"table": name, "way": way, "split": seed, "error": split.error(predicted),
                              "seconds": seconds})  # fmt: skip
                with kept.open("a") as file:
                    file.write(json.dumps(found[-1]) + "\n")
                print(f"{name}, split {seed}, {way}: {found[-1]['error']:.4f} in {seconds:.2f} s", flush=True)
    text = measured(found) + "".join(f"\n\nMissing: {what}: {why}" for what, why in missing.items())
    report.save("tables", (__doc__ or "").splitlines()[0], text, measurements=found, missing=missing)


if __name__ == "__main__":
    main()
