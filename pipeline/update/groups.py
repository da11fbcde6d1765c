"""Groups: other rules, or the same with other numbers, for other parameters. Their members are stages as they are."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import torch

from pipeline.errors import ConfigError
from pipeline.stage import Number, Stage
from pipeline.tree import Tree, tree_map
from pipeline.update.rule import Params, Update, positive
from pipeline.update.select import Which, holds

OTHERWISE = "otherwise"


def groups(members: Mapping[Which, Stage], *, otherwise: Stage | None = None, name: str = "update.groups") -> Stage:
    """Each parameter changed by the rule of its group: `groups({"head.*": adamw(1e-2)}, otherwise=adamw(1e-3))`.

    A key is a pattern of names ("head.*, !*.bias": commas between, and ! before what is left out) or a predicate of
    (name, tensor); `otherwise` has what is in none. State names a group's hyperparameters "update.groups.head.*.lr",
    with its pattern, or its predicate's name; each can be changed between steps. Members are any stages that make
    params of params and grads, such as `frozen()`, other groups, or one of your own.

    Raises ConfigError, when the first State is made, for a parameter in two groups or, without `otherwise`, in none,
    and for a pattern of no parameter; a predicate may hold none.

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
            own = {**values, "params": _part(values["params"], names), "grads": _part(values["grads"], names)}
            written, kept = s.run(own, {h: hyper[f"{label}.{h}"] for h in s.hyper}, memory.get(label))
            changed |= written["params"]
            if s.remembers:
                after[label] = kept
        return {k: changed[k] for k in values["params"]}, after

    def init(params: Params) -> Tree:
        found = _assigned(name, keys, OTHERWISE in stages, params)
        for label, names in found.items():
            if not names and isinstance(keys.get(label), str):
                raise ConfigError(f"{name}: the group {label!r} holds none of the parameters {_some(params)}")
        return {k: _first(stages[k], _part(params, names)) for k, names in found.items() if stages[k].remembers}

    def view(params: Params, memory: Any) -> Params:
        seen = dict(params)
        for label, names in _assigned(name, keys, OTHERWISE in stages, params).items():
            if stages[label].view is not None:
                seen |= _seen(stages[label], _part(params, names), memory[label])
        return seen

    return _around(name, call, init, hyper, stages.values(), view)


def frozen() -> Stage:
    """Parameters stay as they are: a member of groups. Their gradients are still taken, and clip_norm counts them."""
    return Stage("update.frozen", lambda params: params, writes=("params",), sharded=True)


def thawed(member: Stage, at: Number) -> Stage:
    """Parameters stay as they are up to step `at`, and change by `member` from there on, which begins anew there.

    >>> from pipeline import update
    >>> groups({"encoder.*": thawed(update.adamw(1e-4), at=1000)}, otherwise=update.adamw()).hyper["encoder.*.at"]
    1000
    """
    _member("update.thawed", "member", member)
    positive("update.thawed", at=at)

    def call(values: dict[str, Any], hyper: Mapping[str, Any], memory: Any) -> tuple[Params, Tree]:
        own = {h: x for h, x in hyper.items() if h != "at"}
        written, kept = member.run(values, own, memory)

        def chosen(before: Tree, after: Tree) -> Tree:
            return tree_map(lambda old, new: torch.where(values["step"] < hyper["at"], old, new), before, after)

        return chosen(values["params"], written["params"]), chosen(memory, kept) if member.remembers else {}

    hyper = {**member.hyper, "at": at}
    first, seen = partial(_first, member), partial(_seen, member)
    return _around(member.name, call, first, hyper, [member], seen)


def layerwise(member: Stage, decay: Number, *, layers: list[Which] | None = None) -> Stage:
    """A rule whose lr is smaller the further a layer is from the outputs: lr * decay**k in the k-th from the last.

    `layers` are patterns, from the inputs to the outputs, that hold each parameter once; without them, a layer is what
    shares a name up to its first number ("encoder.blocks.3"), or up to its last dot, in the module's order. Source:
    Howard and Ruder, Universal language model fine-tuning (2018), section 3.2; Clark et al., ELECTRA (2020).

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
        own = {h: x for h, x in hyper.items() if h != "decay"}
        own["lr"] = {k: rates[depth[k]] for k in values["params"]}
        written, kept = member.run(values, own, memory)
        return written["params"], kept if member.remembers else {}

    def init(params: Params) -> Tree:
        _depths(name, params, layers)
        return _first(member, params)

    hyper = {**member.hyper, "decay": decay}
    return _around(name, call, init, hyper, [member], partial(_seen, member))


def _label(key: Which) -> str:
    return key if isinstance(key, str) else key.__name__


def _member(name: str, label: str, s: Any) -> None:
    """Raise ConfigError for what can't be the rule of a part of the parameters."""
    if not isinstance(s, Stage):
        raise ConfigError(f"{name}: {label!r} is a {type(s).__name__}, not a stage such as update.adamw()")
    reads = {*s.reads, *s.optional, *(inspect.signature(s.init).parameters if s.init else ())}
    if s.writes != ("params",) or not reads <= {"params", "grads", "step"}:
        raise ConfigError(
            f"{name}: {label!r} is stage {s.name!r}, which reads {', '.join(sorted(reads))} and writes "
            f"{', '.join(s.writes)}; a group's rule makes params of params and grads"
        )


def _assigned(name: str, keys: Mapping[str, Which], otherwise: bool, params: Params) -> dict[str, list[str]]:
    """The parameters of each group."""
    found: dict[str, list[str]] = {label: [] for label in (*keys, *([OTHERWISE] if otherwise else []))}
    for k, p in params.items():
        labels = [label for label, which in keys.items() if holds(which, k, p)]
        if len(labels) > 1:
            raise ConfigError(
                f"{name}: parameter {k!r} is in two groups, {labels[0]!r} and {labels[1]!r}; leave it out of one "
                f"({labels[0]}, !{k})"
            )
        if not labels and not otherwise:
            raise ConfigError(f"{name}: parameter {k!r} is in no group; name it, or give the rest a rule by otherwise=")
        found[labels[0] if labels else OTHERWISE].append(k)
    return found


def _depths(name: str, params: Params, layers: list[Which] | None) -> dict[str, int]:
    """How many layers lie between a parameter's and the outputs."""
    if layers is None:
        own = {k: (re.match(r".*?\d+(?=\.|$)", k) or re.match(r"(.*)\.|", k))[0] for k in params}  # type: ignore[index]  # the second matches anything
        order = list(dict.fromkeys(own.values()))
        return {k: len(order) - 1 - order.index(layer) for k, layer in own.items()}
    keys: dict[str, Which] = {f"layer {i}": which for i, which in enumerate(layers)}
    assigned = _assigned(name, keys, False, params).values()
    return {k: len(layers) - 1 - i for i, names in enumerate(assigned) for k in names}


def _part(tensors: Params, names: list[str]) -> Params:
    return {k: tensors[k] for k in names if k in tensors}


def _first(s: Stage, params: Params) -> Tree:
    """A stage's first memory, of a part of the parameters."""
    if s.init is None:
        return {}
    return s.init(**dict.fromkeys(inspect.signature(s.init).parameters, params))


def _seen(s: Stage, params: Params, memory: Tree) -> Params:
    """What an average is seen as, of a part of the parameters."""
    seen: Params = s.averaged({"params": params, "memory": {s.name: memory}}, {})["params"]
    return seen


def _some(params: Params) -> str:
    return ", ".join([*params][:4]) + ", ..." * (len(params) > 4)


def _around(
    name: str, call: Callable[..., tuple[Params, Tree]], init: Callable[[Params], Tree], hyper: Mapping[str, Number],
    members: Collection[Stage], view: Callable[[Params, Any], Params],
) -> Stage:  # fmt: skip
    """A stage that hands what it reads over to others: `call({params, grads, step}, hyper, memory)`."""

    def function(params: Params, grads: Params, step: Any, memory: Any, **hyper: Any) -> tuple[Params, Tree]:
        return call({"params": params, "grads": grads, "step": step}, hyper, memory)

    return Stage(
        name,
        function,
        writes=("params",),
        init=lambda params: init(params),  # also where none remembers: it looks at the names
        hyper=hyper,
        names={k: k for k in ("params", "grads", "step")},
        draws=any(s.draws for s in members),
        sharded=all(s.sharded for s in members),
        view=(lambda params, memory: {"params": view(params, memory)}) if any(s.view for s in members) else None,
        anew=any(s.anew for s in members),
    )
