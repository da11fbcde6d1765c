"""Rule: the update of one parameter, as a function of one tensor; a stage maps it over all parameters.

A rule is `(p, g, memory, t, **hyper) -> (p, memory)`: a parameter and its gradient, of one shape and dtype, the
parameter's memory (a dict of tensors), and the number of this step, from 1 (0-d int64). `memory` and `t` are passed
only if the rule names them; a rule without memory returns p alone. Each hyperparameter is a 0-d float64 tensor, which
multiplies float32 without promoting it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias

import torch
from attrs import frozen
from torch import Tensor

from pipeline.alike import traced_once
from pipeline.element import Number, is_number
from pipeline.errors import ConfigError, did_you_mean
from pipeline.mesh.collectives import as_real
from pipeline.schedules import Schedule
from pipeline.stage import Stage

Params: TypeAlias = dict[str, Tensor]
"""Tensors by parameter name: parameters, their gradients, or one field of a rule's memory."""
Memory: TypeAlias = Callable[[Tensor], dict[str, Tensor]]
"""The initial memory of a parameter."""

COUNT = "count"
"""Memory field with the number of steps of a parameter, for rules that read `t`."""
_GIVEN = ("memory", "t")


@frozen(eq=False, repr=False)
class Update(Stage):
    """A stage that maps a rule over parameters; it also accepts a hyperparameter as a dict, by parameter name."""


def rule(
    function: Callable[..., Any] | None = None,
    *,
    memory: Memory | None = None,
    name: str | None = None,
    elementwise: bool = False,
) -> Any:
    """Make an update rule from a function of one tensor. The result builds stages, as `update.sgd` does.

    Defaults that are numbers are hyperparameters, which may be schedules; other defaults are constants. `elementwise`:
    each element changes independently, so that a mesh may shard the memory.

    >>> @rule(memory=lambda p: {"velocity": torch.zeros_like(p)})
    ... def heavy(p, g, memory, lr=0.1, momentum=0.9):
    ...     velocity = momentum * memory["velocity"] + g
    ...     return p - lr * velocity, {"velocity": velocity}
    >>> heavy(0.01, momentum=0.5).hyper
    {'lr': 0.01, 'momentum': 0.5}
    """

    def decorate(f: Callable[..., Any]) -> Callable[..., Update]:
        label = name or f.__name__
        if memory is None and "memory" in inspect.signature(f).parameters:
            raise ConfigError(f"{label} reads 'memory', but has no memory= that makes the first one of a parameter")
        options = {p.name: p for p in inspect.signature(f).parameters.values() if p.name not in ("p", "g", *_GIVEN)}
        signature = inspect.Signature(list(options.values()))

        def build(*args: Any, **kwargs: Any) -> Update:
            for key in kwargs:
                if key not in options:
                    raise ConfigError(f"{label}: there is no option {key!r}{did_you_mean(key, options)}")
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError as e:
                raise ConfigError(f"{label}: {e}") from None
            bound.apply_defaults()
            hyper = {k: v for k, v in bound.arguments.items() if is_number(options[k].default)}
            constants = {k: v for k, v in bound.arguments.items() if k not in hyper}
            fixed: dict[str, Any] = {"constants": constants, "elementwise": elementwise, "signed": hyper}
            return mapped(label, f, hyper, memory=memory, draws=True, **fixed)

        build.__name__, build.__doc__ = label, f.__doc__
        return build

    return decorate if function is None else decorate(function)


def mapped(
    name: str, rule: Callable[..., Any], hyper: Mapping[str, Any], *, memory: Memory | None = None,
    constants: Mapping[str, Any] | None = None, maximize: bool = False, draws: bool = False,
    elementwise: bool = True, signed: Collection[str] = (),
) -> Update:  # fmt: skip
    """A stage that maps a rule over the parameters. Hyperparameters must be at least 0, unless `signed` names them."""
    numbers = {key: number(name, key, value) for key, value in hyper.items()}
    positive(name, **{key: value for key, value in numbers.items() if key not in signed})
    reads = {key for key in _GIVEN if key in inspect.signature(rule).parameters}
    counts = "t" in reads

    def update_one(p: Tensor, g: Tensor, fields: dict[str, Tensor], hyper: dict[str, Any]) -> tuple[Tensor, Any]:
        if p.is_complex():  # as in torch.optim, a complex number is updated as two real numbers
            fields = {f: as_real(x) for f, x in fields.items()}
            q, fields = update_one(torch.view_as_real(p), torch.view_as_real(g), fields, hyper)
            return torch.view_as_complex(q.contiguous()), fields
        count = {COUNT: fields[COUNT] + 1} if counts else {}
        given = {"memory": {f: x for f, x in fields.items() if f != COUNT}, "t": count.get(COUNT)}
        result = rule(p, -g if maximize else g, **{k: given[k] for k in reads}, **hyper, **(constants or {}))
        new, fields = result if memory is not None else (result, {})
        return new, {**count, **fields}

    def update_all(params: Params, grads: Params, memory: Mapping[str, Any], hyper: Any) -> tuple[Params, Any]:
        new: Params = {}
        after: dict[str, Params] = {}
        update = traced_once(update_one)
        for k, p in params.items():
            numbers = {h: value[k] if isinstance(value, dict) else value for h, value in hyper.items()}
            fields = {f: x[k] for f, x in memory.items() if k in x}
            # As in torch, a parameter without a gradient keeps its value and its memory.
            new[k], fields = update(p, grads[k], fields, numbers) if k in grads else (p, fields)
            for f, x in fields.items():
                after.setdefault(f, {})[k] = x
        return new, after

    def plain(params: Params, grads: Params, **hyper: Any) -> Params:
        return update_all(params, grads, {}, hyper)[0]

    def remembering(params: Params, grads: Params, memory: Any, **hyper: Any) -> tuple[Params, Any]:
        return update_all(params, grads, memory, hyper)

    def init(params: Params) -> Any:
        first: dict[str, Params] = {}
        for k, p in params.items():
            fields = {COUNT: count({k: p})} if counts else {}
            for f, x in {**fields, **(memory(as_real(p)) if memory is not None else {})}.items():
                first.setdefault(f, {})[k] = x
        return first

    stateful = memory is not None or counts
    return Update(
        name, remembering if stateful else plain, writes=("params",), init=init if stateful else None, hyper=numbers,
        names={"params": "params", "grads": "grads"}, draws=draws, sharded=elementwise,
    )  # fmt: skip


def zeros(*fields: str) -> Memory:
    """A memory of zeros like the parameter."""
    return lambda p: {f: torch.zeros_like(p, memory_format=torch.preserve_format) for f in fields}


def count(params: Params) -> Tensor:
    """A count of 0, on the parameters' device, also under vmap."""
    device = next(iter(params.values())).device if params else None
    return torch.zeros((), dtype=torch.int64, device=device)


def copies(tensors: Params) -> Params:
    """Clones: two names of State that share a tensor could not be donated."""
    return {k: t.clone() for k, t in tensors.items()}


def root(x: Tensor) -> Tensor:
    """Square root with slope 0 instead of infinity at 0, for gradients through training steps."""
    return x.clamp(min=1e-37).sqrt()


def number(stage: str, name: str, value: Any) -> Number:
    """A hyperparameter, from a number, a Schedule or a 0-d tensor. Raises ConfigError for anything else."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.requires_grad:
        value = value.item()
    if not is_number(value):
        raise ConfigError(f"{stage}: {name}={value!r} is neither a number nor a Schedule")
    return value  # type: ignore[no-any-return]  # it is a Number


def positive(stage: str, **hyper: Any) -> None:
    """Raise ConfigError unless each is a finite number of at least 0."""
    for name, value in hyper.items():
        first = number(stage, name, value)
        base = first.base if isinstance(first, Schedule) else first
        if not base >= 0 or base == float("inf"):
            raise ConfigError(f"{stage}: {name}={base} is not a finite number of at least 0")


def below_one(stage: str, **hyper: Any) -> None:
    """Raise ConfigError unless each is in [0, 1)."""
    positive(stage, **hyper)
    for name, value in hyper.items():
        if not isinstance(value, Schedule) and value >= 1:
            raise ConfigError(f"{stage}: {name}={value} is not below 1")
