"""Plain nn.Modules to start from. Nothing in the library needs them: any module trains."""

from pipeline.models.convnet import ConvNet, convnet
from pipeline.models.generate import generate
from pipeline.models.huggingface import from_config
from pipeline.models.mlp import mlp
from pipeline.models.recurrent import Recurrent, recurrent
from pipeline.models.resnet import ResNet, resnet
from pipeline.models.table import Table, table
from pipeline.models.transformer import Transformer, transformer

__all__ = [
    "ConvNet",
    "Recurrent",
    "ResNet",
    "Table",
    "Transformer",
    "convnet",
    "from_config",
    "generate",
    "mlp",
    "recurrent",
    "resnet",
    "table",
    "transformer",
]
