"""Diagnose: where the first number that is not finite comes from, by doing one step again, uncompiled and watched.

A step is a function of State and batch, so what a compiled step met can be met again, and looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from torch import Tensor

from pipeline.backward import Gradients
from pipeline.compose import Composition
from pipeline.stage import Stage
from pipeline.state import Batch, State
from pipeline.tree import named


def first_nonfinite(pipe: Composition, state: State, batch: Batch) -> str | None:
    """In words, the first tensor of a step that holds NaN or infinity: of the batch, of State, or what a stage made.

    None where all are finite, as after another order of rounding.

    >>> import torch
    >>> from pipeline import Pipeline, forward, loss, models, backward, update
    >>> model = forward.model(lambda: models.mlp(2, 2))
    >>> pipe = Pipeline(model, loss.cross_entropy(), backward.gradients(), update.sgd(0.1))
    >>> batch = {"inputs": torch.tensor([[1.0, float("nan")]]), "targets": torch.tensor([0])}
    >>> first_nonfinite(pipe, pipe.init(0), batch)
    "the batch's 'inputs' has NaN"
    """
    batch = pipe.place.batch(batch)
    found = [*_bad("the batch's", batch)]
    for name, kept in state.tree.items():
        found += _bad(f"State's {name}", kept if isinstance(kept, Mapping) else {name: kept})
    _watched(pipe, found).train(dict(state.tree), batch)
    return next((words for certain, words in found if certain), found[0][1] if found else None)


Fault: TypeAlias = tuple[bool, str]
"""Whether it is one for certain: minus infinity masks attention, and may be what is wanted. And in words."""


def _watched(pipe: Composition, found: list[Fault]) -> Composition:
    """The same pipeline with a stage behind each that looks at what it wrote, while the step is done, and notes
    faults."""

    def behind(s: Stage) -> Stage:
        def look(**written: Any) -> None:
            if isinstance(s, Gradients):
                found.extend(_bad("the gradient of", written[s.grads]))
            else:
                found.extend(_bad(f"stage {s.name!r} made", written))

        return Stage(f"behind {s.name}", look, names={name: name for name in s.values_written}, when=s.when)

    return Composition(
        *[t for s in pipe.stages for t in ((s, behind(s)) if s in pipe.graph and s.values_written else (s,))]
    )


def _bad(whose: str, values: Any) -> Iterator[Fault]:
    for name, value in named(values).items():
        if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
            certain = bool((value.isnan() | value.isposinf()).any())
            yield certain, f"{whose} {name!r} has {'NaN' if value.isnan().any() else 'infinity'}"
