"""By hand: compare a pipeline with its equivalent plain torch loop."""

from __future__ import annotations

from typing import Any

import torch
from attrs import evolve

from pipeline import load, order
from pipeline.errors import ByHandError
from pipeline.loop import fit
from pipeline.names import LASTS
from pipeline.pipe import Pipeline
from pipeline.sources import Source, source
from pipeline.testing.plain import PlainLoop
from pipeline.tree import named


def like_by_hand(pipe: Pipeline, data: Any = None, *, epochs: int = 2, seed: int = 0, validate: Any = None,
                 tolerance: float = 1e-5, compile: Any = False) -> None:  # fmt: skip
    """`fit` equals a plain torch loop: parameters, buffers and metrics agree after each epoch.

    - `data`: replaces the pipeline's own; batches, as for load.loader(), if it has none.
    - `compile`: False, a backend's name, or the result of `pipe.compile()`.

    Raises AssertionError with the first difference: epoch, batch, name and size. Raises ByHandError if the pipeline has
    no equivalent plain loop, so nothing was compared.

    >>> from pipeline import backward, forward, loss, models, update
    >>> stages = forward.model(lambda: models.mlp(4, 2)), loss.cross_entropy(), backward.gradients(), update.adamw(0.1)
    >>> like_by_hand(Pipeline(*stages), [{"inputs": torch.ones(3, 4), "targets": torch.tensor([0, 1, 1])}])
    """
    if data is not None:
        known = pipe.load if pipe.load is not None and pipe.load.known else None
        loading = load.loader(data) if known is None else _with_data(known, source(data))
        pipe = pipe.of([loading, *(s for s in pipe.given if s is not pipe.load)])
    if pipe.place.mesh or pipe.place.precision == "fp16" or (pipe.host_metrics and validate is not None):
        raise ByHandError("can't be done by hand: a mesh, members, float16, or metrics on the host")
    options: Any = {"backend": compile, "compile": True} if isinstance(compile, str) else {"compile": compile}
    if first := _difference(pipe, seed, epochs, validate, tolerance, **options):
        raise AssertionError(_difference(pipe, seed, epochs, validate, tolerance, compile=False, every=1) or first)


def _with_data(stage: load.Load, data: Source) -> load.Load:
    if stage.others or not isinstance(stage.order, order.Whole):
        raise ByHandError("data= can't replace a load that draws by weights or joins others; replace that stage")
    return evolve(stage, data=data, size=min(stage.size, len(data)), order=evolve(stage.order, n=len(data)))


def _difference(pipe: Pipeline, seed: int, epochs: int, validate: Any, tolerance: float, **options: Any) -> str:
    """The first difference at a Report; empty if there is none."""
    hand = PlainLoop(pipe, seed, epochs)
    for report in fit(pipe, epochs=epochs, seed=seed, validate=validate, **options):
        while int(hand.counters["step"]) < report.step:
            hand.step()
        results = hand.validate(validate) if report.validate else {}
        state = {k: x for k, x in report.state.tree.items() if k not in LASTS}
        pairs = {
            "": (state, hand.state()),
            "train ": (report.train, hand.results()),
            "val ": (report.validate, results),
        }
        for kind, (got, expected) in pairs.items():
            if difference := _largest(named(dict(got)), named(expected), tolerance):
                return f"epoch {report.epoch}, batch {report.batch}: {kind}{difference}"
        if report.complete:
            hand.observe({**hand.results(), **results})
    return ""


def _largest(got: dict[str, Any], expected: dict[str, Any], tolerance: float) -> str:
    """The largest difference, in words; empty if all are within the tolerance."""
    if got.keys() != expected.keys():
        return f"only one of the two has {', '.join(sorted(got.keys() ^ expected.keys()))}"
    pairs = {k: (torch.as_tensor(x).detach(), torch.as_tensor(expected[k]).detach()) for k, x in got.items()}
    off = {k: float((a - b).abs().max()) for k, (a, b) in pairs.items()
           if not torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)}  # fmt: skip
    worst = max(off, key=off.__getitem__, default="")
    return worst and (
        f"{worst} is off by {off[worst]:.2g}, the most of {len(off)} beyond tolerance={tolerance:g}; if that is "
        "rounding, pass a larger one"
    )
