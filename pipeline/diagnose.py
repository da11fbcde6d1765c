"""Diagnose: where the first number that is not finite comes from, by running one step again, uncompiled, stage by stage.

A step is a function of State and batch, so what a compiled step met can be met again, and looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pipeline.backward import Gradients
from pipeline.compose import Pipeline
from pipeline.run import forward, through_backward
from pipeline.stage import Stage
from pipeline.state import Batch, State


def first_nonfinite(pipe: Pipeline, state: State, batch: Batch) -> str | None:
    """In words, the first tensor of a step that holds NaN or infinity: of the batch, of State, or what a stage made.

    None where all are finite, as after another order of rounding.

    >>> from pipeline import Pipeline, forward, loss, models, backward, update
    >>> pipe = Pipeline(forward.model(lambda: models.mlp(2, 2)), loss.cross_entropy(), backward.gradients(), update.sgd(0.1))
    >>> first_nonfinite(pipe, pipe.init(0), {"inputs": torch.tensor([[1.0, float("nan")]]), "targets": torch.tensor([0])})
    "the batch's 'inputs' has NaN"
    """
    found = list(_found(pipe, state, batch))
    return next((words for certain, words in found if certain), found[0][1] if found else None)


Fault: TypeAlias = tuple[bool, str]
"""Whether it is one for certain: minus infinity masks attention, and may be what is wanted. And in words."""


def _found(pipe: Pipeline, state: State, batch: Batch) -> Iterator[Fault]:
    batch = pipe.place.batch(batch)
    yield from _bad("the batch's", batch)
    for name, kept in state.tree.items():
        yield from _bad(f"State's {name}", kept if isinstance(kept, Mapping) else {name: kept})
    tree = state.tree
    values = {**{k: v for k, v in tree.items() if k not in ("memory", "hyper")}, "training": True, **batch}
    hyper, memory = pipe.hyper(tree), tree["memory"]
    pending: list[Stage] = []
    given = dict(values)
    for s in pipe.graph:
        if isinstance(s, Gradients):
            written, _, _ = through_backward(s, tuple(batch), pipe.place.autocast)(pending, given, hyper, memory)
            yield from _bad("the gradient of", written[s.grads])
            values |= written
            given, pending = dict(values), []
            continue
        pending.append(s)
        with torch.no_grad(), pipe.place.autocast():
            written, _, _ = forward([s], values, hyper, memory)
        yield from _bad(f"stage {s.name!r} made", written)
        values |= written


def _bad(whose: str, values: Any) -> Iterator[Fault]:
    for path, value in pytree.tree_flatten_with_path(values)[0]:
        if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
            name = ".".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in path)
            certain = bool((value.isnan() | value.isposinf()).any())
            yield certain, f"{whose} {name!r} has {'NaN' if value.isnan().any() else 'infinity'}"
