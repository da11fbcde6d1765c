"""Metric: sums over batches, and a division at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.direction import Better
from pipeline.stage import Stage
from pipeline.tree import Tree

INT, FLOAT = torch.int64, torch.float64


def metric(name: str, measure: Callable[..., Tree], finish: Callable[[Any], dict[str, Any]],
           sums: Mapping[str, Any], *, better: Better = None) -> Stage:  # fmt: skip
    """Make a metric: `measure(named values)` returns a batch's sums, `finish(sums)` the named results.

    `sums` describes the sums: a dtype for a 0-d sum, or (dtype, shape). `better`: "high", "low", or a mapping from
    result names to these; without it, a result can't choose the best epoch.

    >>> seen = metric("seen", lambda targets: {"n": torch.tensor(len(targets))}, lambda s: {"seen": s["n"]}, {"n": INT})
    >>> seen.finish(seen(torch.zeros(3)))
    {'seen': tensor(3)}
    """

    def init() -> dict[str, Tensor]:
        described = {k: v if isinstance(v, tuple) else (v, ()) for k, v in sums.items()}
        return {k: torch.zeros(shape, dtype=dtype) for k, (dtype, shape) in described.items()}

    return Stage(name, measure, init=init, finish=finish, draws=True, better=better)


def read(results: Mapping[str, Any]) -> dict[str, Any]:
    """Results as Python numbers or lists: the one place where metrics leave the device."""
    return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in results.items()}


def count_of(x: Tensor) -> Tensor:
    return torch.full((), x.numel(), dtype=INT, device=x.device)


def ratio(name: str) -> Callable[[Any], dict[str, Any]]:
    return lambda sums: {name: sums["sum"].to(FLOAT) / sums["count"]}
