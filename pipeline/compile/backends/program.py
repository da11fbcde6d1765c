"""What every backend makes of a graph: a program, which is bound to tensors, and then run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from attrs import frozen
from torch import Tensor


@frozen
class Output:
    """What a program returns each step: a contiguous tensor of known shape."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class Run(Protocol):
    """A program bound to the tensors that stay in place."""

    outputs: tuple[Output, ...]

    def run(self, given: Sequence[Tensor] = ..., steps: int | None = ..., results: bool = ...) -> list[Tensor]: ...


class Program(Protocol):
    """What a graph was compiled to."""

    backend: str
    note: str | None

    def bind(self, static: Sequence[Tensor], given: int = ..., constants: Sequence[Tensor] = ...) -> Run: ...
