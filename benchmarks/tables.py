"""How well and how fast are tables learned with defaults, compared with scikit-learn?

`python -m benchmarks.tables`. Tables of scikit-learn, and a synthetic one of 20,000 rows with words and missing values,
each over the same five splits. Ours is `pipe train --data` for 20 epochs, with cached programs. scikit-learn's MLP gets
scaled numbers and one-hot words, its trees the table as it is. Seconds of fitting, one thread.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars
import torch

from benchmarks import report
from cli import build, config
from pipeline import fit
from pipeline.sources import Split
from pipeline.sources.formats import read_table

SPLITS = 5
NAMES = ("sklearn:wine", "sklearn:breast_cancer", "sklearn:diabetes")


def mixed(path: Path, rows: int = 20_000) -> None:
    """Six columns of numbers, three of words of 5, 20 and 100 kinds, all with missing values, and a noisy class that
    depends on a product, a threshold and each word."""
    random = np.random.default_rng(0)
    numbers = random.normal(size=(rows, 6)) * [1, 10, 100, 1, 1, 1000]
    kinds = [random.integers(n, size=rows) for n in (5, 20, 100)]
    weights = [random.normal(size=n) for n in (5, 20, 100)]
    score = numbers[:, 0] * numbers[:, 1] / 10 + 1.5 * (numbers[:, 2] > 50) + sum(
        w[k] for w, k in zip(weights, kinds, strict=True)) + random.normal(size=rows)  # fmt: skip
    columns: dict[str, Any] = {f"x{i}": [None if m else v for v, m in zip(numbers[:, i], random.random(rows) < 0.05,
                                                                          strict=True)] for i in range(6)}  # fmt: skip
    for name, k in zip(("five", "twenty", "hundred"), kinds, strict=True):
        columns[name] = [None if m else f"{name}{v}" for v, m in zip(k, random.random(rows) < 0.05, strict=True)]
    polars.DataFrame({**columns, "target": np.where(score > 0, "yes", "no")}).write_csv(path)


def ours(source: str, split: int) -> tuple[float, float]:
    """Held-out score after the last epoch, and seconds of a run with cached programs."""
    made = build.job(config.make({"data": source, "run.seed": split, "run.threads": 1}))
    step = made.pipe.compile()
    step.prepare(made.pipe.init(split), made.validation)
    began = time.perf_counter()
    *_, last = fit(made.pipe, epochs=20, seed=split, validate=made.validation, compile=step)
    seconds = time.perf_counter() - began
    return float(last.validate[made.best or "loss"]), seconds


def frames(source: str, split: int) -> tuple[Any, Any, Any, Any]:
    """Training and held-out columns in pandas, and targets, with our split."""
    import pandas
    from sklearn import datasets

    if source.startswith("sklearn:"):
        options = {"scaled": False} if "diabetes" in source else {}
        raw = getattr(datasets, f"load_{source.partition(':')[2]}")(as_frame=True, **options)
        x, y = raw.data, raw.target.to_numpy()
        labels = None if "diabetes" in source else y
    else:
        frame = {name: column.to_list() for name, column in read_table(source).columns.items()}
        x = pandas.DataFrame({n: v for n, v in frame.items() if n != "target"}).replace({"": None})
        for name in x.columns:
            x[name] = x[name].astype(float) if name.startswith("x") else x[name].astype("category")
        labels = y = np.array(frame["target"])
    train, held = (rows.numpy() for rows in Split(0.2, split).rows(len(y), labels=labels))
    return x.iloc[train], y[train], x.iloc[held], y[held]


def theirs(make: Callable[[Any, bool], Any], source: str, split: int) -> tuple[float, float]:
    x, y, test, wanted = frames(source, split)
    model = make(x, y.dtype.kind == "f")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the MLP stops before it has converged
        began = time.perf_counter()
        model.fit(x, y)
        return float(model.score(test, wanted)), time.perf_counter() - began


def trees(x: Any, values: bool) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    return (HistGradientBoostingRegressor if values else HistGradientBoostingClassifier)(
        categorical_features="from_dtype", random_state=0
    )


def network(x: Any, values: bool) -> Any:
    from sklearn.compose import make_column_selector, make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    prepared = make_column_transformer(
        (make_pipeline(SimpleImputer(), StandardScaler()), make_column_selector(dtype_include="number")),
        (OneHotEncoder(handle_unknown="ignore"), make_column_selector(dtype_include="category")),
    )
    return make_pipeline(prepared, (MLPRegressor if values else MLPClassifier)(random_state=0))


WAYS: dict[str, Callable[[str, int], tuple[float, float]]] = {
    "ours": ours,
    "HistGradientBoosting": lambda source, split: theirs(trees, source, split),
    "scikit-learn's MLP": lambda source, split: theirs(network, source, split),
}


def main() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mixed.csv"
        mixed(path)
        for source in (*NAMES, str(path)):
            rows: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
            for split in range(SPLITS):
                for way, run in WAYS.items():
                    rows[way].append(run(source, split))
            found[source if source in NAMES else "mixed, 20,000 rows"] = {
                way: {"scores": [s for s, _ in r], "seconds": [t for _, t in r]} for way, r in rows.items()
            }
            print(source, {w: statistics.mean(x for x, _ in r) for w, r in rows.items()}, flush=True)
    head = ["table", "way", "held out: accuracy or R2, mean (least - most)", "seconds, median (least - most)"]
    lines = [f"| {' | '.join(head)} |", "| --- | --- | ---: | ---: |"]
    for table, ways in found.items():
        for way, r in ways.items():
            s, t = r["scores"], r["seconds"]
            lines.append(f"| {table} | {way} | {statistics.mean(s):.4f} ({min(s):.4f} - {max(s):.4f}) | "
                         f"{statistics.median(t):.3f} ({min(t):.3f} - {max(t):.3f}) |")  # fmt: skip
    report.save("tables", (__doc__ or "").splitlines()[0], "\n".join(lines), tables=found)


if __name__ == "__main__":
    main()
