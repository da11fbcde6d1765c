"""Joint: the parameters of several models as one dict, for a backward and the updates after it.

Names of a single model, and of the model "params", stay; names of other models get the model's name in front:
{"weight": ..., "head.weight": ...}.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import evolve

from pipeline.errors import WiringError
from pipeline.stage import Stage
from pipeline.tree import Tree


def joined(trees: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The tensors of several models as one dict.

    >>> joined({"params": {"weight": 1}, "head": {"weight": 2}})
    {'weight': 1, 'head.weight': 2}
    """
    if len(trees) == 1:
        return dict(*trees.values())
    pairs = [(k if model == "params" else f"{model}.{k}", x) for model, tree in trees.items() for k, x in tree.items()]
    if len(dict(pairs)) < len(pairs):
        twice = next(k for i, (k, _) in enumerate(pairs) if k in dict(pairs[:i]))
        raise WiringError(f"models {', '.join(trees)} both have a parameter {twice!r} here; give one another params=")
    return dict(pairs)


def by_model(tensors: Mapping[str, Any], like: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The inverse of `joined`; `like` has the models with their own names."""
    where = joined({model: {k: (model, k) for k in tree} for model, tree in like.items()})
    own = {where[name]: x for name, x in tensors.items()}
    return {model: {k: x for (m, k), x in own.items() if m == model} for model in like}


def jointly(stage: Stage, models: Sequence[str]) -> Stage:
    """A stage on the parameters of these models in the place of "params"."""
    if tuple(models) == ("params",):
        return stage
    writes = tuple(w for name in stage.writes for w in (models if name == "params" else (name,)))
    if len(models) == 1:
        return evolve(stage, names={**stage.names, "params": models[0]}, writes=writes)
    names = {f"model_{i}": model for i, model in enumerate(models)}

    def around(f: Callable[..., Any], back: Callable[[Any, Mapping[str, Tree]], Any]) -> Callable[..., Any]:
        takes = inspect.signature(f).parameters
        if "params" not in takes:
            return f

        def function(**values: Any) -> Any:
            trees = {model: values.pop(p) for p, model in names.items()}
            return back(f(params=joined(trees), **values), trees)

        own = [inspect.Parameter(p, inspect.Parameter.KEYWORD_ONLY) for p in names]
        others = [p.replace(kind=max(p.kind, p.KEYWORD_ONLY)) for p in takes.values() if p.name != "params"]
        function.__signature__ = inspect.Signature([*own, *others])  # type: ignore[attr-defined]  # inspect reads it
        return function

    def results(made: Any, trees: Mapping[str, Tree]) -> Any:
        if "params" not in stage.writes:
            return made
        values = list(made) if len(stage.writes) > 1 or (stage.remembers and stage.finish is None) else [made]
        at = stage.writes.index("params")
        return (*values[:at], *by_model(values[at], trees).values(), *values[at + 1 :])

    def seen(made: dict[str, Tree], trees: Mapping[str, Tree]) -> dict[str, Tree]:
        return dict(zip(names, by_model(made["params"], trees).values(), strict=True))

    return evolve(
        stage,
        function=around(stage.function, results),
        writes=writes,
        init=stage.init and around(stage.init, lambda made, _: made),
        average=stage.average and evolve(stage.average, view=around(stage.average.view, seen)),
        names={**{k: v for k, v in stage.names.items() if k != "params"}, **names},
    )
