"""The digits job of digits_step: 20 epochs of a small classifier, the same for all contenders."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline import models

SAMPLES, EPOCHS, SIZE, BATCHES = 1438, 20, 64, 23
STEPS = EPOCHS * BATCHES
LR, DECAY, CLIP = 1e-3, 0.01, 1.0


def data() -> tuple[Tensor, Tensor]:
    """1,438 digits: inputs (N, 64) float32 and targets (N,) int64; 22 batches of 64 and one of 30."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    assert -(-SAMPLES // SIZE) == BATCHES
    return torch.from_numpy(raw.data[:SAMPLES]).float() / 16.0, torch.from_numpy(raw.target[:SAMPLES]).long()


def model() -> nn.Module:
    """The network, with the same first weights for all."""
    torch.manual_seed(0)
    return models.mlp(64, 32, 10)


def weights() -> list[Tensor]:
    """The first weights, as w1 (32, 64), b1 (32,), w2 (10, 32), b2 (10,)."""
    return [p.detach() for p in model().parameters()]
