"""The data of a run, and the sizes that they give a model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from attrs import field, fields, frozen

from cli.config import TrainConfig
from cli.progress import warn
from cli.recipes.data import kind_of
from cli.recipes.model import Fixed
from cli.recipes.setting import given, refusal
from cli.recipes.task import CLASSES, TOKENS
from pipeline.errors import DataError
from pipeline.sources import Prepared, Source, Split, Tensors
from pipeline.state import Batch
from pipeline.tree import named


@frozen
class _Noting(Split):
    """A split that notes whether the data hold samples out already."""

    noted: list[bool] = field(factory=list)

    def check(self, held: bool) -> None:
        self.noted.append(held)
        super().check(held)


def prepared(config: TrainConfig) -> Prepared:
    """The data of a run, split. Raises ConfigError for settings of the split that somebody wrote and that have no
    effect. Warns if the data of a run that is trained again have changed."""
    run, data = config.run, config.data
    if run.fold is not None and run.fold >= (run.folds or 0) and config.wrote("run.fold"):
        raise refusal(f"{given('fold', run.fold)} needs --folds {run.fold + 1} or more, as folds count from 0")
    split = _Noting(data.held_out, run.splits_by, run.folds, run.fold or 0)
    found = data.prepare(split)
    share = fields(type(data)).held_out.default
    other = "with --test" if getattr(data, "test", None) else f"as {data.source} holds some out already"
    if data.held_out != share and config.wrote("data.held_out") and (run.folds is not None or any(split.noted)):
        raise refusal(f"--held-out has no effect {other if any(split.noted) else 'with --folds'}; leave it out")
    drawn = kind_of(data.source) in ("random", "custom")  # by the seed of the split
    if any(split.noted) and not drawn and "run.split_seed" in config.given and config.wrote("run.split_seed"):
        raise refusal(f"{given('split_seed', run.split_seed)} has no effect {other}; leave it out")
    if config.digest is not None and config.digest != digest(tensors(found.train), tensors(found.held_out)):
        warn(f"{data.source}: the data have changed since the run was made, so this is not the same run")
    return found


def fixed(source: str, data: Prepared) -> Fixed:
    """A model's sizes, determined by the data."""
    batch = first_samples(data.train)
    inputs, targets = batch["inputs"], batch["targets"]
    if data.task in (CLASSES, TOKENS):
        outputs = len(data.classes) or data.sizes.get("vocabulary") or _count_ids(data)
    else:
        outputs = targets[0].numel()
    if data.task == TOKENS:
        outputs = max(outputs, data.sizes.get("vocabulary", 0))
    return Fixed(
        source, tuple(inputs.shape[1:]), inputs.is_floating_point(), outputs, data.task, data.sizes, data.train.names
    )


def first_samples(data: Source) -> Batch:
    return data[torch.arange(min(2, len(data)))]


def _count_ids(data: Prepared) -> int:
    """1 + the largest id of the training and the held-out data."""
    count = 0
    for split in (data.train, data.held_out):
        assert isinstance(split, Tensors)
        for name in ("inputs", "targets") if data.task == TOKENS else ("targets",):
            ids = split.tensors[name]
            if int(ids.min()) < 0:
                raise DataError(f"{name} hold negative ids; token ids begin at 0")
            count = max(count, int(ids.max()) + 1)
    return count


HASHED = 256
"""Samples to hash of data that are not in memory."""


def digest(*groups: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of tensors and their names."""
    sha = hashlib.sha256()
    for tensors in groups:
        for name, t in sorted(tensors.items()):
            sha.update(f"{name} {tuple(t.shape)} {t.dtype}".encode())
            sha.update(t.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def tensors(data: Any) -> dict[str, torch.Tensor]:
    """Tensors of some data to hash; none of an iterable."""
    if isinstance(data, Tensors):
        return dict(data.tensors)
    if not isinstance(data, Source):
        return {}
    at = torch.linspace(0, len(data) - 1, min(HASHED, len(data)), dtype=torch.float64).long()
    samples = named(data[at])
    return {"length": torch.tensor(len(data)), **{k: v for k, v in samples.items() if isinstance(v, torch.Tensor)}}
