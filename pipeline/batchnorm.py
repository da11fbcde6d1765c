"""BatchNorm: running statistics made anew over data, for weights that none belong to, such as an average of weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from attrs import evolve
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline import mesh
from pipeline.forward import Model
from pipeline.mesh import ROWS, Mesh
from pipeline.stage import Stage
from pipeline.state import Batch
from pipeline.tree import Tree, tree_map

STATISTICS = {"running_mean": 0, "running_var": 1, "num_batches_tracked": 0}
"""The buffers of a BatchNorm, and what they are before any batch."""


def renewed(
    stages: Sequence[Stage], values: Mapping[str, Any], hyper: Mapping[str, Any], memory: Mapping[str, Tree],
    batches: Iterable[Batch], on: Mesh | None = None,
) -> dict[str, Tree]:  # fmt: skip
    """The buffers of State whose BatchNorms have seen just these batches, in train mode, each with equal weight;
    `on` a mesh, those of the parts of each batch together.

    As torch.optim.swa_utils.update_bn: a cumulative mean over batches, which is what momentum=None means. BatchNorms
    that are in eval mode stay as they are. Empty where the models of `stages` have none.
    """
    models = [s for s in stages if isinstance(s, Model) and s.buffers in s.writes and _statistics(s)]
    if not models:
        return {}
    statistics = {s.buffers: _statistics(s) for s in models}
    new = {
        b: {k: torch.full_like(t, names[k]) if k in names else t for k, t in values[b].items()}
        for b, names in statistics.items()
    }
    made = {s.name: _cumulative(s) for s in models}
    needed = _needed(stages, made)
    for k, batch in enumerate(batches):
        rows = batch.get(ROWS)
        now = {
            **values,
            **{name: value for name, value in batch.items() if name != ROWS},
            **new,
            "training": True,
            "step": torch.full_like(values["step"], k),
        }
        with mesh.at(on, rows):
            for stage in needed:
                now |= made.get(stage.name, stage).run(now, hyper.get(stage.name, {}), memory.get(stage.name))[0]
        new = {name: tree_map(Tensor.detach, now[name]) for name in new}
    # Whatever else the modules wrote belongs to training.
    return {b: {k: new[b][k] if k in statistics[b] else t for k, t in values[b].items()} for b in new}


def _statistics(s: Model) -> dict[str, int]:
    """The buffers of the BatchNorms that keep statistics in training, and what they are before any batch."""
    parts = s.module.skeleton(True).module.named_modules()
    norms = [name for name, p in parts if isinstance(p, _BatchNorm) and p.training and p.running_mean is not None]
    return {f"{name}.{key}".lstrip("."): first for name in norms for key, first in STATISTICS.items()}


def _cumulative(s: Model) -> Model:
    """The same call of a module whose BatchNorms weigh all batches alike."""
    skeleton = s.module.skeleton(True)
    module = skeleton.instance({**dict(skeleton.module.named_parameters()), **dict(skeleton.module.named_buffers())})
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.momentum = None
    return s.calling(evolve(s.module, build=module, train=False))


def _needed(stages: Sequence[Stage], models: Mapping[str, Model]) -> list[Stage]:
    """The stages that calls of these models need, in order."""
    needed: set[str] = set()
    chosen: list[Stage] = []
    for s in reversed(stages):
        if s.name in models or (s.finish is None and needed & set(s.writes)):
            chosen.append(s)
            needed |= {*s.reads, *s.optional}
    return chosen[::-1]
