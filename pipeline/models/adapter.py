"""Adapters on disk, in the format of the peft library: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from pipeline import files
from pipeline.errors import ConfigError
from pipeline.models.huggingface import Logits
from pipeline.models.lora import Adapted, adapted
from pipeline.module.weights import Weights, changed, read
from pipeline.text import some

CONFIG, TENSORS, _PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
_PLAIN = {"peft_type": "LORA", "bias": "none", "use_dora": False, "use_rslora": False, "lora_bias": False,
          "rank_pattern": {}, "alpha_pattern": {}}  # fmt: skip
"""Settings of peft that other values of would be another formula."""


def write_adapter(module: nn.Module, folder: str | Path, *, base: str | None = None) -> None:
    """Write the adapters of a module of `lora`, and what is trained in full; `base` names what they were trained on."""
    from safetensors.torch import save

    inner = _inner(module)
    layers = {name: m for name, m in inner.named_modules() if isinstance(m, Adapted)}
    if not layers or "" in layers:
        raise ConfigError("write_adapter() takes a module with adapted layers inside, as models.lora() makes it")
    inside = {id(p) for m in layers.values() for p in m.parameters()}
    full = {
        name: m for name, m in inner.named_modules()
        if any(p.requires_grad and id(p) not in inside for p in m.parameters(recurse=False))
    }  # fmt: skip
    tensors = {f"{name}.{k}": t for name, m in full.items() for k, t in m.state_dict().items()}
    tensors |= {f"{name}.{_key(m, part)}": getattr(m, f"lora_{part}") for name, m in layers.items() for part in "AB"}
    first = next(iter(layers.values()))
    config = {
        **_PLAIN, "r": len(first.lora_A), "lora_alpha": first.scale * len(first.lora_A),
        "lora_dropout": first.dropout.p, "target_modules": [*layers], "modules_to_save": [*full] or None,
        "fan_in_fan_out": any(m.transposed and not m.looks_up for m in layers.values()), "inference_mode": True,
        "task_type": None, "base_model_name_or_path": base,
    }  # fmt: skip
    try:
        path = files.folder(Path(folder))
        content = {_PREFIX + name: t.detach().contiguous() for name, t in tensors.items()}
        files.replace(path / TENSORS, save(content, {"format": "pt"}))
        files.replace(path / CONFIG, json.dumps(config, indent=2).encode())
    except OSError as e:
        raise ConfigError(f"can't write {folder}: {e.strerror or e}") from None


def read_adapter(module: Any, folder: str | Path) -> Any:
    """A copy of a module with the adapters of a folder, as `lora` makes it; or, of a function that makes one, a
    function that makes it with them. Raises ConfigError if they do not fit it, or go by another formula than LoRA's.
    """
    config, found = _config(Path(folder)), read(Path(folder) / TENSORS)
    tensors = {_own(name.removeprefix(_PREFIX)): t for name, t in found.items()}
    names = [name.removesuffix(".lora_A") for name in tensors if name.endswith(".lora_A")]
    full = {name.rpartition(".")[0] for name in tensors if not name.endswith((".lora_A", ".lora_B"))}

    def change(module: nn.Module) -> nn.Module:
        inner = _inner(module)
        every = dict(inner.named_modules(remove_duplicate=False))
        if unknown := [name for name in (*names, *full) if name not in every]:
            raise ConfigError(f"{folder} is of another model: this one has no {some(unknown)}")
        new = adapted(
            inner, {name: every[name] for name in names}, [every[name] for name in full],
            config["r"], config["lora_alpha"], config.get("lora_dropout", 0.0),
        )  # fmt: skip
        fit = Weights(tensors, strict=False).into(new)
        if fit.differ or fit.unexpected:
            raise ConfigError(
                f"{folder} is of another model: {some((*fit.differ, *fit.unexpected))} do not fit this one"
            )
        return module

    return changed(module, change)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = files.parsed(path)
        other = [name for name, plain in _PLAIN.items() if (config.get(name) or plain) != plain]
        if other:
            raise ValueError(f"{other[0]} is {config[other[0]]!r}, but only {_PLAIN[other[0]]!r} is known")
        return {**config, "r": int(config["r"]), "lora_alpha": float(config["lora_alpha"])}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as e:
        raise ConfigError(f"can't read {path}: {getattr(e, 'strerror', None) or e}") from None


def _inner(module: nn.Module) -> nn.Module:
    """The module by whose names the format goes."""
    return module.model if isinstance(module, Logits) else module


def _key(m: Adapted, part: str) -> str:
    return f"lora_embedding_{part}" if m.looks_up else f"lora_{part}.weight"


def _own(name: str) -> str:
    for part in "AB":
        name = name.replace(f".lora_embedding_{part}", f".lora_{part}").replace(f".lora_{part}.weight", f".lora_{part}")
    return name
