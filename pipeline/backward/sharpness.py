"""Sharpness-aware minimisation: the gradient at the worst parameters nearby."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor

from pipeline.backward.gradients import Gradients, Objective, Route, gradients
from pipeline.element import Number
from pipeline.errors import ConfigError
from pipeline.schedules import Schedule
from pipeline.tree import Tree

_ETA = 0.01
"""Added to |w| in adaptive steps, so that weights of 0 move too; as in the paper and its code."""


@frozen(eq=False)
class SharpnessAware(Gradients):
    """A backward that takes two gradients, the second at parameters moved along the first."""

    adaptive: bool = field(kw_only=True)

    def differentiate(
        self, objective: Objective, params: dict[str, Tensor], hyper: Mapping[str, Tensor], alone: bool
    ) -> tuple[dict[str, Tensor], Tree]:
        """(gradients at the moved parameters, the objective's other values at the parameters themselves)."""
        first, aux = super().differentiate(objective, params, hyper, alone)
        moved = _moved(params, first, hyper["rho"], self.adaptive)
        grads, _ = super().differentiate(objective, moved, hyper, alone)
        return grads, aux


def _moved(params: dict[str, Tensor], grads: dict[str, Tensor], rho: Tensor, adaptive: bool) -> dict[str, Tensor]:
    """Params + rho * T^2 g / |T g|, with T = |w| + eta if adaptive, else 1."""
    # As in the paper's code, only parameters with "weight" in their names are scaled.
    reached = {k: params[k] for k in grads}
    scales = {k: p.abs() + _ETA if adaptive and "weight" in k else torch.ones_like(p) for k, p in reached.items()}
    scaled = {k: g * scales[k] for k, g in grads.items()}
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in scaled.values()]))
    length = rho / torch.where(norm > 0, norm, 1.0)  # no move along a gradient of zeros
    return params | {k: p + scaled[k] * scales[k] * length.to(p.dtype) for k, p in reached.items()}


def sharpness_aware(
    rho: Number = 0.05,
    *,
    adaptive: bool = False,
    of: str = "loss",
    wrt: str | tuple[str, ...] = (),
    writes: str = "grads",
    route: Route = "auto",
    name: str = "backward.sharpness_aware",
) -> SharpnessAware:
    """Sharpness-aware minimisation: the gradient of `of` at the parameters moved by rho * g / |g|, with g the gradient
    at the parameters themselves and |g| its norm over all of them. A step takes two forwards and two backwards.

    The loss, outputs, metrics and buffers come from the first pass; both passes draw the same numbers. `route` as in
    `gradients`. Raises ConfigError for a negative or infinite `rho`.

    - `adaptive`: move by rho * T^2 g / |T g| with T = |w| + 0.01 for parameters with "weight" in their names, else 1:
      independent of the scale of the weights. The paper uses rho of 0.5 and more.

    Sources: Foret et al., Sharpness-aware minimization for efficiently improving generalization (2021), equation 2 and
    algorithm 1, without its second-order term, as there; Kwon et al., ASAM: adaptive sharpness-aware minimization for
    scale-invariant learning of deep neural networks (2021), and its code.

    >>> sharpness_aware(0.1).hyper
    {'rho': 0.1}
    """
    number = rho.base if isinstance(rho, Schedule) else rho
    if not 0 <= number < float("inf"):
        raise ConfigError(f"{name}: rho={number} is not a finite number of at least 0")
    plain = gradients(of=of, wrt=wrt, writes=writes, route=route, name=name)

    def sums(loss: Tensor, weight: Any = None, rho: Any = None) -> Tree:
        return plain.function(loss, weight)

    return SharpnessAware(
        name,
        sums,
        init=plain.init,
        finish=plain.finish,
        names=plain.names,
        hyper={"rho": rho},
        of=of,
        wrt=plain.wrt,
        grads=writes,
        route=route,
        adaptive=adaptive,
    )
