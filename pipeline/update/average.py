"""Averages of weights: other weights to evaluate and to save, which training makes beside its own or works on.

Shapes: as the update rules; an average has the structure, shapes and dtypes of the parameters that it is of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.stage import Number, Stage, buffers_of, is_count
from pipeline.tree import Tree
from pipeline.update.rule import Params, below_one, count, positive


def ema(decay: Number = 0.999, *, of: str = "params", writes: str = "ema") -> Stage:
    """The exponential moving average of the weights: after each step, ema = decay * ema + (1 - decay) * params.

    Put it after the update rule. State keeps it as `writes`, where other stages can read it: a teacher is
    `model.again(params=writes)`. It begins as a copy of the first weights. Buffers, such as BatchNorm's statistics, are
    the model's current ones, as with torch.optim.swa_utils.AveragedModel(use_buffers=False), which it equals. `of` is
    the name under which a model keeps its parameters.

    >>> half = ema(0.5)({"w": torch.tensor(2.0)}, {}, {"w": torch.tensor(0.0)}, torch.tensor(0.5))
    >>> half[0]["w"]
    tensor(1.)
    """
    below_one("update.ema", decay=decay)

    def function(params: Params, buffers: Params, average: Params, decay: Tensor) -> tuple[Params, Params]:
        return {k: decay * average[k] + (1.0 - decay) * p for k, p in params.items()}, _copies(buffers)

    return _kept("update.ema", function, of, writes, hyper={"decay": decay})


def swa(start: int, *, every: int = 1, of: str = "params", writes: str = "swa") -> Stage:
    """The equal average of the weights after `start` steps, `start + every`, and so on (stochastic weight averaging).

    Put it after the update rule. State keeps it as `writes`. Up to `start` it is the weights themselves. BatchNorm's
    statistics belong to no average: `pipe.averaged()`, which `fit` and `pipe train` take the weights from, makes them
    anew by `pipe.refreshed()`. Raises ConfigError for a `start` or `every` that is no positive whole number.

    Source: Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization (2018), algorithm 1.
    """
    for name, value in (("start", start), ("every", every)):
        if not is_count(value):
            raise ConfigError(f"update.swa: {name}={value!r} is not a positive whole number")

    def function(params: Params, buffers: Params, average: Params, memory: Any, step: Tensor, start: Tensor,
                 every: Tensor) -> tuple[Params, Params, Any]:  # fmt: skip
        done, averaged = step + 1, memory["count"]
        taken = (done >= start) & ((done - start) % every == 0)

        def mean(p: Tensor, old: Tensor) -> Tensor:
            return torch.where(averaged == 0, p, torch.where(taken, old + (p - old) / (averaged + 1), old))

        means = {k: mean(p, average[k]) for k, p in params.items()}
        return means, _copies(buffers), {"count": averaged + taken}

    options = {"hyper": {"start": start, "every": every}, "anew": True}
    return _kept("update.swa", function, of, writes, init=lambda params: {"count": count(params)}, **options)


def lookahead(every: int = 5, alpha: Number = 0.5) -> Stage:
    """Slow weights, which go `alpha` of the way to the fast ones after each `every` steps; these then begin from there.

        slow = slow + alpha * (params - slow);  params = slow

    Put it after any update rule. Raises ConfigError for an `every` that is no positive whole number.
    Source: Zhang et al., Lookahead Optimizer: k steps forward, 1 step back (2019), algorithm 1.
    """
    if not is_count(every):
        raise ConfigError(f"update.lookahead: every={every!r} is not a positive whole number")
    positive("update.lookahead", alpha=alpha)

    def function(params: Params, memory: Any, every: Tensor, alpha: Tensor) -> tuple[Params, Any]:
        steps = memory["count"] + 1
        now = steps % every == 0
        slow = {k: torch.where(now, s + alpha * (params[k] - s), s) for k, s in memory["slow"].items()}
        return {k: torch.where(now, slow[k], p) for k, p in params.items()}, {"count": steps, "slow": slow}

    def init(params: Params) -> Any:
        return {"count": count(params), "slow": _copies(params)}

    hyper: dict[str, Number] = {"every": every, "alpha": alpha}
    return Stage("update.lookahead", function, writes=("params",), init=init, hyper=hyper, sharded=True)


def _kept(name: str, function: Callable[..., Any], of: str, writes: str, **fields: Any) -> Stage:
    """An average that State keeps beside the weights."""
    model, own = (of, buffers_of(of)), (writes, f"{writes}.buffers")

    def create(seed: int, before: Any, tree: Mapping[str, Tree]) -> dict[str, Tree]:
        return {new: _copies(tree[old]) for new, old in zip(own, model, strict=True)}

    return Stage(
        name,
        function,
        writes=own,
        create=create,
        keeps=own,
        names={"params": of, "buffers": buffers_of(of), "average": writes, "average_buffers": own[1]},
        sharded=True,
        view=lambda average, average_buffers: {"params": average, "buffers": average_buffers},
        **fields,
    )


def _copies(tensors: Params) -> Params:
    # Two names of State that share a tensor could not be donated.
    return {k: t.clone() for k, t in tensors.items()}
