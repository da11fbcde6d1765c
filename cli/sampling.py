"""Text from a language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from cli.build import Job
from cli.recipes.setting import refusal
from cli.saved_run import Past
from pipeline import State, models, sources
from pipeline.sources.chat import end_of_answer

SHOWN, PROMPT = 200, 16
"""Tokens sampled after a training, and tokens of held-out text before them."""
TEMPERATURE = 0.8


def sample(
    past: Past, prompt: str, *, weights: str, count: int, temperature: float, top_k: int | None, seed: int
) -> str:
    """A prompt, continued by the model of a run."""
    about = past.about
    if about.task != "language modelling":
        raise refusal(f"{past.folder} learned {about.task}, not a text")
    module, _, _ = past.module(weights)
    ids = sources.encode(about.fitted, prompt)
    if not ids:
        raise refusal("the prompt is empty; give at least one character")
    return continued(module, about.fitted, ids, count, temperature=temperature, top_k=top_k, seed=seed)


def continued(module: nn.Module, fitted: Mapping[str, Any], ids: list[int], count: int, **options: Any) -> str:
    """Tokens, and up to `count` after them: an answer ends at the token that ends answers."""
    options |= {"context": fitted["context"], "vocabulary": fitted["vocabulary"]}
    [tokens] = models.generate(module, torch.tensor([ids]), count, **options)
    new, end = tokens[len(ids) :].tolist(), end_of_answer(fitted)
    return sources.decode(fitted, ids + new[: new.index(end) if end in new else count])


def sample_held_out(job: Job, state: State) -> str | None:
    """A continuation of the first held-out tokens; None if tokens are no text."""
    assert job.prepared is not None
    fitted = job.prepared.fitted
    if fitted.get("tokenizer") is None:
        return None
    batch = job.prepared.held_out[torch.tensor([0])]
    learned = batch["targets"][0] >= 0
    count = PROMPT if learned.all() else int(learned.nonzero()[0]) + 1  # a question, without its answer
    ids = batch["inputs"][0, :count].tolist()
    return continued(job.pipe.module(state).cpu(), fitted, ids, SHOWN, temperature=TEMPERATURE)
