"""Diagnose: find the first non-finite number of a step, by running it again, uncompiled, with a look at each stage.

A step is a pure function of State and batch, so a failure of a compiled step can be reproduced.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from torch import Tensor

from pipeline.backward import Gradients
from pipeline.mesh import Shard
from pipeline.programs.program import Program
from pipeline.stage import Part, Stage
from pipeline.state import State
from pipeline.tree import named


def first_nonfinite(program: Program, state: State, shard: Shard) -> str | None:
    """The first tensor of a step with NaN or infinity, in words: of the batch, of State, or of a stage's outputs.

    None if all are finite, as after another order of rounding.

    >>> import torch
    >>> from pipeline import Pipeline, forward, loss, models, backward, update
    >>> model = forward.model(lambda: models.mlp(2, 2))
    >>> pipe = Pipeline(model, loss.cross_entropy(), backward.gradients(), update.sgd(0.1))
    >>> batch = {"inputs": torch.tensor([[1.0, float("nan")]]), "targets": torch.tensor([0])}
    >>> first_nonfinite(pipe.program, pipe.init(0), Shard(batch))
    "the batch's 'inputs' has NaN"
    """
    placed = Shard(program.pipe.place.batch(shard.values), shard.rows)
    found = [*_bad("the batch's", placed.values)]
    for name, kept in state.tree.items():
        found += _bad(f"State's {name}", kept if isinstance(kept, Mapping) else {name: kept})
    program.of(_watched(program, found)).train(dict(state.tree), placed)
    return next((words for certain, words in found if certain), found[0][1] if found else None)


Fault: TypeAlias = tuple[bool, str]
"""Whether it is certain (minus infinity may be meant: it masks attention), and its words."""


def _watched(program: Program, found: list[Fault]) -> list[Part]:
    """The stages, each followed by one that looks at its outputs and notes faults."""

    def behind(s: Stage) -> Stage:
        def look(**written: Any) -> None:
            if isinstance(s, Gradients):
                found.extend(_bad("the gradient of", written[s.grads]))
            else:
                found.extend(_bad(f"stage {s.name!r} made", written))

        return Stage(f"behind {s.name}", look, names={name: name for name in s.values_written}, when=s.when)

    pipe = program.pipe
    return [
        t for s in pipe.stages
        for t in ((s, behind(s)) if isinstance(s, Stage) and s in pipe.graph and s.values_written else (s,))
    ]  # fmt: skip


def _bad(whose: str, values: Any) -> Iterator[Fault]:
    for name, value in named(values).items():
        if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
            certain = bool((value.isnan() | value.isposinf()).any())
            yield certain, f"{whose} {name!r} has {'NaN' if value.isnan().any() else 'infinity'}"
