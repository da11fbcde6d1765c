"""Rule: how one parameter changes, as a function of one tensor, which is mapped over all of them.

A rule is `(p, g, memory, t, **hyper) -> (p, memory)`: a parameter and its gradient, alike in shape and dtype, what is
remembered of it, a dict of tensors, and the number of this step, from 1, a 0-d int64. One that remembers nothing
returns p alone, and one that does not name `memory` or `t` is not given them. Every hyperparameter is a 0-d float64
tensor, which multiplies float32 without promoting it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias

import torch
from attrs import frozen
from torch import Tensor

from pipeline.errors import ConfigError, did_you_mean
from pipeline.schedules import Schedule
from pipeline.stage import Number, Stage, is_number

Params: TypeAlias = dict[str, Tensor]
"""Tensors by parameter name: the parameters themselves, their gradients, or what a rule remembers of each."""
Memory: TypeAlias = Callable[[Tensor], dict[str, Tensor]]
"""What a rule remembers of a parameter at first."""

COUNT = "count"
"""Under which is remembered how many steps a parameter has had, for rules that name `t`."""


@frozen(eq=False, repr=False)
class Update(Stage):
    """A stage that maps a rule over the parameters: a hyperparameter may be handed to it as a dict, one for each."""


def rule(
    function: Callable[..., Any] | None = None,
    *,
    memory: Memory | None = None,
    name: str | None = None,
    elementwise: bool = False,
) -> Any:
    """Make an update rule from a function of one tensor. What it gives makes stages, as `update.sgd` does.

    Defaults that are numbers are hyperparameters, which can be schedules; other defaults are constants. One that is
    `elementwise` says that each number changes by itself, so that a mesh may keep its memory in shards.

    >>> @rule(memory=lambda p: {"velocity": torch.zeros_like(p)})
    ... def heavy(p, g, memory, lr=0.1, momentum=0.9):
    ...     velocity = momentum * memory["velocity"] + g
    ...     return p - lr * velocity, {"velocity": velocity}
    >>> heavy(0.01, momentum=0.5).hyper
    {'lr': 0.01, 'momentum': 0.5}
    """

    def make(f: Callable[..., Any]) -> Callable[..., Update]:
        called = name or f.__name__
        if memory is None and "memory" in inspect.signature(f).parameters:
            raise ConfigError(f"{called} reads 'memory', but has no memory= that makes the first one of a parameter")
        options = {p.name: p for p in inspect.signature(f).parameters.values() if p.name not in ("p", "g", *_GIVEN)}
        signature = inspect.Signature(list(options.values()))

        def made(*args: Any, **given: Any) -> Update:
            for key in given:
                if key not in options:
                    raise ConfigError(f"{called}: there is no option {key!r}{did_you_mean(key, options)}")
            try:
                bound = signature.bind(*args, **given)
            except TypeError as e:
                raise ConfigError(f"{called}: {e}") from None
            bound.apply_defaults()
            hyper = {k: v for k, v in bound.arguments.items() if is_number(options[k].default)}
            constants = {k: v for k, v in bound.arguments.items() if k not in hyper}
            fixed: dict[str, Any] = {"constants": constants, "elementwise": elementwise, "signed": hyper}
            return mapped(called, f, hyper, memory=memory, draws=True, **fixed)

        made.__name__, made.__doc__ = called, f.__doc__
        return made

    return make if function is None else make(function)


_GIVEN = ("memory", "t")


def mapped(
    name: str, rule: Callable[..., Any], hyper: Mapping[str, Any], *, memory: Memory | None = None,
    constants: Mapping[str, Any] | None = None, maximize: bool = False, draws: bool = False,
    elementwise: bool = True, signed: Collection[str] = (),
) -> Update:  # fmt: skip
    """The stage that maps a rule over the parameters. Hyperparameters that are not `signed` are from 0 on."""
    numbers = {key: number(name, key, value) for key, value in hyper.items()}
    positive(name, **{key: value for key, value in numbers.items() if key not in signed})
    takes = {key for key in _GIVEN if key in inspect.signature(rule).parameters}
    fixed = dict(constants or {})

    def one(p: Tensor, g: Tensor, kept: dict[str, Tensor], own: dict[str, Any]) -> tuple[Tensor, Any]:
        if p.is_complex():  # as torch.optim: a complex number is two
            p, kept = torch.view_as_real(p), {k: _as_real(x) for k, x in kept.items()}
            q, kept = one(p, torch.view_as_real(g), kept, own)
            return torch.view_as_complex(q.contiguous()), kept
        done = {COUNT: kept[COUNT] + 1} if "t" in takes else {}
        given = {"memory": {f: x for f, x in kept.items() if f != COUNT}, "t": done.get(COUNT)}
        result = rule(p, -g if maximize else g, **{k: given[k] for k in takes}, **own, **fixed)
        new, after = result if memory is not None else (result, {})
        return new, {**done, **after}

    def over(params: Params, grads: Params, kept: Mapping[str, Any], hyper: Any) -> tuple[Params, Any]:
        new: Params = {}
        after: dict[str, Params] = {}
        for k, p in params.items():
            own = {h: value[k] if isinstance(value, dict) else value for h, value in hyper.items()}
            fields = {f: x[k] for f, x in kept.items() if k in x}
            # As in torch, a parameter without a gradient stays as it is, and what is remembered of it.
            new[k], fields = one(p, grads[k], fields, own) if k in grads else (p, fields)
            for f, x in fields.items():
                after.setdefault(f, {})[k] = x
        return new, after

    def plain(params: Params, grads: Params, **hyper: Any) -> Params:
        return over(params, grads, {}, hyper)[0]

    def remembering(params: Params, grads: Params, memory: Any, **hyper: Any) -> tuple[Params, Any]:
        return over(params, grads, memory, hyper)

    def init(params: Params) -> Any:
        first: dict[str, Any] = {}
        for k, p in params.items():
            fields = memory(_as_real(p)) if memory is not None else {}
            for f, x in {**({COUNT: count({k: p})} if "t" in takes else {}), **fields}.items():
                first.setdefault(f, {})[k] = x
        return first

    options: dict[str, Any] = {
        "hyper": numbers, "names": {"params": "params", "grads": "grads"}, "draws": draws, "sharded": elementwise,
    }  # fmt: skip
    if memory is None and "t" not in takes:
        return Update(name, plain, writes=("params",), **options)
    return Update(name, remembering, writes=("params",), init=init, **options)


def zeros(*fields: str) -> Memory:
    """A memory of tensors like the parameter, of zeros."""
    return lambda p: {f: torch.zeros_like(p, memory_format=torch.preserve_format) for f in fields}


def count(params: Params) -> Tensor:
    """A count at 0, on the parameters' device, also where a step is mapped over them."""
    device = next(iter(params.values())).device if params else None
    return torch.zeros((), dtype=torch.int64, device=device)


def root(x: Tensor) -> Tensor:
    """The square root, with a slope of 0 at 0 instead of an infinite one: a gradient through training meets it where
    a parameter has had no gradient yet."""
    return x.clamp(min=1e-37).sqrt()


def number(stage: str, name: str, value: Any) -> Number:
    """A hyperparameter as it is given, a 0-d tensor as a number. Raises ConfigError for what is none."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.requires_grad:
        value = value.item()
    if not is_number(value):
        raise ConfigError(f"{stage}: {name}={value!r} is neither a number nor a Schedule")
    return value  # type: ignore[no-any-return]  # it is a Number


def positive(stage: str, **hyper: Any) -> None:
    """Raise ConfigError for what is not a finite number of at least 0."""
    for name, value in hyper.items():
        first = number(stage, name, value)
        base = first.base if isinstance(first, Schedule) else first
        if not base >= 0 or base == float("inf"):
            raise ConfigError(f"{stage}: {name}={base} is not a finite number of at least 0")


def below_one(stage: str, **hyper: Any) -> None:
    """Raise ConfigError for what is not a number in [0, 1)."""
    positive(stage, **hyper)
    for name, value in hyper.items():
        if not isinstance(value, Schedule) and value >= 1:
            raise ConfigError(f"{stage}: {name}={value} is not below 1")


def _as_real(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x
