"""Draws: random numbers as functions of (seed, step, stage, draw), wherever torch makes them."""

from pipeline.draws.modes import drops_nothing, keyed

__all__ = ["drops_nothing", "keyed"]
