"""Models of the transformers library, from a config: random weights, nothing downloaded, no code but the library's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pipeline.errors import ConfigError, did_you_mean
from pipeline.stage import first_line


class Logits(nn.Module):
    """A model of the library as a function of its one input to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(inputs).logits
        return logits


def from_config(config: Mapping[str, Any], task: str, *, classes: int, vocabulary: int | None = None) -> Logits:
    """A model by its config, as a dict with `model_type`: a causal language model for task "language modelling", else
    a classifier of token ids, where there is a `vocabulary`, or of images, with so many `classes`.

    Raises ConfigError where the library is missing, or does not know the model or has none for the task.
    """
    try:
        import transformers
    except ModuleNotFoundError:
        raise ConfigError("models from a config need the transformers library: pip install transformers") from None
    kind = str(config.get("model_type"))
    known = transformers.CONFIG_MAPPING
    if kind not in known:
        raise ConfigError(f"transformers knows no model_type {kind!r}{did_you_mean(kind, list(known.keys()))}")
    auto: Any
    sizes: dict[str, Any] = {} if vocabulary is None else {"vocab_size": vocabulary}
    if task == "language modelling":
        auto, sizes = transformers.AutoModelForCausalLM, {**sizes, "use_cache": False}
    else:
        auto = transformers.AutoModelForImageClassification if vocabulary is None else (
            transformers.AutoModelForSequenceClassification)  # fmt: skip
        sizes = {**sizes, "num_labels": classes}
        if vocabulary is not None and config.get("pad_token_id") is None:
            sizes["pad_token_id"] = 0
    options = {k: v for k, v in config.items() if k not in ("model_type", "auto_map")}
    try:
        return Logits(auto.from_config(transformers.AutoConfig.for_model(kind, **{**options, **sizes})))
    except Exception as e:  # of the library, whatever it is
        raise ConfigError(f"transformers makes no {kind} for {task}: {first_line(e)}") from None
