"""Stages: what code that runs on a part of a batch, or on shards, can know of the whole. On one process, it has it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pipeline.mesh import collectives as flat
from pipeline.mesh.shards import Mesh, Rows

_HERE: ContextVar[tuple[Mesh, Rows | None] | None] = ContextVar("mesh", default=None)


@contextmanager
def at(mesh: Mesh | None, rows: Rows | None) -> Iterator[None]:
    """Within it, code runs on a part of a batch; without rows, on what all processes have alike."""
    token = _HERE.set(None if mesh is None else (mesh, rows))
    try:
        if mesh is None or rows is None:
            yield
        else:
            with _Synced():
                yield
    finally:
        _HERE.reset(token)


def here() -> Mesh | None:
    """The mesh that code runs on, if it does."""
    found = _HERE.get()
    return None if found is None else found[0]


def _part() -> tuple[Mesh, Rows] | None:
    """The mesh and the samples, where code runs on a part of a batch."""
    found = _HERE.get()
    return None if found is None or found[1] is None else (found[0], found[1])


def summed(x: Tensor) -> Tensor:
    """The sum over all parts of the batch: what a stage that needs a number of the whole batch adds up with. It has a
    gradient. On one process, `x` itself.

    >>> summed(torch.ones(2))
    tensor([1., 1.])
    """
    found = _part()
    if found is None:
        return x
    mesh, rows = found
    made: Tensor = _Summed.apply(x if rows.count else x * 0, mesh.all)  # type: ignore[no-untyped-call]  # torch's
    return made


def gathered(x: Tensor) -> Tensor:
    """The rows of all parts of the batch, in the order of the whole one: (b, ...) of each process to (B, ...). It has a
    gradient. On one process, `x` itself: a loss that compares each sample with all others takes these.

    >>> gathered(torch.ones(2, 3)).shape
    torch.Size([2, 3])
    """
    found = _part()
    if found is None:
        return x
    mesh, rows = found
    most = max(rows.sizes)
    short = most - len(x)
    filled = torch.cat([x, x.new_zeros((short, *x.shape[1:]))]) if short else x
    each = _each(filled, mesh)
    return torch.cat([each[r, :n] for r, n in enumerate(rows.sizes)])


def over_shards(x: Tensor) -> Tensor:
    """The sum over the shards of the weights, of what a stage on shards made of its own. Elsewhere, `x` itself."""
    found = _HERE.get()
    if found is None or found[0].shard == 1:
        return x
    return flat.reduce(x, found[0].shards)


def norm_over_shards(norm: Tensor, order: float) -> Tensor:
    """The norm of all shards together, from that of this process's."""
    found = _HERE.get()
    if found is None or found[0].shard == 1:
        return norm
    each = flat.gather(norm.reshape(1), found[0].shard, found[0].shards)
    made: Tensor = torch.linalg.vector_norm(each, order)
    return made


def begun(shape: Sequence[int]) -> int:
    """How many numbers of a draw of this shape belong to the samples before this process's: so a sample draws the same
    on whichever process it is.

    That is known where the first dimension is that of the samples, or a multiple of it.
    """
    found = _part()
    if found is None or not shape:
        return 0
    rows = found[1]
    n = rows.length
    if shape[0] != n and (n == 1 or shape[0] % n):
        return 0
    numbers = 1
    for size in shape:
        numbers *= size
    return rows.begin * (numbers // n)


def _each(x: Tensor, mesh: Mesh) -> Tensor:
    """A tensor of each process: (...) to (W, ...)."""
    made: Tensor = _Each.apply(x, mesh.all, mesh.processes, mesh.rank)  # type: ignore[no-untyped-call]  # torch's
    return made


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, group: str) -> Tensor:
        return flat.reduce(x, group)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _Summed.apply(grad, ctx.group), None  # type: ignore[no-untyped-call]  # torch's


class _Each(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, group: str, processes: int, rank: int) -> Tensor:
        return flat.gather(x.reshape(-1), processes, group).view(processes, *x.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, ctx.group, _, ctx.rank = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        mine = _Summed.apply(grad, ctx.group)[ctx.rank]  # type: ignore[no-untyped-call]  # torch's
        return mine, None, None, None


class _Synced(TorchFunctionMode):
    """Within it, BatchNorm in training normalizes by the whole batch, not by a process's part."""

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
    """As torch.nn.functional.batch_norm, whose mean and variance are those of the parts together: Chan, Golub and
    LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979), equation 2.1."""
    found = _part()
    if not training or found is None:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    mesh, rows = found
    dims = [d for d in range(input.ndim) if d != 1]
    shape = [1, -1, *([1] * (input.ndim - 2))]
    x = input.float() if input.dtype in (torch.bfloat16, torch.float16) else input
    var, mean = torch.var_mean(x, dims, correction=0)
    each = _each(torch.stack([mean, var]), mesh)
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
    made = (x - mean.view(shape)) * scale.view(shape)
    return (made if bias is None else made + bias.view(shape)).to(input.dtype)
