"""The data of a run, and the sizes that they give a model."""

from __future__ import annotations

import torch

from cli.config import TrainConfig
from cli.recipes.model import Fixed
from cli.recipes.task import CLASSES, TOKENS
from pipeline.errors import DataError
from pipeline.sources import Prepared, Source, Split, Tensors
from pipeline.state import Batch


def prepared(config: TrainConfig) -> Prepared:
    """The data of a run, split."""
    run = config.run
    seed = run.seed if run.split_seed is None else run.split_seed
    return config.data.prepare(Split(config.data.held_out, seed, run.folds, run.fold or 0))


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
