"""Draws: random numbers as functions of (seed, step, stage, draw), wherever torch makes them."""

from pipeline.draws.keyed import keyed

__all__ = ["keyed"]
