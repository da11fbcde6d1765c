"""Context: sums and values of the whole batch, for code that runs on some of its rows or on shards. One process has it
all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pipeline.mesh import collectives
from pipeline.mesh.shards import Mesh, Rows

_HERE: ContextVar[tuple[Mesh, Rows | None] | None] = ContextVar("mesh", default=None)


@contextmanager
def at(mesh: Mesh | None, rows: Rows | None) -> Iterator[None]:
    """Context in which code runs on these rows of a batch; without rows, on values that all processes share."""
    token = _HERE.set(None if mesh is None else (mesh, rows))
    try:
        if mesh is None or rows is None:
            yield
        else:
            with _SyncBatchNorm():
                yield
    finally:
        _HERE.reset(token)


def here() -> Mesh | None:
    """The mesh that code runs on, if any."""
    current = _HERE.get()
    return None if current is None else current[0]


def _here_with_rows() -> tuple[Mesh, Rows] | None:
    """The mesh and the rows, if code runs on some rows of a batch."""
    current = _HERE.get()
    return None if current is None or current[1] is None else (current[0], current[1])


def summed(x: Tensor) -> Tensor:
    """The sum over all processes, for a stage that needs a number of the whole batch. Differentiable. On one process,
    `x` itself.

    >>> summed(torch.ones(2))
    tensor([1., 1.])
    """
    if (current := _here_with_rows()) is None:
        return x
    mesh, rows = current
    total: Tensor = _AllReduce.apply(x if rows.count else x * 0, mesh.all)  # type: ignore[no-untyped-call]  # torch's
    return total


def gathered(x: Tensor) -> Tensor:
    """The rows of all processes in the order of the batch, (b, ...) of each to (B, ...), for a loss that compares each
    sample with all others. Differentiable. On one process, `x` itself.

    >>> gathered(torch.ones(2, 3)).shape
    torch.Size([2, 3])
    """
    if (current := _here_with_rows()) is None:
        return x
    mesh, rows = current
    each = _all_gather(collectives.pad(x, max(rows.sizes)), mesh)
    return torch.cat([each[r, :n] for r, n in enumerate(rows.sizes)])


def over_shards(x: Tensor) -> Tensor:
    """The sum over the shards of the weights, for a stage that runs on shards. Without shards, `x` itself."""
    mesh = here()
    return x if mesh is None or mesh.shard == 1 else collectives.all_reduce(x, mesh.shards)


def norm_over_shards(norms: Sequence[Tensor], whole: Sequence[bool], order: float) -> Tensor:
    """The norm of all shards together, from norms of this process's tensors. `whole` ones, which all shards have, count
    once."""
    mesh = here()
    if mesh is not None and mesh.rank % mesh.shard:
        norms = [torch.zeros_like(x) if w else x for x, w in zip(norms, whole, strict=True)]
    norm: Tensor = torch.linalg.vector_norm(torch.stack([*norms]), order)
    if mesh is None or mesh.shard == 1:
        return norm
    total: Tensor = torch.linalg.vector_norm(collectives.all_gather(norm.reshape(1), mesh.shard, mesh.shards), order)
    return total


def draw_offset(shape: Sequence[int]) -> int:
    """Offset into a draw of this shape: the count of its numbers for samples of earlier processes, so that a sample's
    draw does
    not depend on its process. 0 unless the first dimension is a multiple of the number of samples.
    """
    current = _here_with_rows()
    if current is None or not shape:
        return 0
    rows = current[1]
    n = rows.length
    if shape[0] != n and (n == 1 or shape[0] % n):
        return 0
    return rows.begin * (math.prod(shape) // n)


def _all_gather(x: Tensor, mesh: Mesh) -> Tensor:
    """The tensors of all processes: (...) to (W, ...)."""
    each: Tensor = _AllGather.apply(x, mesh.all, mesh.processes, mesh.rank)  # type: ignore[no-untyped-call]  # torch's
    return each


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, group: str) -> Tensor:
        return collectives.all_reduce(x, group)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _AllReduce.apply(grad, ctx.group), None  # type: ignore[no-untyped-call]  # torch's


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, group: str, processes: int, rank: int) -> Tensor:
        return collectives.all_gather(x.reshape(-1), processes, group).view(processes, *x.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, ctx.group, _, ctx.rank = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        mine = _AllReduce.apply(grad, ctx.group)[ctx.rank]  # type: ignore[no-untyped-call]  # torch's
        return mine, None, None, None


class _SyncBatchNorm(TorchFunctionMode):
    """Mode in which BatchNorm in training normalizes by the whole batch."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.batch_norm:
            return _batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """torch.nn.functional.batch_norm with the mean and variance over all processes. Source: Chan, Golub and LeVeque,
    "Updating formulae and a pairwise algorithm for computing sample variances" (1979), equation 2.1."""
    current = _here_with_rows()
    if not training or current is None:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    mesh, rows = current
    dims = [d for d in range(input.ndim) if d != 1]
    shape = [1, -1, *([1] * (input.ndim - 2))]
    x = input.float() if input.dtype in (torch.bfloat16, torch.float16) else input
    var, mean = torch.var_mean(x, dims, correction=0)
    each = _all_gather(torch.stack([mean, var]), mesh)
    share = input.numel() // input.shape[1] / rows.length
    count = share * rows.whole
    weights = torch.tensor([share * n / count for n in rows.sizes], dtype=x.dtype, device=x.device).view(-1, 1)
    mean = (weights * each[:, 0]).sum(0)
    var = (weights * (each[:, 1] + (each[:, 0] - mean) ** 2)).sum(0)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.mul_(1 - momentum).add_(momentum * mean.detach().to(running_mean.dtype))
            unbiased = var.detach() * (count / max(count - 1, 1))
            running_var.mul_(1 - momentum).add_(momentum * unbiased.to(running_var.dtype))
    scale = torch.rsqrt(var + eps) if weight is None else torch.rsqrt(var + eps) * weight
    normed = (x - mean.view(shape)) * scale.view(shape)
    return (normed if bias is None else normed + bias.view(shape)).to(input.dtype)
