"""The library as a contender: one compiled step a call, and a whole epoch a call."""

from __future__ import annotations

import inspect
from typing import Any

from benchmarks.harness import Done, MissingError, Work
from pipeline import Pipeline, evaluate, fit


def single(pipe: Pipeline, epochs: int) -> Any:
    """The loop of pipeline/loop.py, one compiled step a call."""
    assert pipe.load is not None
    batches = pipe.load
    step = pipe.compile()

    def start() -> Work:
        first = pipe.init(seed=0, steps=epochs * (batches.batches or 0))

        def work() -> Done:
            state = first
            for epoch in range(epochs):
                state = pipe.restart_metrics(state)
                for batch in pipe.place.ahead(pipe.prepared(b, True) for b in batches.epoch(0, epoch)):
                    state, _ = step(state, batch)
                metrics = evaluate.read(pipe.finish({s.name: state.memory[s.name] for s in pipe.metrics}))
            return Done(int(state.step), metrics["loss"], metrics.get("accuracy"))

        return work

    return start


def fused(pipe: Pipeline, epochs: int) -> Any:
    """A whole epoch a call: the order, the gather and every step in one graph."""
    if "steps_per_call" not in inspect.signature(fit).parameters:
        raise MissingError("fit(steps_per_call=...) does not exist yet")
    assert pipe.load is not None
    step = pipe.compile(steps=pipe.load.batches)  # made once: a run begins with its graph
    options: dict[str, Any] = {"epochs": epochs, "steps_per_call": "epoch", "compile": step}

    def start() -> Work:
        reports = fit(pipe, seed=0, **options)

        def work() -> Done:
            report = [*reports][-1]
            return Done(report.step, report.train["loss"], report.train.get("accuracy"))

        return work

    return start
