"""Select parameters by a pattern of names, or by a predicate of name and tensor."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import TypeAlias

from torch import Tensor

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
