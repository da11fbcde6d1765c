"""Backward: gradients of a loss.

Shapes: gradients are a dict of tensors by parameter name, each in its parameter's shape, or with `per_example=True` (B,
*shape).
"""

from pipeline.backward.gradients import Gradients, gradients
from pipeline.backward.sharpness import SharpnessAware, sharpness_aware

__all__ = ["Gradients", "SharpnessAware", "gradients", "sharpness_aware"]
