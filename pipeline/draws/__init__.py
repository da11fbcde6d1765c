"""Draws: random numbers as functions of (seed, step, stage, draw), wherever torch makes them."""

from pipeline.draws.modes import keyed

__all__ = ["keyed"]
