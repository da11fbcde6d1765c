"""Made-up data."""

from __future__ import annotations

import torch

from pipeline.sources.tensors import Tensors


def random(samples: int = 1000, features: int = 784, classes: int = 10, seed: int = 0) -> Tensors:
    """The tutorial's set: normal inputs (samples, features) float32 and random labels (samples,) int64."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, features, generator=generator)
    targets = torch.randint(0, classes, (samples,), generator=generator)
    return Tensors({"inputs": inputs, "targets": targets}, tuple(map(str, range(classes))))
