"""Sweeps: many runs of one config, trained side by side in groups."""
