"""Compile the step of a run, and print the result."""

from __future__ import annotations

import time
import warnings
from typing import Any

from rich.console import Console

from cli.config import TrainConfig
from cli.progress import waiting
from pipeline import Pipeline, State, Sweep
from pipeline.compile import Compiled


def compiled(
    pipe: Pipeline | Sweep, held_out: Any, config: TrainConfig, state: State, say: Console, verbose: bool = False
) -> Compiled:
    """The compiled step with all its graphs; if compiling fails, prints the reason and returns an eager step."""
    program = pipe.compile(backend=config.run.backend, fallback="eager")
    start = time.perf_counter()
    with warnings.catch_warnings(), waiting(say, lambda: f"{program.doing}, {time.perf_counter() - start:.0f} s"):
        warnings.simplefilter("ignore")  # the fallback's warning is printed below
        report = program.prepare(state, held_out)
    seconds = time.perf_counter() - start
    if report.unkept:
        say.print(f"programs are neither kept nor loaded: {report.unkept}")
    if report.fallback:
        say.print(f"runs uncompiled: {report.fallback}")
        return program
    loaded = sum(g.loaded for g in report.graphs)
    cached = f", {loaded} from the cache" if loaded else ""
    backends = " and ".join(sorted({g.backend for g in report.graphs}))
    say.print(f"compiled {len(report.graphs)} graphs by {backends} in {seconds:.1f} s{cached}")
    if verbose:
        say.print(f"{report}\n")
    else:
        for reason in dict.fromkeys(reason for g in report.graphs for reason in g.refused):
            say.print(f"  not by {reason}")
    return program
