"""Shards: the samples of a batch and the rows of the weights of each process, and sums over processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from attrs import field, frozen
from torch import Tensor
from torch import distributed as dist
from torch.utils import _pytree as pytree

from pipeline.mesh import collectives


@frozen
class Rows:
    """The samples that a process has of a batch of `whole`; of fewer samples than processes, some have none."""

    rank: int
    processes: int
    whole: int

    @property
    def begin(self) -> int:
        return self.whole * self.rank // self.processes

    @property
    def count(self) -> int:
        return self.whole * (self.rank + 1) // self.processes - self.begin

    @property
    def sizes(self) -> list[int]:
        """The count of each process."""
        return [Rows(r, self.processes, self.whole).count for r in range(self.processes)]

    @property
    def taken(self) -> slice:
        """The samples to compute on; an empty rank computes sample 0, with weight 0."""
        return slice(self.begin, self.begin + self.count) if self.count else slice(0, 1)

    @property
    def length(self) -> int:
        """Number of samples to compute on."""
        return max(self.count, 1)

    def shard(self, batch: Mapping[str, Any]) -> Shard:
        """Its samples of a whole batch."""

        def own(x: Any) -> Any:
            sized = isinstance(x, Tensor | np.ndarray) and x.ndim > 0 and x.shape[0] == self.whole
            return x[self.taken] if sized or (isinstance(x, list) and len(x) == self.whole) else x

        parts = pytree.tree_map(own, dict(batch), is_leaf=lambda x: isinstance(x, list) and len(x) == self.whole)
        return Shard(parts, self)


@frozen(eq=False)
class Shard:
    """The samples of a batch that a process has. Without `rows`, all of them."""

    values: Mapping[str, Any]
    rows: Rows | None = None


@frozen(eq=False)
class Mesh:
    """W = data * shard processes. Each has its rows of every batch, and one of `shard` shards of the weights."""

    data: int
    shard: int
    rank: int
    device: torch.device
    all: str = field(repr=False)
    """Name of the group of all processes."""
    shards: str = field(repr=False)
    """Name of the group of ranks whose shards make up the weights."""
    copies: str = field(repr=False)
    """Name of the group of ranks with the same shard."""

    @property
    def processes(self) -> int:
        return self.data * self.shard

    def rows(self, whole: int) -> Rows:
        """The process's part of a batch of `whole` samples."""
        return Rows(self.rank, self.processes, whole)

    # -- weights in shards

    def part(self, t: Tensor) -> Tensor:
        """The process's shard of a full tensor: (d, ...) to (ceil(d / M), ...), padded with zeros. A 0-d tensor is not
        sharded."""
        if self.shard == 1 or t.ndim == 0:
            return t
        begin, end, rows = self.span(t.shape[0])
        return collectives.pad(t[begin:end], rows) if end - begin < rows else t[begin:end].clone()

    def span(self, count: int) -> tuple[int, int, int]:
        """The process's shard of `count` rows: begin, end, and the number of rows with padding."""
        rows = -(-count // self.shard)
        begin = min(self.rank % self.shard * rows, count)
        return begin, min(begin + rows, count), rows

    def whole(self, shards: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """The full tensors, of these shapes, from all shards."""
        full: dict[str, Tensor] = {}
        for names in collectives.buckets(shards, self.shard):
            mine = torch.cat([collectives.as_real(shards[k]).reshape(-1) for k in names])
            each = collectives.all_gather(mine, self.shard, self.shards).view(self.shard, -1)
            at = 0
            for k in names:
                size = collectives.as_real(shards[k]).numel()
                full[k] = collectives.unshard(each[:, at : at + size], shards[k], shapes[k])
                at += size
        return {k: full[k] for k in shards}

    # -- sums over processes

    def reduced(
        self, grads: Mapping[str, Tensor], more: Sequence[Tensor] = ()
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Sums over all processes: of gradients, this process's shards, and of `more` tensors in full."""
        sums: dict[str, Tensor] = {}
        totals: list[Tensor] | None = None
        for names in [b[::-1] for b in collectives.buckets({k: grads[k] for k in [*grads][::-1]})]:
            with_more = totals is None and collectives.as_real(grads[names[0]]).dtype == torch.float32
            pieces = [self._sharded(grads[k]) for k in names]
            if with_more and more:
                pieces += [x.expand(self.shard, -1) for x in collectives.split_float64(more)]
            mine = self._reduce_scatter(torch.cat(pieces, 1))
            at = 0
            for k in names:
                like = grads[k].new_empty(0).new_empty(self._shape(grads[k])) if self.shard > 1 else grads[k]
                size = collectives.as_real(like).numel()
                sums[k] = collectives.reshape_like(mine[at : at + size], like)
                at += size
            if with_more:
                totals = collectives.join_float64(mine[at:], more)
        return {k: sums[k] for k in grads}, self.totals(more) if totals is None else totals

    def totals(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Sums over all processes, in float64."""
        if not tensors:
            return []
        flat = torch.cat([t.reshape(-1).to(torch.float64) for t in tensors])
        return collectives.unpack(collectives.all_reduce(flat, self.all), tensors)

    def _shape(self, t: Tensor) -> tuple[int, ...]:
        """Shape of a shard of a full tensor."""
        return (-(-t.shape[0] // self.shard), *t.shape[1:]) if t.ndim else ()

    def _sharded(self, t: Tensor) -> Tensor:
        """All shards of a full tensor: (M, numbers)."""
        real = collectives.as_real(t)
        if self.shard == 1 or t.ndim == 0:
            return real.reshape(1, -1).expand(self.shard, -1)
        return collectives.pad(real, self._shape(t)[0] * self.shard).reshape(self.shard, -1)

    def _reduce_scatter(self, shards: Tensor) -> Tensor:
        """The sum over all processes of this process's shard: (M, numbers) to (numbers,)."""
        if self.shard == 1:
            return collectives.all_reduce(shards.reshape(-1), self.all)
        operator = torch.ops._c10d_functional.reduce_scatter_tensor
        mine = collectives.wait(operator(shards.reshape(-1).contiguous(), "sum", self.shard, self.shards))
        return collectives.all_reduce(mine, self.copies) if self.data > 1 else mine

    # -- objects on the host

    def everyone(self, value: Any) -> list[Any]:
        """Each process's value."""
        values: list[Any] = [None] * self.processes
        dist.all_gather_object(values, value)
        return values


def broadcast(value: Any) -> Any:
    """The first process's value, in all connected processes."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, 0)
    return box[0]
