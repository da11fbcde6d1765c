"""From a model's outputs to predictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from cli.decision import PLAIN, Decision
from cli.recipes.data_card import About
from cli.recipes.loss import LOG, TARGET_MEAN, TARGET_STD
from pipeline.errors import ConfigError, first_line
from pipeline.sources import Rows

Columns: TypeAlias = dict[str, Any]
"""Predictions of some rows by name: names or numbers (N,), and for .npz probabilities (N, C)."""
Chunks: TypeAlias = Iterator[tuple[Mapping[str, Any], Columns]]
"""Chunks of rows: their own columns, and their predictions."""


class Predictions(nn.Module):
    """Outputs -> probabilities of classes (B, C) or of several labels (B, L), calibrated by the run's temperature;
    values in their own units (B,) or (B, M); of a text, the logits of the next token (B, T, V)."""

    mean: Tensor | None
    std: Tensor | None

    def __init__(self, about: About, decision: Decision = PLAIN) -> None:
        super().__init__()
        self.task, self.log, self.temperature = about.task, about.fitted.get(LOG, False), decision.temperature
        for name, key in (("mean", TARGET_MEAN), ("std", TARGET_STD)):
            value = about.fitted.get(key)
            self.register_buffer(name, None if value is None else torch.tensor(value, dtype=torch.float32))

    def forward(self, outputs: Tensor) -> Tensor:
        if self.task == "classification":
            return (outputs.float() / self.temperature).softmax(1)
        if self.task == "several labels":
            return (outputs.float() / self.temperature).sigmoid()
        if self.task != "regression":
            return outputs
        outputs = outputs.exp() if self.log else outputs
        values = outputs if self.mean is None or self.std is None else outputs * self.std + self.mean
        return values.squeeze(1) if values.ndim == 2 and values.shape[1] == 1 else values


def apply(module: nn.Module, inputs: Any, batch: Mapping[str, Tensor]) -> Any:
    """Call a module on values of a batch, as forward.model does: `inputs` are their names, or argument -> name."""
    if isinstance(inputs, Mapping):
        return module(**{argument: batch[name] for argument, name in inputs.items()})
    return module(*(batch[name] for name in input_names(inputs)))


def input_names(inputs: Any) -> list[str]:
    """Names of the values that a model is called on, in order."""
    return [inputs] if isinstance(inputs, str) else list(inputs.values() if isinstance(inputs, Mapping) else inputs)


def answers(
    chunks: Iterator[Rows], module: nn.Module, inputs: Any, about: About, decision: Decision
) -> Iterator[tuple[Mapping[str, Any], np.ndarray]]:
    """Chunks of rows: their own columns, and what `Predictions` gives for them."""
    head = Predictions(about, decision).eval()
    for rows in chunks:
        with torch.inference_mode():
            try:
                values = head(apply(module, inputs, rows.batch)).numpy()
            except (RuntimeError, IndexError, TypeError, ValueError, KeyError) as e:
                raise ConfigError(f"the model can't take these data: {first_line(e)}") from e
        yield rows.beside, values


def predicted(
    each: Sequence[Iterator[tuple[Mapping[str, Any], np.ndarray]]], about: About, decision: Decision
) -> Chunks:
    """The mean answers of some models to the same rows."""
    for parts in zip(*each, strict=True):
        values = [values for _, values in parts]
        if any(v.shape != values[0].shape for v in values):
            raise ConfigError(
                "the runs predict other classes, or leave out other rows, than the first; predict with each alone"
            )
        yield parts[0][0], named(about, np.mean(values, 0, dtype=values[0].dtype), decision)


def named(about: About, values: np.ndarray, decision: Decision = PLAIN) -> Columns:
    """Predictions as named columns; `probability` is the predicted class's."""
    if about.task != "classification" and values.ndim == 1:
        return {"prediction": values}
    names = about.classes or [str(i) for i in range(values.shape[1])]
    if about.task == "classification":
        best = values.argmax(1) if decision.threshold is None else (values[:, 1] >= decision.threshold).astype(int)
        sure = np.take_along_axis(values, best[:, None], 1)[:, 0]
        return {"prediction": np.array(names)[best], "probability": sure, "probabilities": values}
    if about.task == "several labels":
        labels = {f"prediction_{n}": values[:, i] > 0.5 for i, n in enumerate(names)}
        return {**labels, **{f"probability_{n}": values[:, i] for i, n in enumerate(names)}}
    return {f"prediction_{n}": values[:, i] for i, n in enumerate(names)}
