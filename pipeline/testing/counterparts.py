"""Torch's counterparts of rules, clips and schedules, by the library function that made these."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.optim import lr_scheduler as lrs

from pipeline.errors import ByHandError
from pipeline.schedules import Schedule
from pipeline.stage import Stage
from pipeline.update.select import holds

OPTIMIZERS = {k.lower(): v for k, v in vars(optim).items() if isinstance(v, type)} | {"_adam": optim.Adam}
PAIRS = {"betas": ("beta1", "beta2"), "etas": ("eta_minus", "eta_plus"), "step_sizes": ("step_min", "step_max")}
CLIPS: dict[str, Any] = {"clip_norm": nn.utils.clip_grad_norm_, "clip_value": nn.utils.clip_grad_value_}
SCHEDULES: dict[str, Any] = {
    "linear": lambda o, b, steps, start, end: lrs.LinearLR(o, start, end, steps),
    "polynomial": lambda o, b, steps, power, end: None if end else lrs.PolynomialLR(o, steps, power),
    "step": lambda o, b, every, gamma: lrs.StepLR(o, every, gamma),
    "multi_step": lambda o, b, gamma, **at: lrs.MultiStepLR(o, [int(m) for m in at.values()], gamma),
    "cosine": lambda o, b, steps, warmup, floor: None if warmup else lrs.CosineAnnealingLR(o, steps, floor * b),
    "reduce_on_plateau": lambda o, b, floor, eps, **of: lrs.ReduceLROnPlateau(o, min_lr=floor * b, eps=eps * b, **of),
}
"""Torch's scheduler for an optimizer and a base value; None if torch has none."""


def rules(
    s: Stage, params: Mapping[str, Tensor], number: Callable[[str, Any], float], memory: Any, key: str, at: str = ""
) -> Iterator[Any]:
    """Each rule of groups, or a single rule: with its parameters, and torch's optimizer if it has one."""
    closed = closed_over(s.function)
    homes = [home(f) for f in (s.function, *closed.values())]
    if "groups" in homes:
        for label, member in closed["stages"].items():
            own = {k: p for k, p in params.items() if label == _group(closed["keys"], k, p)}
            yield from rules(member, own, number, memory[key], label, f"{at}{label}.") if own else ()
        return
    kind = optim.AdamW if closed.get("decoupled") else next((OPTIMIZERS[x] for x in homes if x in OPTIMIZERS), None)
    numbers = {h: number(f"{at}{h}", x) for h, x in s.hyper.items()}
    yield s, at, [*params], kind and kind([*params.values()], **options(kind, numbers, s.function)), memory, key


def _group(keys: Mapping[str, Any], name: str, p: Tensor) -> str:
    return next((label for label, which in keys.items() if holds(which, name, p)), "otherwise")


def scheduler(full: str, schedule: Schedule, steps: int | None, batches: int | None) -> Any:
    """Torch's scheduler with its own optimizer; None if torch has none for a run of so many steps."""
    kind, numbers, result = home(schedule.factor), schedule.filled(steps, batches), None
    if kind in SCHEDULES and numbers.get("steps", torch.inf) >= (steps or 0):
        flags = options(lrs.ReduceLROnPlateau, {}, schedule.observe)
        result = SCHEDULES[kind](optim.SGD([torch.zeros(1)], lr=schedule.base), schedule.base, **numbers, **flags)
    if schedule.memory and result is None:
        raise ByHandError(f"can't be done by hand: the schedule of {full}, which watches a metric")
    return result


def home(f: Any) -> str:
    """The name of the library function that made a closure."""
    ours = isinstance(f, FunctionType) and f.__module__.startswith("pipeline.")
    return f.__qualname__.split(".")[0] if ours else ""


def closed_over(f: Any, values: dict[str, Any] | None = None) -> dict[str, Any]:
    """The variables that a function closes over, at any depth."""
    values = {} if values is None else values
    for name, value in inspect.getclosurevars(f).nonlocals.items() if isinstance(f, FunctionType) else ():
        if name not in values:
            values[name] = value
            closed_over(value, values)
    return values


def options(takes: Any, numbers: Mapping[str, Any], function: Any = None) -> dict[str, Any]:
    """Arguments for a torch class or function, from numbers and the variables of a closure."""
    pairs = {k: (numbers[a], numbers[b]) for k, (a, b) in PAIRS.items() if a in numbers}
    given = {**closed_over(function), **numbers, **pairs}
    return {k: x for k, x in given.items() if k in inspect.signature(takes).parameters}
