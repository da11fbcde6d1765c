"""Draws: random numbers as functions of (seed, step, stage, draw), wherever torch makes them."""

from pipeline.draws.modes import Watched, drops_nothing, keyed

__all__ = ["Watched", "drops_nothing", "keyed"]
