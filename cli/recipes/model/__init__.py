"""Models by name: one file and one line each."""

from __future__ import annotations

from pkgutil import resolve_name

from cli.recipes.model.base import Fixed, Model
from cli.recipes.model.custom import Custom
from cli.recipes.model.huggingface import Pretrained

MODELS: dict[str, type[Model]] = {
    name: resolve_name(f"cli.recipes.model.{home}")
    for name, home in {
        "mlp": "mlp:MLP",
        "table": "table:Table",
        "realmlp": "realmlp:RealMLP",
        "tabm": "tabm:TabM",
        "convnet": "convnet:ConvNet",
        "resnet": "convnet:ResNet",
        "transformer": "transformer:Transformer",
        "lstm": "recurrent:LSTM",
        "gru": "recurrent:GRU",
        "huggingface": "huggingface:HuggingFace",
    }.items()
}

__all__ = ["MODELS", "Custom", "Fixed", "Model", "Pretrained"]
