"""Export a model of the transformers library as a folder of it, with its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from cli import folder as folders
from cli.recipes.model import Pretrained
from cli.recipes.model.huggingface import TOKENIZER
from cli.recipes.setting import refusal
from cli.saved_run import Past
from pipeline import files, models
from pipeline.errors import ConfigError, first_line
from pipeline.models.huggingface import Logits

BESIDE = (
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
"""Files of a folder that go with a model."""
TOKENS, TOLERANCE = 16, 1e-5
"""Tokens to compare models on, and the largest relative error of the logits."""


def write(past: Past, module: nn.Module, path: Path) -> float:
    """Write the model, its config and its tokenizer; returns the relative error of what from_pretrained gives."""
    about, chosen = past.about, past.config.model
    if not isinstance(module, Logits):
        raise refusal("--format transformers is for a run of a model of that library; take --format weights")
    if isinstance(chosen, Pretrained) and path.resolve() == Path(chosen.name).resolve():
        raise refusal(f"{path} is the folder that the run began from; choose another --out")
    module = models.merged(module)
    inner: Any = module.model
    config = inner.config
    if about.task == "classification":
        config.id2label = dict(enumerate(about.classes or map(str, range(about.fixed.outputs))))
        config.label2id = {name: i for i, name in config.id2label.items()}
    else:
        config.use_cache = True
    head = inner.get_output_embeddings()
    if head is not None and head.weight is not inner.get_input_embeddings().weight:
        config.tie_word_embeddings = False  # an adapter may have parted them
    tokenizer = about.fitted.get("tokenizer")
    beside = [Path(chosen.name, name) for name in BESIDE] if isinstance(chosen, Pretrained) else []
    try:
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers' own
        files.folder(path)
        inner.save_pretrained(path)
        for file in filter(Path.is_file, beside):
            folders.replace(path / file.name, files.read(file))
        if tokenizer and Path(tokenizer).is_file():
            folders.replace(path / TOKENIZER, files.read(Path(tokenizer)))
        again = type(inner).from_pretrained(path, local_files_only=True, dtype="float32").eval()
    except Exception as e:  # the library raises many types of errors
        raise ConfigError(f"can't write {path}: {first_line(e)}") from None
    ids = torch.randint(int(config.vocab_size), (2, min(TOKENS, about.fixed.inputs[0])))
    with torch.no_grad():
        expected, found = module(ids), again(ids).logits
    error = float((found - expected).abs().max() / expected.abs().max().clamp(min=1))
    if not error <= TOLERANCE:
        raise ConfigError(f"{path} is off by {error:.1e} when transformers reads it; take --format weights")
    return error
