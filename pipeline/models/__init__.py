"""Plain nn.Modules to start from. Nothing in the library needs them: any module trains."""

from pipeline.models.adapter import read_adapter, write_adapter
from pipeline.models.convnet import convnet
from pipeline.models.generate import generate
from pipeline.models.huggingface import from_config
from pipeline.models.lora import lora, merged
from pipeline.models.mlp import mlp
from pipeline.models.realmlp import realmlp
from pipeline.models.recurrent import recurrent
from pipeline.models.resnet import resnet
from pipeline.models.table import table
from pipeline.models.tabm import tabm
from pipeline.models.transformer import transformer
from pipeline.module import Weights, loaded

__all__ = [
    "Weights",
    "convnet",
    "from_config",
    "generate",
    "loaded",
    "lora",
    "merged",
    "mlp",
    "read_adapter",
    "realmlp",
    "recurrent",
    "resnet",
    "table",
    "tabm",
    "transformer",
    "write_adapter",
]
