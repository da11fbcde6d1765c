"""BatchNorm: recompute running statistics for weights that have none, such as an average of weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from attrs import evolve
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline import mesh
from pipeline.forward import Model
from pipeline.mesh import Mesh, Shard
from pipeline.stage import Stage
from pipeline.tree import Tree, tree_map

STATISTICS = {"running_mean": 0, "running_var": 1, "num_batches_tracked": 0}
"""Buffers of a BatchNorm, with their first values."""


def renewed(
    stages: Sequence[Stage], values: Mapping[str, Any], hyper: Mapping[str, Any], memory: Mapping[str, Tree],
    shards: Iterable[Shard], on: Mesh | None = None,
) -> dict[str, Tree]:  # fmt: skip
    """Buffers of State with BatchNorm statistics over just these batches, each with equal weight.

    As torch.optim.swa_utils.update_bn: in train mode, a cumulative mean over batches (momentum=None). BatchNorms in
    eval mode stay as they are. Empty if the models of `stages` have none.
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
    for k, shard in enumerate(shards):
        now = {
            **values,
            **shard.values,
            **new,
            "training": True,
            "step": torch.full_like(values["step"], k),
        }
        with mesh.at(on, shard.rows):
            for stage in needed:
                now |= made.get(stage.name, stage).run(now, hyper.get(stage.name, {}), memory.get(stage.name))[0]
        new = {name: tree_map(Tensor.detach, now[name]) for name in new}
    # Other buffers belong to training.
    return {b: {k: new[b][k] if k in statistics[b] else t for k, t in values[b].items()} for b in new}


def _statistics(s: Model) -> dict[str, int]:
    """Statistics of the BatchNorms that update them in training, with their first values."""
    parts = s.module.skeleton(True).module.named_modules()
    norms = [name for name, p in parts if isinstance(p, _BatchNorm) and p.training and p.running_mean is not None]
    return {f"{name}.{key}".lstrip("."): first for name in norms for key, first in STATISTICS.items()}


def _cumulative(s: Model) -> Model:
    """The same call of a module whose BatchNorms weigh all batches equally."""
    skeleton = s.module.skeleton(True)
    module = skeleton.instance({**dict(skeleton.module.named_parameters()), **dict(skeleton.module.named_buffers())})
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.momentum = None
    return s.calling(evolve(s.module, build=module, train=False))


def _needed(stages: Sequence[Stage], models: Mapping[str, Model]) -> list[Stage]:
    """Stages that calls of these models need, in order."""
    needed: set[str] = set()
    chosen: list[Stage] = []
    for s in reversed(stages):
        if s.name in models or (s.finish is None and needed & set(s.writes)):
            chosen.append(s)
            needed |= {*s.reads, *s.optional}
    return chosen[::-1]
