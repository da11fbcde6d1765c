"""Select parameters by a pattern of names, or by a predicate of name and tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import TypeAlias

from torch import Tensor

from pipeline.errors import ConfigError, did_you_mean
from pipeline.text import some

Which: TypeAlias = str | Callable[[str, Tensor], bool]
"""Glob patterns, separated by commas, ! before exclusions ("head.*, !*.bias"); or a predicate of (name, tensor)."""


def holds(which: Which, name: str, tensor: Tensor) -> bool:
    """Whether a parameter is selected.

    >>> import torch
    >>> names = ["norm.bias", "head.weight", "head.bias"]
    >>> [n for n in names if holds("head.*, !*.bias", n, torch.zeros(2))]
    ['head.weight']
    """
    if not isinstance(which, str):
        return bool(which(name, tensor))
    patterns = [p.strip() for p in which.split(",") if p.strip()]
    wanted = [p for p in patterns if not p.startswith("!")] or ["*"]
    return any(fnmatchcase(name, p) for p in wanted) and not any(
        fnmatchcase(name, p[1:]) for p in patterns if p.startswith("!")
    )


def chosen(stage: str, which: Which, params: Mapping[str, Tensor]) -> set[str]:
    """Names of the selected parameters. Raises ConfigError for a pattern that matches none, also after !."""
    for part in which.split(",") if isinstance(which, str) and params else ():
        pattern = part.strip().removeprefix("!")
        if pattern not in ("", "*") and not any(fnmatchcase(name, pattern) for name in params):
            near = did_you_mean(pattern, params)
            what = f"only={which!r}: {pattern!r} matches none of the parameters {some(params)}{near}"
            raise ConfigError(f"{stage}: {what}")
    return {k for k, p in params.items() if holds(which, k, p)}
