"""Data sets that come with scikit-learn: real data, no download."""

from __future__ import annotations

import torch

from pipeline.sources.tensors import Tensors, split


def digits(held_out: float = 0.2, seed: int = 0) -> tuple[Tensors, Tensors]:
    """1,797 handwritten digits as 8x8 images: inputs (N, 1, 8, 8) float32 in [0, 1], targets (N,) int64 in 0..9.

    Returns (training, held out), the same split for the same seed.
    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI (1998), the test part.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = torch.from_numpy(raw.images).float().unsqueeze(1) / 16.0
    data = Tensors(
        {"inputs": images, "targets": torch.from_numpy(raw.target).long()}, tuple(map(str, raw.target_names))
    )
    return split(data, held_out, seed)
