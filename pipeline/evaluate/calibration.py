"""Temperature: one number that calibrates probabilities."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.evaluate.metric import FLOAT, metric
from pipeline.shapes import by_class, by_label
from pipeline.stage import Stage
from pipeline.tree import Tree

LARGEST, STEPS = 16.0, 128
"""Temperatures are searched from 1 / LARGEST to LARGEST, on a grid of STEPS even steps of their logarithm."""


def temperature(*, several: bool = False) -> Stage:
    """The number to divide logits by, so that the log loss of their probabilities is least, as `temperature`. Above 1,
    the model was too sure.

    Outputs (B, C) and targets (B,) int64, or, for several labels, (B, L) of 0 and 1. The sums are the log losses at
    each temperature of a grid; a parabola through the best three gives the result. Measure it on samples that the
    model was not trained on.

    Source: Guo et al., On calibration of modern neural networks (2017), section 4.2.

    >>> metric = temperature()
    >>> logits = torch.tensor([0.8, 0.2]).log().expand(10, 2)  # and 0 is right in 8 of 10
    >>> found = metric.finish(metric(4 * logits, torch.tensor([0] * 8 + [1] * 2)))
    >>> round(found["temperature"].item(), 2)
    4.0
    """
    step = 2 * math.log(LARGEST) / STEPS
    name = "evaluate.temperature"

    def measure(outputs: Tensor, targets: Tensor) -> Tree:
        if several:
            logits, goals, counted = by_label(name, outputs.to(FLOAT), targets)
            goals = goals.to(FLOAT).clamp(min=0)
            loss: Any = partial(F.binary_cross_entropy_with_logits, weight=counted.to(FLOAT))
        else:
            (logits, goals), loss = by_class(name, outputs.to(FLOAT), targets, None), F.cross_entropy
        inverse = [math.exp(i * step) / LARGEST for i in range(STEPS + 1)]
        return {"losses": torch.stack([loss(logits * factor, goals, reduction="sum") for factor in inverse])}

    def finish(sums: Any) -> dict[str, Any]:
        losses = sums["losses"]
        best = losses.argmin(-1, keepdim=True).clamp(1, STEPS - 1)
        before, at, after = (losses.gather(-1, best + i).squeeze(-1) for i in (-1, 0, 1))
        bend = before - 2 * at + after
        shift = torch.where(bend > 0, (before - after) / (2 * torch.where(bend > 0, bend, 1.0)), 0.0).clamp(-1, 1)
        inverse = (best.squeeze(-1) + shift) * step - math.log(LARGEST)
        return {"temperature": torch.exp(-inverse)}

    return metric(name, measure, finish, {"losses": (FLOAT, (STEPS + 1,))})
