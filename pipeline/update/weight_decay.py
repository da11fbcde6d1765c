"""Weight decay beside any rule."""

from __future__ import annotations

from typing import Any

from attrs import field, frozen

from pipeline.element import Number
from pipeline.errors import ConfigError
from pipeline.stage import Stage
from pipeline.update.rule import Params, positive
from pipeline.update.select import Which, chosen


@frozen(eq=False, repr=False)
class Decay(Stage):
    """A weight decay of selected parameters."""

    which: Which = field(kw_only=True)


def weight_decay(rate: Number, *, only: Which = "*") -> Decay:
    """Weight decay as a stage of its own: p * (1 - rate), independent of the learning rate. As in torch, a parameter
    without a gradient keeps its value.

    Before a rule, with rate = lr * weight_decay, it equals the decay of update.adamw. Raises ConfigError for a pattern
    that matches nothing. Source: Loshchilov and Hutter, Decoupled weight decay regularization (2019), algorithm 1.
    """
    name = "update.weight_decay"
    positive(name, rate=rate)

    def function(params: Params, grads: Params, rate: Any) -> Params:
        own = chosen(name, only, params)
        if own and own.isdisjoint(grads):
            raise ConfigError(f"{name}: no gradient is of its parameters; give both, .rename(params=..., grads=...)")
        return {k: p * (1.0 - rate) if k in own and k in grads else p for k, p in params.items()}

    return Decay(name, function, writes=("params",), hyper={"rate": rate}, sharded=True, which=only)
