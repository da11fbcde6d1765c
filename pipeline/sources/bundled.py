"""Data sets that come with scikit-learn: real data, no download."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from pipeline.errors import DataError, did_you_mean
from pipeline.sources.csv import Cells, package
from pipeline.sources.prepared import Prepared
from pipeline.sources.split import Split, split
from pipeline.sources.table import prepare
from pipeline.sources.tensors import Tensors


def digits(held_out: float = 0.2, seed: int = 0, parts: Split | None = None) -> tuple[Tensors, Tensors]:
    """1,797 handwritten digits as 8x8 images: inputs (N, 1, 8, 8) float32 in [0, 1], targets (N,) int64 in 0..9.

    Returns (training, held out), the same split for the same seed.
    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI (1998), the test part.
    """
    package = find_spec("sklearn")  # to import it would take longer than to train
    assert package is not None
    assert package.submodule_search_locations is not None
    [folder] = package.submodule_search_locations
    raw = np.loadtxt(Path(folder) / "datasets" / "data" / "digits.csv.gz", delimiter=",", dtype=np.float32)
    images = torch.from_numpy(raw[:, :64].reshape(-1, 1, 8, 8) / 16.0)
    data = Tensors({"inputs": images, "targets": torch.from_numpy(raw[:, 64]).long()}, tuple("0123456789"))
    return split(data, held_out, seed, parts)


SKLEARN = ("breast_cancer", "diabetes", "digits", "iris", "wine")
"""Data sets that scikit-learn brings."""


def sklearn(name: str, parts: Split | None = None) -> Prepared:
    """A data set of scikit-learn's by name, one of SKLEARN, as `table` prepares it; digits as images."""
    parts = parts or Split()
    if name not in SKLEARN:
        raise DataError(f"scikit-learn brings no data {name!r}{did_you_mean(name, SKLEARN)}")
    if name == "digits":
        train, held_out = digits(parts=parts)
        return Prepared(train, held_out, "classification", train.classes)
    from sklearn import datasets

    options = {"scaled": False} if name == "diabetes" else {}
    raw = getattr(datasets, f"load_{name}")(**options)
    pl = package()
    columns = {str(n): pl.Series(str(n), raw.data[:, i]) for i, n in enumerate(raw.feature_names)}
    names = raw.get("target_names")
    target = raw.target if names is None else [str(names[t]) for t in raw.target]
    cells = Cells(f"sklearn:{name}", {**columns, "target": pl.Series("target", target)}, str)
    return prepare(lambda: cells, "target", parts)
