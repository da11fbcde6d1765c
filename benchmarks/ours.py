"""The library as a contender: one compiled step a call, and a whole epoch a call."""

from __future__ import annotations

from typing import Any

from benchmarks.harness import Done, Work
from pipeline import Pipeline, fit


def single(pipe: Pipeline, epochs: int) -> Any:
    """One compiled step a call, with its metrics, on the pipeline's own data."""
    assert pipe.load is not None
    batches = pipe.load.batches or 0
    step = pipe.compile()

    def start() -> Work:
        first = pipe.init(seed=0, steps=epochs * batches)

        def work() -> Done:
            state = first
            for _ in range(epochs):
                state = step.restart_metrics(state)
                for _ in range(batches):
                    state, _ = step(state)
                metrics = pipe.results(state)
            return Done(int(state.step), metrics["loss"], metrics.get("accuracy"))

        return work

    return start


def fused(pipe: Pipeline, epochs: int) -> Any:
    """An epoch a call: order, gather and all steps in one program."""
    step = pipe.compile()

    def start() -> Work:
        reports = fit(pipe, seed=0, epochs=epochs, steps_per_call="epoch", compile=step)

        def work() -> Done:
            report = [*reports][-1]
            return Done(report.step, report.train["loss"], report.train.get("accuracy"))

        return work

    return start
