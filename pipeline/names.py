"""Names: each stage and each value in State has one name, and calls of a model share the names of its State."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from pipeline import update
from pipeline.element import GIVEN, Element
from pipeline.errors import WiringError, did_you_mean
from pipeline.forward import Model
from pipeline.load import Load
from pipeline.place import Place
from pipeline.sources import Source
from pipeline.stage import Stage

LASTS = ("memory", "hyper", "step", "seed")
"""Names in State besides the values of stages."""


def check_names(stages: Sequence[Element]) -> None:
    if not stages:
        raise WiringError("a Pipeline needs at least one stage")
    for s in stages:
        if not isinstance(s, Element):
            raise WiringError(f"a Pipeline is made of stages, not {type(s).__name__}{_instead(s)}")
    names = [s.name for s in stages]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        which = ", and two ".join(repr(name) for name in twice)
        instead = ", ".join(f".named({name + '.2'!r})" for name in twice)
        raise WiringError(f"two stages are named {which}; give one another name: {instead}")
    for kind, cls in (("load", Load), ("place", Place)):
        found = [s.name for s in stages if isinstance(s, cls)]
        if len(found) > 1:
            raise WiringError(f"a Pipeline has one {kind} stage, not {len(found)}: {', '.join(found)}")
    owners: dict[str, str] = {}
    for s in stages:
        for k in s.keeps:
            if k in owners or k in LASTS or k in GIVEN:
                raise WiringError(
                    f"stages {owners.get(k, 'State')!r} and {s.name!r} both keep {k!r}; give one other names "
                    "(params=...), or call one module twice by first.again(inputs=..., outputs=...)"
                )
            owners[k] = s.name
    _check_calls(stages)


def _check_calls(stages: Sequence[Element]) -> None:
    """Raise WiringError if a call of a model reads the parameters of another one, or an average is not of a model's
    parameters."""
    kept = {name: s for s in stages for name in s.keeps}

    def source(name: str) -> Element | None:
        """The stage that keeps a value, behind any averages of it."""
        owner = kept.get(name)
        for _ in stages:
            owner = kept.get(owner.average_of) if isinstance(owner, Stage) and owner.average else owner
        return owner

    for s in stages:
        if isinstance(s, Stage) and s.average and not isinstance(source(s.average_of), Model):
            near = did_you_mean(
                s.average_of, [t.params for t in stages if isinstance(t, Model) and t.create is not None]
            )
            why = f"averages {s.average_of!r}, which is not the params= of a model here{near}"
            raise WiringError(f"stage {s.name!r} {why}")
        if not isinstance(s, Model) or s.create is not None:
            continue
        owner = source(s.params)
        if isinstance(owner, Model) and owner.module is s.module:
            continue
        if owner is None and s.params != s.own:
            raise WiringError(
                f"stage {s.name!r} calls a model with {s.params!r}, which no stage keeps"
                f"{did_you_mean(s.params, kept)}; put update.ema(of={s.own!r}, writes={s.params!r}) after the update"
            )
        if isinstance(owner, Model) or owner is None or s.buffers not in kept:
            why = f"calls a model again that does not keep {s.params!r} here"
            raise WiringError(f"stage {s.name!r} {why}; make it with .again() of the one that does")


def _instead(thing: Any) -> str:
    """What to write instead of an object that is no stage."""
    name = type(thing).__name__
    if isinstance(thing, nn.modules.loss._Loss):
        return f": write loss.function(nn.{name}())"
    if isinstance(thing, nn.Module):
        return ": write forward.model(...) around it"
    if isinstance(thing, torch.optim.Optimizer) and hasattr(update, name.lower()):
        return f": write update.{name.lower()}(...), which takes no parameters"
    if isinstance(thing, type) and issubclass(thing, nn.Module):
        return f": write {thing.__name__}() in forward.model(...) or loss.function(...)"
    if isinstance(thing, Source | Mapping):
        return ": write load.batches(..., size=...) around it"
    if isinstance(thing, torch.utils.data.DataLoader):
        return ": write load.loader(...) around it"
    if isinstance(thing, list | tuple):
        return ": pass them one by one, Pipeline(*stages)"
    home, called = str(getattr(thing, "__module__", "")), getattr(thing, "__qualname__", "")
    if home.startswith("pipeline.") and called:
        return f": call it, {home.split('.')[1]}.{called}(...)"
    return ": make one with @stage" if callable(thing) or isinstance(thing, torch.optim.Optimizer) else ""
