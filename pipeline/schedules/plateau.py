"""Reduce on plateau: a schedule driven by metrics instead of steps."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.schedules.schedule import Schedule, at_least, number, one_of


def reduce_on_plateau(
    base: float, factor: float = 0.1, patience: float = 10, metric: str = "loss", mode: str = "min",
    threshold: float = 1e-4, threshold_mode: str = "rel", cooldown: float = 0, floor: float = 0.0, eps: float = 1e-8,
) -> Schedule:  # fmt: skip
    """Multiply by `factor` after more than `patience` epochs without a new best value of a metric.

    torch's ReduceLROnPlateau(min_lr=floor * base, eps=eps * base). `fit` passes the metrics of each validation, or
    of each training epoch if there is none; in your own loop, call `pipe.observed(state, metrics)`.

    - `mode`: "min" or "max", the better direction.
    - `threshold`: minimum improvement, relative to the best value (`threshold_mode="rel"`) or absolute ("abs").
    - `cooldown`: epochs after a reduction that don't count as bad.
    - `eps`: skip reductions smaller than this fraction of the base.
    """
    one_of("mode", mode, ("min", "max"))
    one_of("threshold_mode", threshold_mode, ("rel", "abs"))
    at_least(0, factor=factor, patience=patience, threshold=threshold, cooldown=cooldown, floor=floor, eps=eps)
    if factor >= 1:
        raise ConfigError(f"schedules.reduce_on_plateau: factor={factor} is not below 1")
    sign = 1.0 if mode == "min" else -1.0

    def apply(step: Tensor, memory: Mapping[str, Tensor], **numbers: Tensor) -> Tensor:
        return memory["scale"]

    def observe(memory: Mapping[str, Tensor], metrics: Mapping[str, float], **numbers: Tensor) -> dict[str, Tensor]:
        best, bad, cooldown, scale = (memory[k] for k in ("best", "bad", "cooldown", "scale"))
        value = torch.full_like(best, metrics[metric])
        margin = numbers["threshold"]
        target = best * (1.0 - sign * margin) if threshold_mode == "rel" else best - sign * margin
        better = sign * value < sign * target
        bad = torch.where(better | (cooldown > 0), torch.zeros_like(bad), bad + 1)
        cooldown = (cooldown - 1).clamp(min=0)
        reduces = bad > numbers["patience"]
        lower = torch.maximum(scale * numbers["factor"], numbers["floor"])
        return {
            "scale": torch.where(reduces & (scale - lower > numbers["eps"]), lower, scale),
            "best": torch.where(better, value, best),
            "bad": torch.where(reduces, torch.zeros_like(bad), bad),
            "cooldown": torch.where(reduces, numbers["cooldown"].long(), cooldown),
        }

    numbers = {
        "factor": factor, "patience": patience, "threshold": threshold, "cooldown": cooldown, "floor": floor,
        "eps": eps,
    }  # fmt: skip
    return Schedule(
        base,
        apply,
        {k: number(k, v) for k, v in numbers.items()},
        memory={"scale": 1.0, "best": sign * math.inf, "bad": 0, "cooldown": 0},
        observe=observe,
        watches=(metric,),
    )
