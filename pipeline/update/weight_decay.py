"""Weight decay beside any rule."""

from __future__ import annotations

from typing import Any

from pipeline.element import Number
from pipeline.stage import Stage
from pipeline.update.rule import Params, positive
from pipeline.update.select import Which, holds


def weight_decay(rate: Number, *, only: Which = "*") -> Stage:
    """Weight decay as a stage of its own: p * (1 - rate), independent of the learning rate.

    Before a rule, with rate = lr * weight_decay, it equals the decay of update.adamw. Source: Loshchilov and Hutter,
    Decoupled weight decay regularization (2019), algorithm 1.
    """
    positive("update.weight_decay", rate=rate)

    def function(params: Params, rate: Any) -> Params:
        return {k: p * (1.0 - rate) if holds(only, k, p) else p for k, p in params.items()}

    return Stage("update.weight_decay", function, writes=("params",), hyper={"rate": rate}, sharded=True)
