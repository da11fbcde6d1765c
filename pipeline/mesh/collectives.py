"""Collectives as functions of tensors, and the packing of many tensors into one.

They are torch's functional collectives, which a graph can hold; eagerly, they wait at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

BUCKET = 8 * 2**20
"""Approximate bytes of full tensors in one collective."""


def wait(t: Tensor) -> Tensor:
    """The result of a collective, after waiting for it."""
    result: Tensor = torch.ops._c10d_functional.wait_tensor(t)
    return result


def all_reduce(x: Tensor, group: str) -> Tensor:
    """The sum over the processes of a group."""
    return wait(torch.ops._c10d_functional.all_reduce(x.contiguous(), "sum", group))


def all_gather(x: Tensor, size: int, group: str) -> Tensor:
    """The tensors of a group of `size` processes, concatenated along the first dimension."""
    return wait(torch.ops._c10d_functional.all_gather_into_tensor(x.contiguous(), size, group))


def as_real(t: Tensor) -> Tensor:
    """A complex tensor as pairs of real numbers; a real one as it is."""
    return torch.view_as_real(t) if t.is_complex() else t


def reshape_like(flat: Tensor, like: Tensor) -> Tensor:
    """Real numbers, (n,), in the shape of a tensor, and complex if it is."""
    result = flat.reshape(as_real(like).shape)
    return torch.view_as_complex(result.contiguous()) if like.is_complex() else result


def unshard(shards: Tensor, like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The full tensor from its shards, (M, numbers), without their padding; `like` is one shard."""
    if like.ndim == 0:
        return reshape_like(shards[0], like)
    result = shards.reshape(-1, *as_real(like).shape[1:])[: shape[0]]
    return torch.view_as_complex(result.contiguous()) if like.is_complex() else result


def pad(t: Tensor, rows: int) -> Tensor:
    """A tensor padded with rows of zeros."""
    return torch.cat([t, t.new_zeros((rows - len(t), *t.shape[1:]))]) if len(t) < rows else t


def buckets(tensors: Mapping[str, Tensor], shards: int = 1) -> list[list[str]]:
    """Names of tensors in groups for one collective each, by dtype and in order. Each tensor is one of so many
    shards."""
    result: list[list[str]] = []
    current: dict[torch.dtype, tuple[list[str], int]] = {}
    for k, t in tensors.items():
        dtype, size = as_real(t).dtype, shards * t.nbytes
        names, total = current.get(dtype, ([], BUCKET + 1))
        if total + size > BUCKET:
            names, total = [], 0
            result.append(names)
        names.append(k)
        current[dtype] = names, total + size
    return result


def split_float64(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each float64 number as the sum of two float32 numbers, to travel with the gradients."""
    flat = torch.cat([t.reshape(-1).to(torch.float64) for t in tensors])
    high = flat.to(torch.float32)
    return [high.view(1, -1), (flat - high).to(torch.float32).view(1, -1)]


def join_float64(flat: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of `split_float64`, for sums of its results."""
    if not tensors:
        return []
    half = flat.numel() // 2
    return unpack(flat[:half].to(torch.float64) + flat[half:].to(torch.float64), tensors)


def unpack(flat: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """float64 numbers in the shapes and dtypes of tensors, one after the other."""
    result, at = [], 0
    for t in tensors:
        x = flat[at : at + t.numel()].reshape(t.shape)
        result.append((x if t.is_floating_point() else x.round()).to(t.dtype))
        at += t.numel()
    return result
