"""Update: new parameters from gradients. Each rule is a pure function of one tensor, equal to torch.optim's.

Shapes: params and grads are dicts of tensors by parameter name, alike in structure, shapes and dtype; every
hyperparameter is a 0-d float64 tensor, which multiplies float32 without promoting it.
"""

from pipeline.update.adagrad import adadelta, adafactor, adagrad, rmsprop
from pipeline.update.adam import adam, adamax, adamw, lamb, nadam, radam, schedule_free_adamw
from pipeline.update.average import ema, lookahead, swa
from pipeline.update.clip import centralize, clip_adaptive, clip_norm, clip_value, noise, weight_decay
from pipeline.update.finite import Finite, finite
from pipeline.update.groups import frozen, groups, layerwise, thawed
from pipeline.update.muon import muon
from pipeline.update.per_example import clip_per_example, mean_gradients, private
from pipeline.update.rule import rule
from pipeline.update.sgd import asgd, lion, rprop, sgd

__all__ = [
    "Finite",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "asgd",
    "centralize",
    "clip_adaptive",
    "clip_norm",
    "clip_per_example",
    "clip_value",
    "ema",
    "finite",
    "frozen",
    "groups",
    "lamb",
    "layerwise",
    "lion",
    "lookahead",
    "mean_gradients",
    "muon",
    "nadam",
    "noise",
    "private",
    "radam",
    "rmsprop",
    "rprop",
    "rule",
    "schedule_free_adamw",
    "sgd",
    "swa",
    "thawed",
    "weight_decay",
]
