"""Models by name: one file and one line each."""

from __future__ import annotations

from cli.recipes.model.base import Fixed, Model
from cli.recipes.model.convnet import ConvNet, ResNet
from cli.recipes.model.custom import Custom
from cli.recipes.model.huggingface import HuggingFace
from cli.recipes.model.mlp import MLP
from cli.recipes.model.recurrent import GRU, LSTM
from cli.recipes.model.transformer import Transformer

MODELS: dict[str, type[Model]] = {
    "mlp": MLP,
    "convnet": ConvNet,
    "resnet": ResNet,
    "transformer": Transformer,
    "lstm": LSTM,
    "gru": GRU,
    "huggingface": HuggingFace,
}

__all__ = ["MODELS", "Custom", "Fixed", "Model"]
