"""Runs: what the command made, back in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.ensembles import Ensemble
from pipeline.pipe import Pipeline
from pipeline.state import State


def load_run(
    folder: str | Path, *, weights: str = "best", trust: bool = False
) -> tuple[Pipeline | Ensemble, State, Any]:
    """The pipeline, the State and the held-out data of a run that `pipe train` made.

        pipe, state, held_out = load_run("runs/digits-mlp-1")
        print(pipe.evaluate(state, held_out))
        model = pipe.module(state)  # a plain nn.Module

    - `weights`: "best", of the epoch that was best on the held-out data, "last", or the step of a checkpoint.
    - `trust`: run code of somebody's that the run's config names.

    The data are read again, from where the config has them. Raises ConfigError for a folder without a run, for one that
    is being written to, and for code that is not trusted; CheckpointError where its checkpoint is damaged.
    """
    # The command knows how its settings become a pipeline; nothing else here needs it.
    from cli.saved_run import load_run

    return load_run(Path(folder), weights, trust)
