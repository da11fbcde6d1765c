"""Metric: sums over batches, and a division at the end."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.direction import Better
from pipeline.errors import ConfigError, StageError
from pipeline.stage import Stage
from pipeline.tree import Tree, dtype_name

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
    described = {k: v if isinstance(v, tuple) else (v, ()) for k, v in sums.items()}
    for k, (dtype, _) in described.items():
        if not isinstance(dtype, torch.dtype):
            raise ConfigError(f"metric {name!r} describes {k!r} by {dtype!r}; use evaluate.INT or FLOAT")

    def init() -> dict[str, Tensor]:
        return {k: torch.zeros(shape, dtype=dtype) for k, (dtype, shape) in described.items()}

    @functools.wraps(measure)
    def measured(*args: Any, **values: Any) -> dict[str, Tensor]:
        given = measure(*args, **values)
        if not isinstance(given, Mapping) or {*given} != {*described}:
            got = f"a dict of {', '.join(map(repr, given))}" if isinstance(given, Mapping) else _kind(given)
            raise StageError(name, f"returned {got}, but declares sums of {', '.join(map(repr, described))}")
        return {k: _sum(name, k, given[k], *described[k]) for k in described}

    @functools.wraps(finish)
    def finished(sums: Any) -> dict[str, Any]:
        if not isinstance(named := finish(sums), Mapping):
            raise StageError(name, f"finishes with {_kind(named)}; return a dict, {{{name!r}: ...}}")
        return {**named}

    return Stage(name, measured, init=init, finish=finished, draws=True, better=better)


def _sum(metric: str, name: str, given: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """A batch's sum, as declared. Raises StageError if it is not, as adding it would change or lose it."""
    t = given if isinstance(given, Tensor) else torch.tensor(given)
    if t.shape != torch.Size(shape):
        instead = "sum it over the batch" if shape == () else "return that shape"
        raise StageError(metric, f"measures {name!r} {tuple(t.shape)}, but declares {shape}; {instead}")
    if torch.promote_types(t.dtype, dtype) != dtype:
        instead = "evaluate.FLOAT" if t.is_floating_point() else f"torch.{dtype_name(t.dtype)}"
        said = f"measures {name!r} in {dtype_name(t.dtype)}, but declares {dtype_name(dtype)}; declare {instead}"
        raise StageError(metric, said)
    return t


def _kind(x: Any) -> str:
    return "a tensor" if isinstance(x, Tensor) else type(x).__name__


def read(results: Mapping[str, Any]) -> dict[str, Any]:
    """Results as Python numbers or lists: the one place where metrics leave the device."""
    return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in results.items()}


def count_of(x: Tensor) -> Tensor:
    return torch.full((), x.numel(), dtype=INT, device=x.device)


def ratio(name: str) -> Callable[[Any], dict[str, Any]]:
    return lambda sums: {name: sums["sum"].to(FLOAT) / sums["count"]}
