"""Groups: a rule, or numbers of their own, for parts of the parameters. Members are ordinary stages."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import torch
from attrs import evolve

from pipeline.element import Number
from pipeline.errors import ConfigError
from pipeline.stage import Average, Stage
from pipeline.text import some
from pipeline.tree import Tree, tree_map
from pipeline.update.rule import Params, Update, positive
from pipeline.update.select import Which, holds

OTHERWISE = "otherwise"


def groups(members: Mapping[Which, Stage], *, otherwise: Stage | None = None, name: str = "update.groups") -> Stage:
    """Update each parameter by the rule of its group: `groups({"head.*": adamw(1e-2)}, otherwise=adamw(1e-3))`.

    A key is a pattern of names ("head.*, !*.bias": separated by commas, ! excludes) or a predicate of (name, tensor);
    `otherwise` updates the rest. A group's hyperparameters in State are "update.groups.head.*.lr", by its pattern or
    its predicate's name. A member is any stage from params and grads to params: a rule, `frozen()`, other groups, or
    one of your own.

    `init` raises ConfigError for a parameter in two groups, for one in none without `otherwise`, and for a pattern that
    matches nothing; a predicate may match nothing.

    >>> from pipeline import update
    >>> grouped = groups({"*.bias": update.adamw(weight_decay=0.0)}, otherwise=update.sgd(0.1))
    >>> sorted(grouped.hyper)[-2:]
    ['otherwise.lr', 'otherwise.weight_decay']
    """
    keys: dict[str, Which] = {_label(key): key for key in members}
    stages: dict[str, Stage] = {_label(key): member for key, member in members.items()}
    if len(keys) < len(members):
        raise ConfigError(f"{name}: two groups have one name, {', '.join(map(_label, members))}; name their functions")
    if otherwise is not None:
        stages[OTHERWISE] = otherwise
    for label, s in stages.items():
        _member(name, label, s)
    hyper = {f"{label}.{h}": value for label, s in stages.items() for h, value in s.hyper.items()}

    def call(values: dict[str, Any], hyper: Mapping[str, Any], memory: Any) -> tuple[Params, Tree]:
        changed: Params = {}
        after = {}
        for label, names in _assigned(name, keys, OTHERWISE in stages, values["params"]).items():
            s = stages[label]
            subset = {**values, "params": _pick(values["params"], names), "grads": _pick(values["grads"], names)}
            written, new = s.run(subset, {h: hyper[f"{label}.{h}"] for h in s.hyper}, memory.get(label))
            changed |= written["params"]
            if s.remembers:
                after[label] = new
        return {k: changed[k] for k in values["params"]}, after

    def init(params: Params) -> Tree:
        assigned = _assigned(name, keys, OTHERWISE in stages, params)
        for label, names in assigned.items():
            if not names and isinstance(keys.get(label), str):
                raise ConfigError(f"{name}: the group {label!r} matches none of the parameters {some(params)}")
        return {k: _init(stages[k], _pick(params, names)) for k, names in assigned.items() if stages[k].remembers}

    def view(params: Params, memory: Any) -> Params:
        averages = dict(params)
        for label, names in _assigned(name, keys, OTHERWISE in stages, params).items():
            if stages[label].average is not None:
                averages |= _averages(stages[label], _pick(params, names), memory[label])
        return averages

    return _wrapper(name, call, init, hyper, stages.values(), view)


def frozen() -> Stage:
    """A member of groups that leaves parameters unchanged. Their gradients are taken, and clip_norm counts them."""
    return Stage("update.frozen", lambda params: params, writes=("params",), sharded=True, freezes=True)


def thawed(member: Stage, at: Number) -> Stage:
    """Leave parameters unchanged up to step `at`; from there update them by `member`, starting from its first memory.

    >>> from pipeline import update
    >>> groups({"encoder.*": thawed(update.adamw(1e-4), at=1000)}, otherwise=update.adamw()).hyper["encoder.*.at"]
    1000
    """
    _member("update.thawed", "member", member)
    positive("update.thawed", at=at)

    def call(values: dict[str, Any], hyper: Mapping[str, Any], memory: Any) -> tuple[Params, Tree]:
        written, new = member.run(values, {h: x for h, x in hyper.items() if h != "at"}, memory)

        def chosen(before: Tree, after: Tree) -> Tree:
            return tree_map(lambda old, new: torch.where(values["step"] < hyper["at"], old, new), before, after)

        return chosen(values["params"], written["params"]), chosen(memory, new) if member.remembers else {}

    hyper = {**member.hyper, "at": at}
    stage = _wrapper(member.name, call, partial(_init, member), hyper, [member], partial(_averages, member))
    return evolve(stage, freezes=True)


def layerwise(member: Stage, decay: Number, *, layers: list[Which] | None = None) -> Stage:
    """A rule with a smaller lr for earlier layers: lr * decay**k for the k-th layer from the last (k = 0).

    `layers` are patterns, from inputs to outputs, that match each parameter once. By default, parameters with the same
    name up to the first number ("encoder.blocks.3"), or else up to the last dot, form a layer, in the module's order.
    Sources: Howard and Ruder, Universal language model fine-tuning (2018), section 3.2; Clark et al., ELECTRA (2020).

    >>> from pipeline import update
    >>> layerwise(update.adamw(1e-3), decay=0.75).hyper["decay"]
    0.75
    """
    name = member.name
    if not isinstance(member, Update) or "lr" not in member.hyper:
        raise ConfigError(f"update.layerwise() takes a rule with an lr, such as update.adamw(), not {name!r}")
    positive("update.layerwise", decay=decay)

    def call(values: dict[str, Any], hyper: Mapping[str, Any], memory: Any) -> tuple[Params, Tree]:
        depth = _depths(name, values["params"], layers)
        rates = {k: hyper["lr"] * hyper["decay"] ** k for k in sorted(set(depth.values()))}
        numbers = {h: x for h, x in hyper.items() if h != "decay"}
        numbers["lr"] = {k: rates[depth[k]] for k in values["params"]}
        written, new = member.run(values, numbers, memory)
        return written["params"], new if member.remembers else {}

    def init(params: Params) -> Tree:
        _depths(name, params, layers)
        return _init(member, params)

    hyper = {**member.hyper, "decay": decay}
    return _wrapper(name, call, init, hyper, [member], partial(_averages, member))


def scaled(member: Stage, **factors: Mapping[str, float]) -> Stage:
    """A rule whose numbers are multiplied by a factor for some parameters, chosen by patterns of their names:
    `scaled(update.adamw(1e-3), lr={"head.*": 10.0, "*.bias": 0.1}, weight_decay={"*.bias": 0.0})`.

    The first pattern that matches counts; a pattern may match nothing. One rule and one schedule serve all parameters,
    where `groups` has a rule for each group.

    >>> from pipeline import update
    >>> scaled(update.sgd(0.1), lr={"head.*": 10.0}).hyper["lr"]
    0.1
    """
    name = member.name
    if not isinstance(member, Update):
        raise ConfigError(f"update.scaled() takes a rule, such as update.adamw(), not {name!r}")
    for number in factors:
        if number not in member.hyper:
            raise ConfigError(f"update.scaled({number}=...): {name} has no {number!r}, only {', '.join(member.hyper)}")

    def call(values: dict[str, Any], hyper: Mapping[str, Any], memory: Any) -> tuple[Params, Tree]:
        numbers: dict[str, Any] = dict(hyper)
        for number, patterns in factors.items():
            each = {k: _factor(patterns, k, p) for k, p in values["params"].items()}
            products = {f: hyper[number] if f == 1.0 else hyper[number] * f for f in dict.fromkeys(each.values())}
            numbers[number] = {k: products[f] for k, f in each.items()}
        written, new = member.run(values, numbers, memory)
        return written["params"], new if member.remembers else {}

    return _wrapper(name, call, partial(_init, member), member.hyper, [member], partial(_averages, member))


def _label(key: Which) -> str:
    return key if isinstance(key, str) else key.__name__


def _member(name: str, label: str, s: Any) -> None:
    """Raise ConfigError unless `s` maps params and grads to params."""
    if not isinstance(s, Stage):
        raise ConfigError(f"{name}: {label!r} is a {type(s).__name__}, not a stage such as update.adamw()")
    reads = {*s.reads, *s.optional, *(inspect.signature(s.init).parameters if s.init else ())}
    if s.writes != ("params",) or not reads <= {"params", "grads", "step"}:
        raise ConfigError(
            f"{name}: {label!r} is stage {s.name!r}, which reads {', '.join(sorted(reads))} and writes "
            f"{', '.join(s.writes)}; a group's rule makes params from params and grads"
        )


def _assigned(name: str, keys: Mapping[str, Which], otherwise: bool, params: Params) -> dict[str, list[str]]:
    """Parameter names of each group."""
    assigned: dict[str, list[str]] = {label: [] for label in (*keys, *([OTHERWISE] if otherwise else []))}
    for k, p in params.items():
        labels = [label for label, which in keys.items() if holds(which, k, p)]
        if len(labels) > 1:
            raise ConfigError(
                f"{name}: parameter {k!r} is in two groups, {labels[0]!r} and {labels[1]!r}; leave it out of one "
                f"({labels[0]}, !{k})"
            )
        if not labels and not otherwise:
            raise ConfigError(f"{name}: parameter {k!r} is in no group; name it, or give the rest a rule by otherwise=")
        assigned[labels[0] if labels else OTHERWISE].append(k)
    return assigned


def _depths(name: str, params: Params, layers: list[Which] | None) -> dict[str, int]:
    """Number of layers between each parameter's layer and the outputs."""
    if layers is None:
        layer = {k: (re.match(r".*?\d+(?=\.|$)", k) or re.match(r"(.*)\.|", k))[0] for k in params}  # type: ignore[index]  # the second matches anything
        order = list(dict.fromkeys(layer.values()))
        return {k: len(order) - 1 - order.index(x) for k, x in layer.items()}
    keys: dict[str, Which] = {f"layer {i}": which for i, which in enumerate(layers)}
    assigned = _assigned(name, keys, False, params).values()
    return {k: len(layers) - 1 - i for i, names in enumerate(assigned) for k in names}


def _factor(patterns: Mapping[str, float], name: str, p: torch.Tensor) -> float:
    return next((factor for pattern, factor in patterns.items() if holds(pattern, name, p)), 1.0)


def _pick(tensors: Params, names: list[str]) -> Params:
    return {k: tensors[k] for k in names if k in tensors}


def _init(s: Stage, params: Params) -> Tree:
    """A stage's first memory for these parameters."""
    return {} if s.init is None else s.init(**dict.fromkeys(inspect.signature(s.init).parameters, params))


def _averages(s: Stage, params: Params, memory: Tree) -> Params:
    """The averages of these parameters."""
    averages: Params = s.averaged({"params": params, "memory": {s.name: memory}}, {})["params"]
    return averages


def _wrapper(
    name: str, call: Callable[..., tuple[Params, Tree]], init: Callable[[Params], Tree], hyper: Mapping[str, Number],
    members: Collection[Stage], view: Callable[[Params, Any], Params],
) -> Stage:  # fmt: skip
    """A stage that delegates to members by `call({params, grads, step}, hyper, memory)`."""

    def function(params: Params, grads: Params, step: Any, memory: Any, **hyper: Any) -> tuple[Params, Tree]:
        return call({"params": params, "grads": grads, "step": step}, hyper, memory)

    averages = [s.average for s in members if s.average is not None]
    refresh = any(average.refresh for average in averages)
    return Stage(
        name,
        function,
        writes=("params",),
        init=lambda params: init(params),  # checks the names, even if no member has a memory
        hyper=hyper,
        names={k: k for k in ("params", "grads", "step")},
        draws=any(s.draws for s in members),
        sharded=all(s.sharded for s in members),
        overwrites=all(s.overwrites for s in members),
        freezes=any(s.freezes for s in members) or len({s.overwrites for s in members}) > 1,
        average=Average(lambda params, memory: {"params": view(params, memory)}, refresh) if averages else None,
    )
