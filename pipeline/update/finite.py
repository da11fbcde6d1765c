"""Finite: whether State may advance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor

from pipeline import mesh
from pipeline.errors import ConfigError
from pipeline.stage import Stage
from pipeline.tree import Tree, tree_map
from pipeline.update.rule import Params


@frozen(eq=False, repr=False)
class Finite(Stage):
    """A stage that says whether State may advance. `stops` where it may not after the first step that is not finite."""

    stops: bool = field(kw_only=True)

    def choose(self, finite: Tensor, before: dict[str, Tree], after: dict[str, Tree]) -> dict[str, Tree]:
        """The tree of State that a step ends with, of those before and after it."""
        chosen: dict[str, Tree] = tree_map(
            lambda new, old: new if new is old else torch.where(finite, new, old), after, before
        )
        memory = {**chosen["memory"], self.name: after["memory"][self.name]}
        return {**chosen, "memory": memory, "step": chosen["step"] if self.stops else after["step"]}


def finite(otherwise: str = "stop", *, loss: str = "loss", grads: str = "grads") -> Finite:
    """State advances only where the loss and all gradients are finite; this is decided inside the graph.

    Put it after the backward. `otherwise`: "stop" leaves State as it was before the first such step, whatever comes
    after, so that `fit` can say what was wrong and raise NonFiniteError; "skip" leaves such a step out: it changes
    nothing but the count of steps, and the metric "skipped" counts it.

    >>> finite("skip")(loss=torch.tensor(1.0), grads={"w": torch.tensor([1.0, float("nan")])})
    (tensor(False), {'skipped': tensor(1)})
    """
    if otherwise not in ("stop", "skip"):
        raise ConfigError(f"update.finite: otherwise={otherwise!r} is unknown; use 'stop' or 'skip'")

    def both(loss: Tensor, grads: Params) -> Tensor:
        # A sum is finite where all that is added up is, in float64, and one pass over memory.
        total = torch.stack([part.sum(dtype=torch.float64) for part in (loss, *grads.values())]).sum()
        return mesh.over_shards(total).isfinite()

    def skip(loss: Tensor, grads: Params) -> tuple[Tensor, Any]:
        good = both(loss, grads)
        return good, {"skipped": (~good).long()}

    def stop(loss: Tensor, grads: Params, memory: Any, step: Tensor) -> tuple[Tensor, Any]:
        first = torch.where(both(loss, grads), 0, step + 1)
        stopped = torch.where(memory["stopped"] > 0, memory["stopped"], first)
        return stopped == 0, {"stopped": stopped}

    name, names = "update.finite", {"loss": loss, "grads": grads}
    writes = ("finite" if grads == "grads" else f"{grads}.finite",)

    def zero(key: str) -> Callable[[], Any]:
        return lambda: {key: torch.zeros((), dtype=torch.int64)}

    if otherwise == "stop":
        return Finite(name, stop, writes=writes, init=zero("stopped"), names=names, sharded=True, stops=True)
    options: dict[str, Any] = {"names": names, "sharded": True, "stops": False}
    return Finite(name, skip, writes=writes, init=zero("skipped"), finish=dict, **options)
