"""Backend: compiles a graph to a program, which is bound to tensors and run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
from attrs import frozen
from torch import Tensor

if TYPE_CHECKING:
    from pipeline.compile.tracing import Traced

Context: TypeAlias = Callable[[], AbstractContextManager[Any]]


@frozen
class Output:
    """An output of each step: a contiguous tensor of known shape."""

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
    """A compiled graph."""

    backend: str
    note: str | None

    def bind(self, static: Sequence[Tensor], given: int = ..., constants: Sequence[Tensor] = ...) -> Run: ...


class Backend:
    """A way to compile graphs. A subclass sets its limits, and defines `begin`."""

    name: str
    devices: tuple[str, ...] | None = None
    """Types of devices that it compiles for; None is all."""
    symbolic: bool = True
    """Whether it takes graphs of symbolic sizes."""
    collectives: bool = True
    """Whether it takes graphs in which the processes of a mesh communicate."""
    cached: bool = False
    """Whether its programs are kept on disk, in our cache or its own."""

    def settings(self) -> str | None:
        """Key of its programs in our cache besides the graph; None if they are not kept there."""
        return None

    def refusal(self, traced: Traced, device: str) -> str | None:
        """Why it can't compile a graph; None if it can."""
        if traced.talks and not self.collectives:
            return "takes no collectives"
        if self.devices is not None and device not in self.devices:
            return f"takes no {device} device"
        return "takes no symbolic sizes" if traced.sizes is not None and not self.symbolic else None

    def begin(
        self, traced: Traced, args: Sequence[Tensor], outputs: tuple[Output, ...], context: Context
    ) -> Callable[[], Program]:
        """Start to compile a graph; the result waits for the program. Each may raise CaptureError.

        `args` are examples of the graph's inputs, and the program runs within `context()`.
        """
        raise NotImplementedError
