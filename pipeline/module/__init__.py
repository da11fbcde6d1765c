"""Module: an nn.Module as a pure function of its tensors and its inputs."""

from pipeline.module.module import NO_MODULE, Build, Module, copied
from pipeline.module.weights import Source, Weights, loaded

__all__ = ["NO_MODULE", "Build", "Module", "Source", "Weights", "copied", "loaded"]
