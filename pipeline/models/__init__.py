"""Plain nn.Modules to start from. Nothing in the library needs them: any module trains."""

from pipeline.models.convnet import ConvNet, convnet
from pipeline.models.mlp import mlp
from pipeline.models.transformer import Transformer, transformer

__all__ = ["ConvNet", "Transformer", "convnet", "mlp", "transformer"]
