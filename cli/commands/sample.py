"""`pipe sample`: a text from a run that learned one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from cli.build import Job
from cli.progress import tell
from cli.recipes.setting import refusal
from cli.saved_run import Past
from pipeline import State, models, sources

SHOWN = 200
"""Tokens at the end of a training, after the first of what was held out."""
BEGUN = 16
TEMPERATURE = 0.8


def run(past: Past, prompt: str, *, weights: str, count: int, temperature: float, top_k: int | None, seed: int) -> None:
    """Print a prompt, and what the model of a run makes of it."""
    about = past.about
    if about.task != "language modelling":
        raise refusal(f"{past.folder} learned {about.task}, not a text")
    module, _, _ = past.module(weights)
    options = {"temperature": temperature, "top_k": top_k, "seed": seed}
    tell(text(module, about.fitted, prompt, count, **options))


def text(module: nn.Module, fitted: Mapping[str, Any], prompt: str, count: int, **options: Any) -> str:
    """A prompt and `count` tokens after it."""
    ids = torch.tensor([sources.encode(fitted, prompt)])
    if not ids.numel():
        raise refusal("the prompt is empty; give a word or a sign to begin with")
    made = models.generate(module, ids, count, context=fitted["context"], **options)
    return sources.decode(fitted, made[0].tolist())


def at_the_end(made: Job, state: State) -> str | None:
    """A sample of what was learned, where tokens are a text."""
    assert made.prepared is not None
    fitted = made.prepared.fitted
    if fitted.get("tokenizer") is None:
        return None
    module = made.pipe.module(state).cpu()
    first = made.prepared.held_out[torch.tensor([0])]["inputs"][0, :BEGUN].tolist()
    return text(module, fitted, sources.decode(fitted, first), SHOWN, temperature=TEMPERATURE)
