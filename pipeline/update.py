"""Update: new parameters from gradients. Each rule is a pure function of the values it names, equal to torch.optim's.

Shapes: params and grads are dicts of tensors by parameter name, alike in structure, shapes and dtype; every
hyperparameter is a 0-d float64 tensor, which multiplies float32 without promoting it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from attrs import field, frozen
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.schedules import Schedule
from pipeline.stage import Number, Stage
from pipeline.tree import Tree, tree_map

Params: TypeAlias = dict[str, Tensor]
"""Tensors by parameter name: the parameters themselves, their gradients, or what a rule remembers of each."""


def _positive(stage: str, **hyper: Number) -> None:
    for name, value in hyper.items():
        number = value.base if isinstance(value, Schedule) else value
        if not isinstance(number, int | float) or isinstance(number, bool):
            raise ConfigError(f"{stage}: {name}={number!r} is neither a number nor a Schedule")
        if not number >= 0 or number == float("inf"):
            raise ConfigError(f"{stage}: {name}={number} is not a finite number of at least 0")


def _below_one(stage: str, **hyper: Number) -> None:
    _positive(stage, **hyper)
    for name, value in hyper.items():
        if not isinstance(value, Schedule) and value >= 1:
            raise ConfigError(f"{stage}: {name}={value} is not below 1")


def _zeros(params: Params) -> Params:
    return {k: torch.zeros_like(p) for k, p in params.items()}


@frozen(eq=False)
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
        return torch.stack([part.sum(dtype=torch.float64) for part in (loss, *grads.values())]).sum().isfinite()

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
        return Finite(name, stop, writes=writes, init=zero("stopped"), names=names, stops=True)
    return Finite(name, skip, writes=writes, init=zero("skipped"), finish=dict, names=names, stops=False)


def sgd(lr: Number, *, momentum: Number = 0.0, dampening: Number = 0.0, weight_decay: Number = 0.0,
        nesterov: bool = False) -> Stage:  # fmt: skip
    """Stochastic gradient descent, equal to torch.optim.SGD; a momentum of 0 builds it without a memory.

        g = grad + weight_decay * p;  m = momentum * m + (1 - dampening) * g  (at first m = g);  p = p - lr * m

    With `nesterov` the last line is p - lr * (g + momentum * m). Source: Sutskever et al. (2013), as torch.optim.SGD.
    """
    _positive("update.sgd", lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay)
    if nesterov and (momentum == 0 or dampening != 0):
        raise ConfigError("update.sgd: nesterov=True needs a momentum above 0 and no dampening")

    def plain(params: Params, grads: Params, lr: Tensor, weight_decay: Tensor) -> Params:
        return {k: p - lr * (grads[k] + weight_decay * p) for k, p in params.items()}

    def heavy(params: Params, grads: Params, memory: Any, lr: Tensor, momentum: Tensor, dampening: Tensor,
              weight_decay: Tensor) -> tuple[Params, Any]:  # fmt: skip
        new, velocity = {}, {}
        keep = torch.where(memory["count"] == 0, 1.0, 1.0 - dampening)
        for k, p in params.items():
            g = grads[k] + weight_decay * p
            velocity[k] = momentum * memory["velocity"][k] + keep * g
            new[k] = p - lr * (g + momentum * velocity[k] if nesterov else velocity[k])
        return new, {"count": memory["count"] + 1, "velocity": velocity}

    def init(params: Params) -> Any:
        return {"count": _count(params), "velocity": _zeros(params)}

    hyper: dict[str, Number] = {"lr": lr, "weight_decay": weight_decay}
    if momentum == 0:
        return Stage("update.sgd", plain, writes=("params",), hyper=hyper)
    hyper |= {"momentum": momentum, "dampening": dampening}
    return Stage("update.sgd", heavy, writes=("params",), init=init, hyper=hyper)


def adam(lr: Number = 1e-3, *, betas: tuple[Number, Number] = (0.9, 0.999), eps: Number = 1e-8,
         weight_decay: Number = 0.0) -> Stage:  # fmt: skip
    """Adam, equal to torch.optim.Adam; its weight decay is added to the gradient.

    Source: Kingma and Ba, Adam: a method for stochastic optimization (2015), algorithm 1.
    """
    return _adam("update.adam", False, lr, betas, eps, weight_decay)


def adamw(lr: Number = 1e-3, *, betas: tuple[Number, Number] = (0.9, 0.999), eps: Number = 1e-8,
          weight_decay: Number = 0.01) -> Stage:  # fmt: skip
    """Adam with decoupled weight decay, equal to torch.optim.AdamW.

    Source: Loshchilov and Hutter, Decoupled weight decay regularization (2019), algorithm 2.
    """
    return _adam("update.adamw", True, lr, betas, eps, weight_decay)


def _adam(name: str, decoupled: bool, lr: Number, betas: tuple[Number, Number], eps: Number, decay: Number) -> Stage:
    _positive(name, lr=lr, eps=eps, weight_decay=decay)
    _below_one(name, beta1=betas[0], beta2=betas[1])

    def rule(params: Params, grads: Params, memory: Any, lr: Tensor, beta1: Tensor, beta2: Tensor, eps: Tensor,
             weight_decay: Tensor) -> tuple[Params, Any]:  # fmt: skip
        count = memory["count"] + 1
        rate = lr / (1.0 - beta1**count)
        scale = torch.sqrt(1.0 - beta2**count)
        new, first, second = {}, {}, {}
        for k, p in params.items():
            g = grads[k] if decoupled else grads[k] + weight_decay * p
            first[k] = m = memory["first"][k] + (1.0 - beta1) * (g - memory["first"][k])
            second[k] = v = beta2 * memory["second"][k] + (1.0 - beta2) * g * g
            kept = p * (1.0 - lr * weight_decay) if decoupled else p
            new[k] = kept - rate * (m / (torch.sqrt(v) / scale + eps))
        return new, {"count": count, "first": first, "second": second}

    def init(params: Params) -> Any:
        return {"count": _count(params), "first": _zeros(params), "second": _zeros(params)}

    hyper = {"lr": lr, "beta1": betas[0], "beta2": betas[1], "eps": eps, "weight_decay": decay}
    return Stage(name, rule, writes=("params",), init=init, hyper=hyper)


def _count(params: Params) -> Tensor:
    # On the parameters' device, also where a step is mapped over them.
    device = next(iter(params.values())).device if params else None
    return torch.zeros((), dtype=torch.int64, device=device)


def _clip(name: str, function: Callable[..., Params], limit: Number) -> Stage:
    _positive(name, limit=limit)
    return Stage(name, function, writes=("grads",), hyper={"limit": limit})


def clip_norm(limit: Number) -> Stage:
    """Gradients scaled down so that their norm together is at most `limit`, as torch.nn.utils.clip_grad_norm_.

    >>> grads = clip_norm(1.0)({"w": torch.tensor([3.0, 4.0])}, limit=torch.tensor(1.0))
    >>> [round(x, 3) for x in grads["w"].tolist()]
    [0.6, 0.8]
    """

    def function(grads: Params, limit: Tensor) -> Params:
        # The norm of norms, in torch's own order of operations.
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads.values()]))
        scale = (limit / (norm + 1e-6)).clamp(max=1.0).to(norm.dtype)
        return {k: g * scale for k, g in grads.items()}

    return _clip("update.clip_norm", function, limit)


def clip_value(limit: Number) -> Stage:
    """Each gradient entry clamped to [-limit, limit], as torch.nn.utils.clip_grad_value_."""

    def function(grads: Params, limit: Tensor) -> Params:
        return {k: torch.minimum(torch.maximum(g, -limit.to(g.dtype)), limit.to(g.dtype)) for k, g in grads.items()}

    return _clip("update.clip_value", function, limit)
