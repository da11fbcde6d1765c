"""From a model's outputs to predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from cli.decision import PLAIN, Decision
from cli.recipes.data_card import About
from cli.recipes.loss import LOG, TARGET_MEAN, TARGET_STD
from pipeline.errors import ConfigError, first_line
from pipeline.loss.joint import mean_outputs
from pipeline.sources import Rows

Columns: TypeAlias = dict[str, Any]
"""Predictions of some rows by name: names or numbers (N,), and for .npz probabilities (N, C)."""
Chunks: TypeAlias = Iterator[tuple[Mapping[str, Any], Columns]]
"""Chunks of rows: their own columns, and their predictions."""
Answers: TypeAlias = Iterator[tuple[Rows, Tensor]]
"""Chunks of rows, and what a model gives for them."""


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


def answers(chunks: Iterator[Rows], module: nn.Module, inputs: Any, head: Callable[[Tensor], Tensor]) -> Answers:
    """Chunks of rows, and what a function such as `Predictions` gives for a model's outputs for them."""
    for rows in chunks:
        with torch.inference_mode():
            try:
                values = head(apply(module, inputs, rows.batch))
            except (RuntimeError, IndexError, TypeError, ValueError, KeyError) as e:
                raise ConfigError(f"the model can't take these data: {first_line(e)}") from e
        yield rows, values


def together(each: Sequence[Answers], join: Callable[[Tensor], Tensor]) -> Answers:
    """The joined answers of some models to the same rows. Raises ConfigError if some leave out other rows."""
    for parts in zip(*each, strict=True):
        rows = parts[0][0]
        if differ := {row for other, _ in parts for row in {*other.skipped} ^ {*rows.skipped}}:
            raise ConfigError(
                f"{rows.unit} {min(differ)} can be read by some of the runs alone, so they have no mean; correct it, "
                "or take each run alone"
            )
        yield rows, join(torch.stack([values for _, values in parts]))


def predicted(each: Sequence[Answers], about: About, decision: Decision, *, numbered: bool = False) -> Chunks:
    """The mean predictions of some models for the same rows; `numbered` by `Rows.numbers`, if there are any."""
    for rows, values in together(each, mean_outputs):
        columns = named(about, values.numpy(), decision)
        if numbered and rows.numbers is not None:
            columns[rows.unit] = np.asarray(rows.numbers, np.int64)
        yield rows.beside, columns


def in_units(outputs: Tensor, about: About, decision: Decision, like: About) -> Tensor:
    """Calibrated outputs of a run, in the units of another run's outputs, whose targets may be scaled otherwise."""
    if about.task != "regression":
        return outputs / decision.temperature
    if TARGET_MEAN not in about.fitted:
        return outputs
    (mean, std), (mean_like, std_like) = (
        [outputs.new_tensor(of.fitted[key], dtype=torch.float64) for key in (TARGET_MEAN, TARGET_STD)]
        for of in (about, like)
    )
    if about.fitted.get(LOG, False):
        return (outputs + (std / std_like).log()).to(outputs.dtype)
    return ((outputs * std + (mean - mean_like)) / std_like).to(outputs.dtype)


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
