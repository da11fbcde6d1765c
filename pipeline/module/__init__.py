"""Module: an nn.Module as a pure function of its tensors and its inputs."""

from pipeline.module.module import NO_MODULE, Build, Module, copied

__all__ = ["NO_MODULE", "Build", "Module", "copied"]
