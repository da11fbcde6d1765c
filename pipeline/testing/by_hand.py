"""By hand: a pipeline beside the loop in torch that it stands for, and where the two part."""

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
    """`fit` trains what a plain loop in torch does: parameters, buffers and metrics agree after each epoch.

    - `data`: in the place of the pipeline's own; batches, as for load.loader(), where it has none.
    - `compile`: False, the name of a backend, or what `pipe.compile()` made.

    Raises AssertionError that says where they part first: epoch, batch, what, and how far. Raises ByHandError where a
    plain loop can't do what the pipeline does, so that nothing was compared.

    >>> from pipeline import backward, forward, loss, models, update
    >>> stages = forward.model(lambda: models.mlp(4, 2)), loss.cross_entropy(), backward.gradients(), update.adamw(0.1)
    >>> like_by_hand(Pipeline(*stages), [{"inputs": torch.ones(3, 4), "targets": torch.tensor([0, 1, 1])}])
    """
    if data is not None:
        own = pipe.load if pipe.load is not None and pipe.load.known else None
        first = load.loader(data) if own is None else _of(own, source(data))
        pipe = pipe.of([first, *(s for s in pipe.given if s is not pipe.load)])
    if pipe.place.mesh or pipe.place.precision == "fp16" or (pipe.host_metrics and validate is not None):
        raise ByHandError("can't be done by hand: a mesh, members, float16, or metrics on the host")
    options: Any = {"backend": compile, "compile": True} if isinstance(compile, str) else {"compile": compile}
    if where := _parting(pipe, seed, epochs, validate, tolerance, **options):
        raise AssertionError(_parting(pipe, seed, epochs, validate, tolerance, compile=False, every=1) or where)


def _of(own: load.Load, data: Source) -> load.Load:
    if own.others or not isinstance(own.order, order.Whole):
        raise ByHandError("data= can't be in the place of what draws by weights or joins others; replace that itself")
    return evolve(own, data=data, size=min(own.size, len(data)), order=evolve(own.order, n=len(data)))


def _parting(pipe: Pipeline, seed: int, epochs: int, validate: Any, tolerance: float, **options: Any) -> str:
    """Where they part first, as far as Reports tell; empty where they do not."""
    hand = PlainLoop(pipe, seed, epochs)
    for report in fit(pipe, epochs=epochs, seed=seed, validate=validate, **options):
        while int(hand.given["step"]) < report.step:
            hand.step()
        results = hand.validated(validate) if report.validate else {}
        state = {k: x for k, x in report.state.tree.items() if k not in LASTS}
        pairs = {"": (state, hand.kept()), "train ": (report.train, hand.results()), "val ": (report.validate, results)}
        for of, (got, expected) in pairs.items():
            if apart := _apart(named(dict(got)), named(expected), tolerance):
                return f"epoch {report.epoch}, batch {report.batch}: {of}{apart}"
        if report.complete:
            hand.observe({**hand.results(), **results})
    return ""


def _apart(got: dict[str, Any], expected: dict[str, Any], tolerance: float) -> str:
    if got.keys() != expected.keys():
        return f"only one of the two has {', '.join(sorted(got.keys() ^ expected.keys()))}"
    pairs = {k: (torch.as_tensor(x).detach(), torch.as_tensor(expected[k]).detach()) for k, x in got.items()}
    off = {k: float((a - b).abs().max()) for k, (a, b) in pairs.items()
           if not torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)}  # fmt: skip
    worst = max(off, key=off.__getitem__, default="")
    return worst and f"{worst} is {off[worst]:.2g} off, of {len(off)} that are"
