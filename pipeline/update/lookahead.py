"""Lookahead: k steps forward, 1 step back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.element import Number, counts
from pipeline.stage import Stage
from pipeline.update.rule import Params, copies, count, positive


def lookahead(every: int = 5, alpha: Number = 0.5) -> Stage:
    """Every `every` steps, slow weights move by `alpha` towards the weights, which then restart from there.

        slow = slow + alpha * (params - slow);  params = slow

    Put it after any update rule. Raises ConfigError unless `every` is a positive whole number.
    Source: Zhang et al., Lookahead Optimizer: k steps forward, 1 step back (2019), algorithm 1.
    """
    counts("update.lookahead: ", every=every)
    positive("update.lookahead", alpha=alpha)

    def function(params: Params, memory: Any, every: Tensor, alpha: Tensor) -> tuple[Params, Any]:
        steps = memory["count"] + 1
        now = steps % every == 0
        slow = {k: torch.where(now, s + alpha * (params[k] - s), s) for k, s in memory["slow"].items()}
        return {k: torch.where(now, slow[k], p) for k, p in params.items()}, {"count": steps, "slow": slow}

    def init(params: Params) -> Any:
        return {"count": count(params), "slow": copies(params)}

    hyper: dict[str, Number] = {"every": every, "alpha": alpha}
    return Stage("update.lookahead", function, writes=("params",), init=init, hyper=hyper, sharded=True)
