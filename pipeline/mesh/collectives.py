"""Flat: collectives as functions, on tensors that go together in one.

They are torch's functional ones, which a graph can hold; eager, they wait at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

BUCKET = 8 * 2**20
"""Bytes of whole tensors that go in one collective, about."""


def wait(t: Tensor) -> Tensor:
    """What a collective made, once it is there."""
    made: Tensor = torch.ops._c10d_functional.wait_tensor(t)
    return made


def reduce(x: Tensor, group: str) -> Tensor:
    """The sum over the processes of a group."""
    return wait(torch.ops._c10d_functional.all_reduce(x.contiguous(), "sum", group))


def gather(x: Tensor, size: int, group: str) -> Tensor:
    """What `size` processes have, one after the other along the first dimension."""
    return wait(torch.ops._c10d_functional.all_gather_into_tensor(x.contiguous(), size, group))


def real(t: Tensor) -> Tensor:
    """A complex number is two."""
    return torch.view_as_real(t) if t.is_complex() else t


def shaped(flat: Tensor, like: Tensor) -> Tensor:
    """Numbers in the shape of a tensor."""
    made = flat.reshape(real(like).shape)
    return torch.view_as_complex(made.contiguous()) if like.is_complex() else made


def put(parts: Tensor, like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The parts of a tensor, (M, numbers), as the whole."""
    if like.ndim == 0:
        return shaped(parts[0], like)
    inner = real(like).shape[1:]
    made = parts.reshape(-1, *inner)[: shape[0]]
    return torch.view_as_complex(made.contiguous()) if like.is_complex() else made


def buckets(tensors: Mapping[str, Tensor], shards: int = 1) -> list[list[str]]:
    """Names of tensors of one dtype that go together, in order; of what each process has one of so many parts."""
    made: list[list[str]] = []
    size: dict[torch.dtype, int] = {}
    open_: dict[torch.dtype, list[str]] = {}
    for k, t in tensors.items():
        dtype = real(t).dtype
        if dtype not in open_ or size[dtype] + shards * t.nbytes > BUCKET:
            open_[dtype], size[dtype] = [], 0
            made.append(open_[dtype])
        open_[dtype].append(k)
        size[dtype] += shards * t.nbytes
    return made


def split(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Numbers in float64 as float32, each as two whose sum it is: so they go with the gradients."""
    flat = torch.cat([t.reshape(-1).to(torch.float64) for t in tensors])
    high = flat.to(torch.float32)
    return [high.view(1, -1), (flat - high).to(torch.float32).view(1, -1)]


def joined(flat: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """From the sums of what `split` made of such tensors, their sums."""
    if not tensors:
        return []
    half = flat.numel() // 2
    numbers = flat[:half].to(torch.float64) + flat[half:].to(torch.float64)
    made, at = [], 0
    for t in tensors:
        mine = numbers[at : at + t.numel()].reshape(t.shape)
        made.append((mine if t.is_floating_point() else mine.round()).to(t.dtype))
        at += t.numel()
    return made
