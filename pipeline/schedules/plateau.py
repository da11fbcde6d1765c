"""The schedule that is driven by what a run reaches, not by its steps."""

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
    """Times `factor` after more than `patience` epochs in which a metric was not better than the best one so far.

    torch's ReduceLROnPlateau(min_lr=floor * base, eps=eps * base). `fit` shows it the metrics of each epoch, and of
    each validation inside one: those of the validation, or of the training where there is none; in a loop of your own,
    `pipe.observed(state, metrics)` does.

    - `mode`: "min" or "max", which values are better.
    - `threshold`: by how much, as a share of the best one (`threshold_mode="rel"`) or as it is ("abs").
    - `cooldown`: epochs after a reduction in which none is counted as bad.
    - `eps`: a smaller reduction than this share of the base is left out.
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
        wanted = best * (1.0 - sign * margin) if threshold_mode == "rel" else best - sign * margin
        better = sign * value < sign * wanted
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
