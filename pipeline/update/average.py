"""Averages of weights, to evaluate and to save in place of the trained ones.

Shapes: an average has the structure, shapes and dtypes of its parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.element import Number, counts
from pipeline.stage import Average, Stage, buffers_of
from pipeline.tree import Tree
from pipeline.update.rule import Params, below_one, copies, count


def ema(decay: Number = 0.999, *, of: str = "params", writes: str = "ema") -> Stage:
    """Exponential moving average of the weights: after each step, ema = decay * ema + (1 - decay) * params.

    Put it after the update rule. State keeps it as `writes`, which other stages can read: a teacher is
    `model.again(params=writes)`. It starts as a copy of the first weights. Buffers, such as BatchNorm's statistics, are
    the model's current ones. `of` names a model's parameters. Equal to torch.optim.swa_utils.AveragedModel(
    use_buffers=False) with update_parameters() called once before the first step.

    >>> half = ema(0.5)({"w": torch.tensor(2.0)}, {}, {"w": torch.tensor(0.0)}, torch.tensor(0.5))
    >>> half[0]["w"]
    tensor(1.)
    """
    below_one("update.ema", decay=decay)

    def function(params: Params, buffers: Params, average: Params, decay: Tensor) -> tuple[Params, Params]:
        return {k: decay * average[k] + (1.0 - decay) * p for k, p in params.items()}, copies(buffers)

    return _average("update.ema", function, of, writes, hyper={"decay": decay})


def swa(start: int, *, every: int = 1, of: str = "params", writes: str = "swa") -> Stage:
    """Stochastic weight averaging: the equal average of the weights after steps `start`, `start + every`, ...

    Put it after the update rule. State keeps it as `writes`; before `start` it equals the weights. BatchNorm's
    statistics don't belong to an average: `pipe.averaged()`, used by `fit` and `pipe train`, recomputes them by
    `pipe.refreshed()`. Raises ConfigError unless `start` and `every` are positive whole numbers.

    Source: Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization (2018), algorithm 1.
    """
    counts("update.swa: ", start=start, every=every)

    def function(params: Params, buffers: Params, average: Params, memory: Any, step: Tensor, start: Tensor,
                 every: Tensor) -> tuple[Params, Params, Any]:  # fmt: skip
        done, averaged = step + 1, memory["count"]
        due = (done >= start) & ((done - start) % every == 0)

        def mean(p: Tensor, old: Tensor) -> Tensor:
            return torch.where(averaged == 0, p, torch.where(due, old + (p - old) / (averaged + 1), old))

        means = {k: mean(p, average[k]) for k, p in params.items()}
        return means, copies(buffers), {"count": averaged + due}

    options: dict[str, Any] = {
        "init": lambda params: {"count": count(params)},
        "hyper": {"start": start, "every": every},
    }
    return _average("update.swa", function, of, writes, refresh=True, **options)


def _average(
    name: str, function: Callable[..., Any], of: str, writes: str, refresh: bool = False, **fields: Any
) -> Stage:
    """A stage with an average that State keeps beside the weights."""
    model, average = (of, buffers_of(of)), (writes, f"{writes}.buffers")

    def create(seed: int, before: Any, tree: Mapping[str, Tree]) -> dict[str, Tree]:
        return {new: copies(tree[old]) for new, old in zip(average, model, strict=True)}

    return Stage(
        name,
        function,
        writes=average,
        create=create,
        keeps=average,
        names={"params": of, "buffers": buffers_of(of), "average": writes, "average_buffers": average[1]},
        sharded=True,
        average=Average(lambda average, average_buffers: {"params": average, "buffers": average_buffers}, refresh),
        **fields,
    )
