"""Symbolic sizes: one graph for batches of many shapes. Imported only on demand: it takes half a second."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    GuardOnDataDependentSymNode,
    ShapeEnv,
    StatelessSymbolicContext,
)
from torch.overrides import TorchFunctionMode

UNREADABLE = GuardOnDataDependentSymNode
"""Raised for a size that depends on values."""


class Sizes:
    """Arguments as fake tensors; the `varying` dimensions of the last ones are symbols."""

    def __init__(self, args: Sequence[Tensor], varying: Sequence[Collection[int]]) -> None:
        self.shapes = ShapeEnv()
        self.mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=self.shapes)
        self.varying = [*[()] * (len(args) - len(varying)), *varying]
        self.fakes = tuple(self._fake(t, dims) for t, dims in zip(args, self.varying, strict=True))

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """A context in which symbolic sizes are not specialized."""
        with enable_python_dispatcher(), _Flattened():
            yield

    @property
    def free(self) -> bool:
        """Whether no symbolic size was specialized to a number."""
        sizes = [t.shape[d] for t, dims in zip(self.fakes, self.varying, strict=True) for d in dims]
        return all(isinstance(n, torch.SymInt) and n.node.maybe_as_int() is None for n in sizes)

    def fit(self, args: Sequence[Tensor]) -> bool:
        """Whether the graph is valid for other arguments: they differ in symbolic sizes alone, and satisfy the
        guards."""
        similar = len(args) == len(self.fakes) and all(
            (t.dtype, t.device, t.ndim) == (f.dtype, f.device, f.ndim)
            and all(isinstance(n, torch.SymInt) or m == n for m, n in zip(t.shape, f.shape, strict=True))
            for t, f in zip(args, self.fakes, strict=True)
        )
        return similar and bool(self.shapes.evaluate_guards_for_args(self.fakes, args))

    def mark(self, args: Sequence[Tensor]) -> None:
        """Tell torch.compile which sizes vary."""
        for t, dims in zip(args, self.varying, strict=False):
            for d in dims:
                torch._dynamo.mark_dynamic(t, d)

    def _fake(self, tensor: Tensor, dims: Collection[int]) -> FakeTensor:
        sizes = [DimDynamic.DYNAMIC if d in dims else DimDynamic.STATIC for d in range(tensor.ndim)]
        return self.mode.from_tensor(tensor, symbolic_context=StatelessSymbolicContext(sizes))


class _Flattened(TorchFunctionMode):
    """Flatten the inputs of linear layers to matrices: for more dimensions, torch under torch.func reads the sizes as
    numbers."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.linear and args and args[0].ndim > 2:
            x, *rest = args
            rows = F.linear(x.flatten(0, -2), *rest, **(kwargs or {}))
            return rows.view(*x.shape[:-1], rows.shape[-1])
        return func(*args, **(kwargs or {}))
