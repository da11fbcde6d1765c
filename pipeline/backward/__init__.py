"""Backward: the gradients of a loss, by transforming the function that computes it.

Shapes: gradients are a dict of tensors by parameter name, each as its parameter; with `per_example=True` each has one
more dimension in front, (B, ...), for the samples.
"""

from pipeline.backward.gradients import Gradients, gradients
from pipeline.backward.sharpness import SharpnessAware, sharpness_aware

__all__ = ["Gradients", "SharpnessAware", "gradients", "sharpness_aware"]
