"""Data sets that need no download: digits, which are part of this package, scikit-learn's, and random numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from pipeline.errors import DataError, did_you_mean, needs
from pipeline.sources.frame import Frame, package
from pipeline.sources.prepared import Prepared
from pipeline.sources.split import Split, split
from pipeline.sources.table import prepare
from pipeline.sources.tensors import Tensors

SKLEARN = ("breast_cancer", "diabetes", "digits", "iris", "wine")


def random(samples: int = 1000, features: int = 784, classes: int = 10, seed: int = 0) -> Tensors:
    """The tutorial's set: normal inputs (samples, features) float32 and random labels (samples,) int64."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, features, generator=generator)
    targets = torch.randint(0, classes, (samples,), generator=generator)
    return Tensors({"inputs": inputs, "targets": targets}, tuple(map(str, range(classes))))


def digits(held_out: float = 0.2, seed: int = 0, parts: Split | None = None) -> tuple[Tensors, Tensors]:
    """1,797 handwritten digits as 8x8 images: inputs (N, 1, 8, 8) float32 in [0, 1], targets (N,) int64 in 0..9.

    Returns (training, held out), the same split for the same seed.
    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI (1998), the test part.
    """
    path = Path(__file__).with_name("digits.csv.gz")
    raw = torch.from_numpy(np.loadtxt(path, delimiter=",", dtype=np.float32))
    images, targets = raw[:, :64].reshape(-1, 1, 8, 8) / 16.0, raw[:, 64].long()
    return split(Tensors({"inputs": images, "targets": targets}, tuple("0123456789")), held_out, seed, parts)


def sklearn(name: str, parts: Split | None = None) -> Prepared:
    """A data set of SKLEARN by name, prepared as a table; digits as images."""
    if name not in SKLEARN:
        raise DataError(f"scikit-learn brings no data {name!r}{did_you_mean(name, SKLEARN)}")
    if name == "digits":
        train, held_out = digits(parts=parts)
        return Prepared(train, held_out, "classification", train.classes)
    with needs(f"sklearn:{name} comes with scikit-learn, which is missing", "scikit-learn"):
        from sklearn import datasets

    raw = getattr(datasets, f"load_{name}")(**({"scaled": False} if name == "diabetes" else {}))
    classes = raw.get("target_names")
    target = raw.target if classes is None else [str(classes[t]) for t in raw.target]
    columns = {**dict(zip(map(str, raw.feature_names), raw.data.T, strict=True)), "target": target}
    frame = Frame(f"sklearn:{name}", package().DataFrame(columns), np.arange(len(target)) + 1)
    return prepare(lambda: frame, "target", parts or Split())
