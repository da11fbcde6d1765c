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

SCALE, STREAK = 2.0**16, 2000
"""The first factor of a loss, and the steps after which it doubles."""


@frozen(eq=False, repr=False)
class Finite(Stage):
    """A stage that says whether State may advance. `stops` where it may not after the first step that is not finite."""

    stops: bool = field(kw_only=True)
    scales: bool = field(kw_only=True, default=False)

    @property
    def scaled(self) -> str:
        """The name under which a backward finds the factor of its loss."""
        return f"{self.names['loss']}.scale"

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
    nothing but the count of steps, and the metric "skipped" counts it. "scale" skips such steps too, and multiplies the
    loss by a power of two before it is differentiated, and divides the gradients by it, so that those of float16 are in
    its range: by 2**16 at first, half of that after a step that was skipped, and twice after 2,000 that were not (as
    torch.amp.GradScaler).

    >>> finite("skip")(loss=torch.tensor(1.0), grads={"w": torch.tensor([1.0, float("nan")])})
    (tensor(False), {'skipped': tensor(1)})
    """
    if otherwise not in ("stop", "skip", "scale"):
        raise ConfigError(f"update.finite: otherwise={otherwise!r} is unknown; use 'stop', 'skip' or 'scale'")

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

    def scale(loss: Tensor, grads: Params, memory: Any) -> tuple[Tensor, Any]:
        good, factor = both(loss, grads), memory["scale"]
        streak = torch.where(good, memory["streak"] + 1, 0)
        grown = torch.where(streak == STREAK, 2 * factor, factor)
        return good, {"scale": torch.where(good, grown, factor / 2), "streak": streak % STREAK}

    name, names = "update.finite", {"loss": loss, "grads": grads}
    writes = ("finite" if grads == "grads" else f"{grads}.finite",)

    def begin() -> Any:
        return {"scale": torch.full((), SCALE, dtype=torch.float64), "streak": torch.zeros((), dtype=torch.int64)}

    def zero(key: str) -> Callable[[], Any]:
        return lambda: {key: torch.zeros((), dtype=torch.int64)}

    if otherwise == "stop":
        return Finite(name, stop, writes=writes, init=zero("stopped"), names=names, sharded=True, stops=True)
    options: dict[str, Any] = {"names": names, "sharded": True, "stops": False}
    if otherwise == "scale":
        return Finite(name, scale, writes=writes, init=begin, scales=True, **options)
    return Finite(name, skip, writes=writes, init=zero("skipped"), finish=dict, **options)
