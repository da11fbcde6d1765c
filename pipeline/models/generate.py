"""Generate tokens by a language model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError


def generate(
    module: nn.Module, tokens: Tensor, count: int, *, context: int, temperature: float = 1.0, top_k: int | None = None,
    seed: int = 0, vocabulary: int | None = None,
) -> Tensor:  # fmt: skip
    """Token ids (B, T) int64 -> (B, T + count), with `count` new ones, the same for the same seed.

    The module maps the last `context` ids, (B, up to context), to logits (B, ..., vocabulary). A token is drawn from
    the softmax of logits / temperature over the `top_k` largest; at temperature 0, it is the largest. Ids from
    `vocabulary` on, of which a model may have more than its tokenizer, are never drawn.

    >>> from pipeline import models
    >>> model = models.transformer(50, context=8, width=16, heads=2, depth=1)
    >>> generate(model, torch.zeros(1, 3, dtype=torch.long), 5, context=8).shape
    torch.Size([1, 8])
    """
    if temperature < 0 or (top_k is not None and top_k < 1):
        raise ConfigError(f"generate: temperature={temperature} is at least 0, and top_k={top_k} at least 1")
    generator = torch.Generator(tokens.device).manual_seed(seed)
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            for _ in range(count):
                logits = module(tokens[:, -context:])[:, -1, :vocabulary].float()
                if top_k is not None:
                    least = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
                    logits = logits.masked_fill(logits < least, -torch.inf)
                if temperature == 0:
                    new = logits.argmax(-1, keepdim=True)
                else:
                    new = (logits / temperature).softmax(-1).multinomial(1, generator=generator)
                tokens = torch.cat([tokens, new], 1)
    finally:
        module.train(training)
    return tokens
