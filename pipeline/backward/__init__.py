"""Backward: gradients of a loss.

Shapes: gradients are a dict of tensors by parameter name, each in its parameter's shape; with `per_example=True` with a
sample dimension in front, (B, ...).
"""

from pipeline.backward.gradients import Gradients, gradients
from pipeline.backward.sharpness import SharpnessAware, sharpness_aware

__all__ = ["Gradients", "SharpnessAware", "gradients", "sharpness_aware"]
