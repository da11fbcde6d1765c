"""Schedules: the factor that a hyperparameter is multiplied by at each step; pure functions of `step`.

A schedule stands where a number would: `update.sgd(lr=schedules.cosine(0.1))`, and so does one in front of another:
`schedules.warmup(schedules.cosine(0.1), epochs=5)`. Its own numbers live in State beside the base value, so a longer
run or another warm-up is data too, not a new graph.

Shapes: `step` is a 0-d int64 tensor; every number arrives as a 0-d float64 tensor; the factor is a 0-d float64 tensor.
Ends, starts and floors are shares of the base.
"""

from pipeline.schedules.combined import piecewise, product, sequence, warmup
from pipeline.schedules.cycles import cosine_restarts, one_cycle, one_cycle_momentum
from pipeline.schedules.decay import (
    constant,
    cosine,
    exponential,
    linear,
    multi_step,
    polynomial,
    step,
    warmup_stable_decay,
)
from pipeline.schedules.lengths import EPOCH, RUN, Length
from pipeline.schedules.picture import plot
from pipeline.schedules.plateau import reduce_on_plateau
from pipeline.schedules.schedule import Schedule, schedule

__all__ = [
    "EPOCH",
    "RUN",
    "Length",
    "Schedule",
    "constant",
    "cosine",
    "cosine_restarts",
    "exponential",
    "linear",
    "multi_step",
    "one_cycle",
    "one_cycle_momentum",
    "piecewise",
    "plot",
    "polynomial",
    "product",
    "reduce_on_plateau",
    "schedule",
    "sequence",
    "step",
    "warmup",
    "warmup_stable_decay",
]
