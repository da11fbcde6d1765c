"""The held-out samples that a model predicts worst."""

from __future__ import annotations

from base64 import b64encode
from io import BytesIO
from typing import Any

import numpy as np
import torch
from attrs import frozen
from torch import Tensor
from torch.nn import functional as F

from cli.build import Job
from cli.decision import Decision
from cli.predictions import Predictions, apply, named
from cli.recipes.data_card import About
from cli.saved_run import Past

WORST = 24
"""Samples to show."""
BATCH = 1024


@frozen(eq=False)
class Sample:
    """A held-out sample with a large loss."""

    row: int
    loss: float
    image: str | None
    """A data URI, if the inputs are an image."""
    true: str
    predicted: str
    wrong: bool | None
    """Whether its class, or any label, is wrong; None for values."""
    cells: dict[str, Any]
    """Its row in a table's file."""


def worst(past: Past, job: Job, about: About) -> list[Sample]:
    """The held-out samples with the largest loss, the largest first."""
    module, inputs, _ = past.module("best")
    decision = past.decision("best")
    head = Predictions(about, decision).eval()
    losses: list[Tensor] = []
    for begin in range(0, len(job.held_out), BATCH):
        batch = job.held_out[torch.arange(begin, min(begin + BATCH, len(job.held_out)))]
        with torch.no_grad():
            losses.append(_loss(head(apply(module, inputs, batch)), batch["targets"], about))
    loss = torch.cat(losses)
    rows = loss.nan_to_num(torch.inf).argsort(descending=True, stable=True)[:WORST]
    batch = job.held_out[rows]
    with torch.no_grad():
        values = head(apply(module, inputs, batch))
    assert job.prepared is not None
    table = job.prepared.raw().cells if job.prepared.raw is not None else {}
    samples: list[Sample] = []
    for i, row in enumerate(rows.tolist()):
        image, true = _image(batch["inputs"][i]), _true(batch["targets"][i], about)
        predicted, wrong = _predicted(values[i : i + 1], true, about, decision)
        cells = {name: column[row] for name, column in table.items()}
        samples.append(Sample(row, float(loss[row]), image, true, predicted, wrong, cells))
    return samples


def _loss(predictions: Tensor, targets: Tensor, about: About) -> Tensor:
    """Loss of each sample (B,): negative log-likelihood, or the absolute error."""
    if about.task == "classification":
        return -predictions.gather(1, targets[:, None]).squeeze(1).log()
    if about.task == "several labels":
        return F.binary_cross_entropy(predictions, targets, reduction="none").sum(1)
    return (predictions - targets.reshape(predictions.shape)).abs().reshape(len(predictions), -1).mean(1)


def _true(target: Tensor, about: About) -> str:
    if about.task == "classification":
        return about.classes[int(target)] if about.classes else str(int(target))
    if about.task == "several labels":
        return ", ".join(n for n, there in zip(about.classes, target.tolist(), strict=False) if there) or "none"
    return ", ".join(f"{v:.4g}" for v in target.reshape(-1).tolist())


def _predicted(values: Tensor, true: str, about: About, decision: Decision) -> tuple[str, bool | None]:
    """The prediction in words, and whether it is wrong."""
    columns = named(about, values.numpy(), decision)
    if about.task == "classification":
        name = str(columns["prediction"][0])
        return f"{name} ({float(columns['probability'][0]):.1%})", name != true
    if about.task == "several labels":
        labels = [n.removeprefix("prediction_") for n, v in columns.items() if v.dtype == bool and v[0]]
        said = ", ".join(labels) or "none"
        return said, said != true
    return ", ".join(f"{float(v[0]):.4g}" for v in columns.values()), None


def _image(inputs: Tensor) -> str | None:
    """An image (C, H, W) of any range as a data URI; None for other inputs."""
    if inputs.ndim != 3 or inputs.shape[0] not in (1, 3):
        return None
    from matplotlib.image import imsave

    pixels = inputs.float().permute(1, 2, 0).numpy()
    low, high = float(np.nanmin(pixels)), float(np.nanmax(pixels))
    if not 0 <= low <= high <= 1:
        pixels = (pixels - low) / ((high - low) or 1)
    file = BytesIO()
    imsave(file, pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=1, format="png")
    return "data:image/png;base64," + b64encode(file.getvalue()).decode()
