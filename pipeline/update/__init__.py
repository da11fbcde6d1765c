"""Update: new parameters from gradients. Each rule is a pure function of the values it names, equal to torch.optim's.

Shapes: params and grads are dicts of tensors by parameter name, alike in structure, shapes and dtype; every
hyperparameter is a 0-d float64 tensor, which multiplies float32 without promoting it.
"""

from pipeline.update.adam import adam, adamw
from pipeline.update.average import Average, ema, lookahead, swa
from pipeline.update.clip import clip_norm, clip_value
from pipeline.update.finite import Finite, finite
from pipeline.update.sgd import sgd

__all__ = [
    "Average",
    "Finite",
    "adam",
    "adamw",
    "clip_norm",
    "clip_value",
    "ema",
    "finite",
    "lookahead",
    "sgd",
    "swa",
]
