"""Runs: results of `pipe train`, loaded in Python."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from pipeline.ensembles import Ensemble
from pipeline.errors import ConfigError
from pipeline.pipe import Pipeline
from pipeline.state import State


def load_run(
    folder: str | Path, *, weights: str = "best", trust: bool = False
) -> tuple[Pipeline | Ensemble, State, Any]:
    """The pipeline, the State and the held-out data of a run that `pipe train` made.

        pipe, state, held_out = load_run("runs/digits-mlp-1")
        print(pipe.evaluate(state, held_out))
        model = pipe.module(state)  # a plain nn.Module

    - `weights`: "best" for the epoch that was best on the held-out data, "last", or the step of a checkpoint.
    - `trust`: run the user's own code that the run's config names.

    The data are read again, from the place that the config names. Raises ConfigError for a folder without a run, for a
    run that is still training, and for code that is not trusted; CheckpointError if its checkpoint is damaged.
    """
    # Only the command knows how settings become a pipeline, and it imports this library: it is found by name, as a
    # plugin, so that imports run one way and `pipe --help` needs no torch.
    readers = entry_points(group="pipeline.runs")
    if not readers:
        raise ConfigError("load_run() needs the installed command: pip install pipe-train, or pip install -e . here")
    [found] = [*readers][:1]
    try:
        read = found.load()
    except ModuleNotFoundError as e:
        home = found.module.partition(".")[0]
        hides = getattr(sys.modules.get(home), "__file__", None)
        if hides is None or not str(e.name).startswith(home):
            raise
        raise ConfigError(
            f"load_run() needs the package {home!r} of pipe-train, which {hides} hides; rename that"
        ) from None
    return read(Path(folder), weights, trust)  # type: ignore[no-any-return]  # as declared
