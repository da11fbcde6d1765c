"""Answers: from what a model gives to what a user asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cli.recipes.data_card import About
from cli.recipes.loss import TARGET_MEAN, TARGET_STD


class Answers(nn.Module):
    """Outputs of a model -> probabilities of classes (B, C) or of several labels (B, L); values in their own units (B,)
    or (B, M); or of a text, the logits of the next token (B, T, V)."""

    mean: Tensor | None
    std: Tensor | None

    def __init__(self, about: About) -> None:
        super().__init__()
        self.task = about.task
        for name, key in (("mean", TARGET_MEAN), ("std", TARGET_STD)):
            found = about.fitted.get(key)
            self.register_buffer(name, None if found is None else torch.tensor(found, dtype=torch.float32))

    def forward(self, outputs: Tensor) -> Tensor:
        if self.task == "classification":
            return outputs.float().softmax(1)
        if self.task == "several labels":
            return outputs.float().sigmoid()
        if self.task != "regression":
            return outputs
        values = outputs if self.mean is None or self.std is None else outputs * self.std + self.mean
        return values.squeeze(1) if values.ndim == 2 and values.shape[1] == 1 else values


def called(module: nn.Module, inputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """The outputs of a module that is called on some values of a batch, as forward.model has it."""
    if isinstance(inputs, Mapping):
        outputs: Tensor = module(**{argument: batch[name] for argument, name in inputs.items()})
    else:
        outputs = module(*(batch[name] for name in values_read(inputs)))
    return outputs


def values_read(inputs: Any) -> list[str]:
    """The names of the values that a model is called on, in order."""
    return [inputs] if isinstance(inputs, str) else list(inputs.values() if isinstance(inputs, Mapping) else inputs)
