"""Models of the transformers library, from a config: random weights, nothing downloaded, no code but the library's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

from torch import Tensor, nn

from pipeline.errors import ConfigError, did_you_mean, first_line, needs


class Logits(nn.Module):
    """A model of the library as a function from its inputs to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(inputs).logits
        return logits


def from_config(config: Mapping[str, Any], task: str, *, classes: int, vocabulary: int | None = None) -> Logits:
    """A model by its config, a dict with `model_type`: a causal language model for task "language modelling", else a
    classifier with `classes` outputs, of token ids below `vocabulary`, or of images.

    Raises ConfigError without the library, for a model that it does not have for the task, and for a config that names
    a file to fetch or code to run.
    """
    with needs("models from a config need the transformers library", "transformers"):
        import transformers
        from huggingface_hub import constants
    kind = str(config.get("model_type"))
    known = [k for k in transformers.CONFIG_MAPPING.keys() if not k.startswith("timm_")]  # noqa: SIM118 - it is no dict
    for name, value in _leaves(config):
        if name.split(".")[0] not in _INERT and _reaches(name, value):
            instead = "leave it out (attention is 'sdpa' or 'eager')"
            raise ConfigError(f"the config's {name}={value!r} may fetch or run code of others: {instead}")
    if kind not in known:
        raise ConfigError(f"transformers knows no model_type {kind!r}{did_you_mean(kind, known)}")
    auto: Any
    sizes: dict[str, Any] = {} if vocabulary is None else {"vocab_size": vocabulary}
    if task == "language modelling":
        both = kind in transformers.models.auto.modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
        if both and not (config.get("is_decoder") or config.get("is_encoder_decoder")):
            raise ConfigError(f'{kind} sees the tokens it has to predict; write "is_decoder": true in its config')
        auto, sizes = transformers.AutoModelForCausalLM, {**sizes, "use_cache": False}
    else:
        auto = transformers.AutoModelForImageClassification if vocabulary is None else (
            transformers.AutoModelForSequenceClassification)  # fmt: skip
        sizes = {**sizes, "num_labels": classes}
        if vocabulary is not None and config.get("pad_token_id") is None:
            sizes["pad_token_id"] = 0
    sizes["dtype"] = "float32"
    options = {k: v for k, v in _without(config, _NAMES).items() if k != "model_type"}
    try:
        with mock.patch.object(constants, "HF_HUB_OFFLINE", True):
            return Logits(auto.from_config(transformers.AutoConfig.for_model(kind, **{**options, **sizes})))
    except Exception as e:  # the library raises many types of errors
        raise ConfigError(f"transformers makes no {kind} for {task}: {first_line(e)}") from None


_NAMES = ("auto_map", "_name_or_path", "name_or_path")
"""The origin of a config, and its code, both ignored."""
_INERT = ("id2label", "label2id", "task_specific_params", "license", "architectures")
_PLAIN = ("eager", "sdpa", "grouped_mm", "batched_mm")
_FETCH = (
    *("backbone", "use_pretrained_backbone", "pretrained", "quantization_config", "trust_remote_code"),
    *("use_kernels", "allow_all_kernels", "kernel_config", "fusion_config"),
)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a config, by dotted names, without `_NAMES`."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        if key not in _NAMES:
            yield f"{name}{key}", inner
            yield from _leaves(inner, f"{name}{key}.")


def _reaches(name: str, value: Any) -> bool:
    """Whether a setting would make transformers ask the hub, or run other kernels than torch's."""
    if "attn_implementation" in name or "experts_implementation" in name:
        return isinstance(value, str) and value not in _PLAIN
    return bool(value) and (name.rpartition(".")[2] in _FETCH or (isinstance(value, str) and "/" in value))


def _without(value: Any, names: tuple[str, ...]) -> Any:
    if isinstance(value, Mapping):
        return {k: _without(v, names) for k, v in value.items() if k not in names}
    return [_without(v, names) for v in value] if isinstance(value, list) else value
