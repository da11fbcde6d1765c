"""`pipe sample`: a text from a run that learned one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cli import config, folder
from cli.build import Job
from cli.recipes.model import Fixed
from cli.recipes.setting import refusal
from pipeline import State, models, sources
from pipeline.errors import ConfigError

SHOWN = 200
"""Tokens at the end of a training, after the first of what was held out."""
BEGUN = 16
TEMPERATURE = 0.8


def run(path: Path, prompt: str, *, count: int, temperature: float, top_k: int | None, seed: int) -> None:
    """Print a prompt, and what the model of a run makes of it."""
    about = data(path)
    if about["fixed"]["task"] != "language modelling":
        raise refusal(f"{path} learned {about['fixed']['task']}, not a text")
    fixed: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in about["fixed"].items()}
    module = config.make(config.read(path / config.CONFIG)).model.make(Fixed(**fixed))[0]()
    from safetensors.torch import load_file

    try:
        module.load_state_dict(load_file(path / folder.WEIGHTS))
    except Exception as e:  # of safetensors and torch, which have several
        raise ConfigError(f"can't read {path / folder.WEIGHTS}: {str(e).splitlines()[0]}") from None
    options = {"temperature": temperature, "top_k": top_k, "seed": seed}
    print(text(module, about["fitted"], prompt, count, **options))


def data(path: Path) -> dict[str, Any]:
    """What a run's folder says of its data."""
    try:
        found: dict[str, Any] = json.loads((path / folder.DATA).read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise refusal(f"can't read {path / folder.DATA}: {getattr(e, 'strerror', None) or e}") from None
    return found


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
    assert made.build is not None
    module = made.build()
    module.load_state_dict(made.pipe.models[0].state_dict(state))
    first = made.prepared.held_out[torch.tensor([0])]["inputs"][0, :BEGUN].tolist()
    return text(module, fitted, sources.decode(fitted, first), SHOWN, temperature=TEMPERATURE)
