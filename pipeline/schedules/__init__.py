"""Schedules: hyperparameters as pure functions of the step: base * factor(step).

A schedule takes the place of a number: `update.sgd(lr=schedules.cosine(0.1))`, and schedules compose:
`schedules.warmup(schedules.cosine(0.1), epochs=5)`. A schedule's numbers live in State beside the base, so a longer run
or another warm-up needs no new graph. To add a schedule, add a file and a line here.

Shapes: `step` is a 0-d int64 tensor; numbers and the factor are 0-d float64 tensors. Ends, starts and floors are
fractions of the base.
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
from pipeline.schedules.tables import coslog, flat_cosine

__all__ = [
    "EPOCH",
    "RUN",
    "Length",
    "Schedule",
    "constant",
    "cosine",
    "cosine_restarts",
    "coslog",
    "exponential",
    "flat_cosine",
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
