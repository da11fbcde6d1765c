"""Update: new parameters from gradients. Each rule is a pure function of one tensor, equal to torch.optim's.

To add a rule, add a file and a line here.

Shapes: params and grads are dicts of tensors by parameter name, with equal shapes and dtypes; each hyperparameter is a
0-d float64 tensor, which multiplies float32 without promoting it.
"""

from pipeline.update.adadelta import adadelta as adadelta
from pipeline.update.adafactor import adafactor as adafactor
from pipeline.update.adagrad import adagrad as adagrad
from pipeline.update.adam import adam as adam
from pipeline.update.adam import adamw as adamw
from pipeline.update.adamax import adamax as adamax
from pipeline.update.asgd import asgd as asgd
from pipeline.update.average import ema as ema
from pipeline.update.average import swa as swa
from pipeline.update.centralize import centralize as centralize
from pipeline.update.clip import clip_adaptive as clip_adaptive
from pipeline.update.clip import clip_norm as clip_norm
from pipeline.update.clip import clip_value as clip_value
from pipeline.update.finite import Finite as Finite
from pipeline.update.finite import finite as finite
from pipeline.update.groups import frozen as frozen
from pipeline.update.groups import groups as groups
from pipeline.update.groups import layerwise as layerwise
from pipeline.update.groups import scaled as scaled
from pipeline.update.groups import thawed as thawed
from pipeline.update.lamb import lamb as lamb
from pipeline.update.lion import lion as lion
from pipeline.update.lookahead import lookahead as lookahead
from pipeline.update.muon import muon as muon
from pipeline.update.nadam import nadam as nadam
from pipeline.update.noise import noise as noise
from pipeline.update.per_example import clip_per_example as clip_per_example
from pipeline.update.per_example import mean_gradients as mean_gradients
from pipeline.update.per_example import private as private
from pipeline.update.radam import radam as radam
from pipeline.update.rmsprop import rmsprop as rmsprop
from pipeline.update.rprop import rprop as rprop
from pipeline.update.rule import rule as rule
from pipeline.update.schedule_free import schedule_free_adamw as schedule_free_adamw
from pipeline.update.sgd import sgd as sgd
from pipeline.update.weight_decay import weight_decay as weight_decay
