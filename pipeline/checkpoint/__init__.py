"""Checkpoints: State and the position in the order on disk, as safetensors and JSON, to resume a run bit for bit.

A checkpoint is a folder `step-<n>/` with every tensor of State and `checkpoint.json`, which holds the position and the
checksums of both. It is written atomically, and verified before it is read. Nothing in it can run code.

    with checkpoint.Saver("run/checkpoints", best="accuracy") as saver:
        for report in fit(pipe, epochs=20, validate=test):
            saver.offer(report)

    saved = checkpoint.newest("run/checkpoints").saved
    reports = fit(pipe, epochs=20, validate=test, state=saved.restore(pipe), start=saved.start)
"""

from pipeline.checkpoint.saved import FACTS, FORMAT, STATE, Best, Found, Saved, at, newest, read, steps
from pipeline.checkpoint.saver import SHARE, Saver

__all__ = ["FACTS", "FORMAT", "SHARE", "STATE", "Best", "Found", "Saved", "Saver", "at", "newest", "read", "steps"]
