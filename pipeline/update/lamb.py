"""LAMB: layerwise adaptation for large batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.element import Number
from pipeline.stage import Stage
from pipeline.update.adam import Betas, hyperparameters, moments
from pipeline.update.rule import mapped, root, zeros


def lamb(lr: Number = 1e-3, *, betas: Betas = (0.9, 0.999), eps: Number = 1e-6, weight_decay: Number = 0.01,
         maximize: bool = False) -> Stage:  # fmt: skip
    """LAMB: the AdamW step of each parameter, scaled to the parameter's norm.

        r = m / (1 - beta1**t) / (sqrt(v / (1 - beta2**t)) + eps) + weight_decay * p;  p = p - lr * |p| / |r| * r

    |p| / |r| is 1 if either norm is 0. Source: You et al., Large batch optimization for deep learning:
    training BERT in 76 minutes (2020), algorithm 2.
    """

    def rule(p: Tensor, g: Tensor, memory: Any, t: Tensor, lr: Tensor, beta1: Tensor, beta2: Tensor, eps: Tensor,
             weight_decay: Tensor) -> Any:  # fmt: skip
        m, v = moments(g, memory, beta1, beta2)
        r = m / (1.0 - beta1**t) / (root(v / (1.0 - beta2**t)) + eps) + weight_decay * p
        size, length = root(p.square().sum()), root(r.square().sum())
        nonzero = (p != 0).any() & (r != 0).any()
        return p - lr * torch.where(nonzero, size / length, 1.0) * r, {"first": m, "second": v}

    hyper = hyperparameters("update.lamb", lr, betas, eps, weight_decay)
    return mapped("update.lamb", rule, hyper, memory=zeros("first", "second"), maximize=maximize, elementwise=False)
