"""Compile the step of a run, and print the result."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from cli.config import TrainConfig
from pipeline import State
from pipeline.compile import Compiled
from pipeline.pipe import Trainable
from pipeline.progress import compiling


def compiled(
    pipe: Trainable, held_out: Any, config: TrainConfig, state: State, say: Console, verbose: bool = False, *,
    eager_steps: int = 0, steps: int | None = None,
) -> Compiled:  # fmt: skip
    """The compiled step with all its graphs; if compiling fails, prints the reason and returns an eager step.

    Its first `eager_steps` run uncompiled, while another process compiles, or all if a run has no more `steps`.
    """
    program: Compiled = pipe.compile(backend=config.run.backend, fallback="eager", eager_steps=eager_steps)
    if int(state.step) < eager_steps:
        program.prepare(state, held_out, steps=steps)
        beside = f"compiling beside the first {eager_steps:,} steps; --no-eager-start waits for it"
        alone = f"uncompiled: {steps:,} steps take less time than compiling; --no-eager-start compiles"
        say.print(beside if steps is None or steps > eager_steps else alone)
        return program
    with warnings.catch_warnings(), compiling(say, lambda: program.doing, "--no-compile avoids it"):
        warnings.simplefilter("ignore")  # the compiler's; the fallback's is printed below
        program.prepare(state, held_out)
    tell(program, say, verbose)
    return program


@contextmanager
def unwarned() -> Iterator[None]:
    """Ignore warnings whose text `tell` prints."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="steps run uncompiled|programs are neither kept nor loaded")
        yield


def tell(program: Compiled, say: Console, verbose: bool) -> None:
    """Print the number of compiled graphs, or the reason if there are none."""
    report = program.report
    if report.unkept:
        say.print(f"programs are neither kept nor loaded: {report.unkept}")
    if report.fallback:
        say.print(f"runs uncompiled: {report.fallback}")
        return
    loaded = sum(g.loaded for g in report.graphs)
    cached = f", {loaded} from the cache" if loaded else ""
    backends = " and ".join(sorted({g.backend for g in report.graphs}))
    say.print(f"compiled {len(report.graphs)} graphs by {backends} in {program.seconds:.1f} s{cached}")
    if verbose:
        say.print(f"{report}\n")
    else:
        for reason in dict.fromkeys(reason for g in report.graphs for reason in g.refused):
            say.print(f"  not by {reason}")
