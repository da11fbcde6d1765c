"""Finite: advance State only if the loss and the gradients are finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor

from pipeline import mesh
from pipeline.errors import ConfigError
from pipeline.mesh.collectives import as_real
from pipeline.stage import Stage
from pipeline.tree import Tree, tree_map
from pipeline.update.rule import Params

SCALE, STREAK = 2.0**16, 2000
"""First scale of a loss, and the finite steps in a row that double it."""


@frozen(eq=False, repr=False)
class Finite(Stage):
    """A stage that writes whether State may advance."""

    stops: bool = field(kw_only=True)
    """Never advance again after the first step that is not finite."""
    scales: bool = field(kw_only=True, default=False)
    """Scale the loss before differentiation, and the gradients back after it."""

    @property
    def scaled(self) -> str:
        """Name of the loss scale, which a backward reads."""
        return f"{self.names['loss']}.scale"

    def choose(self, finite: Tensor, before: dict[str, Tree], after: dict[str, Tree]) -> dict[str, Tree]:
        """State's tree at the end of a step: `after` if the step was finite, else `before`."""
        chosen: dict[str, Tree] = tree_map(
            lambda new, old: new if new is old else torch.where(finite, new, old), after, before
        )
        memory = {**chosen["memory"], self.name: after["memory"][self.name]}
        return {**chosen, "memory": memory, "step": chosen["step"] if self.stops else after["step"]}


def finite(otherwise: str = "stop", *, loss: str = "loss", grads: str = "grads") -> Finite:
    """Advance State only if the loss and all gradients are finite; decided inside the graph.

    Put it after the backward. `otherwise`:

    - "stop": keep State as it was before the first non-finite step; `fit` then raises NonFiniteError, with the cause.
    - "skip": leave State unchanged except the step count; the metric "skipped" counts these steps.
    - "scale": skip, and scale the loss of float16 models by a power of two before differentiation, and the gradients
      back, as torch.amp.GradScaler: 2**16 at first, halved after a skipped step, doubled after 2,000 finite ones.

    >>> finite("skip")(loss=torch.tensor(1.0), grads={"w": torch.tensor([1.0, float("nan")])})
    (tensor(False), {'skipped': tensor(1)})
    """
    if otherwise not in ("stop", "skip", "scale"):
        raise ConfigError(f"update.finite: otherwise={otherwise!r} is unknown; use 'stop', 'skip' or 'scale'")

    def all_finite(loss: Tensor, grads: Params) -> Tensor:
        # A float64 sum is finite if all its terms are, and takes one pass over memory.
        total = torch.stack([as_real(x).sum(dtype=torch.float64) for x in (loss, *grads.values())]).sum()
        return mesh.over_shards(total).isfinite()

    def skip(loss: Tensor, grads: Params) -> tuple[Tensor, Any]:
        good = all_finite(loss, grads)
        return good, {"skipped": (~good).long()}

    def stop(loss: Tensor, grads: Params, memory: Any, step: Tensor) -> tuple[Tensor, Any]:
        first = torch.where(all_finite(loss, grads), 0, step + 1)
        stopped = torch.where(memory["stopped"] > 0, memory["stopped"], first)
        return stopped == 0, {"stopped": stopped}

    def scale(loss: Tensor, grads: Params, memory: Any) -> tuple[Tensor, Any]:
        good, factor = all_finite(loss, grads), memory["scale"]
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
