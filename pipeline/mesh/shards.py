"""Parts: which samples of a batch and which rows of the weights a process has, and sums over processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from attrs import field, frozen
from torch import Tensor
from torch import distributed as dist
from torch.utils import _pytree as pytree

from pipeline.mesh import collectives as flat


@frozen
class Rows:
    """Which samples of a batch of `whole` a process has; where they are fewer than processes, some have none."""

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
        """What each process has."""
        return [Rows(r, self.processes, self.whole).count for r in range(self.processes)]

    @property
    def taken(self) -> slice:
        """Those samples; who has none computes on the first, and counts it as nothing."""
        return slice(self.begin, self.begin + self.count) if self.count else slice(0, 1)

    @property
    def length(self) -> int:
        """How many samples it computes on."""
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
    """W = data * shard processes. Each has its part of every batch, and one of `shard` parts of the weights."""

    data: int
    shard: int
    rank: int
    device: torch.device
    all: str = field(repr=False)
    """The name of the group of all processes."""
    shards: str = field(repr=False)
    """That of the group which together has the weights."""
    copies: str = field(repr=False)
    """That of those with the same part of the weights."""

    @property
    def processes(self) -> int:
        return self.data * self.shard

    def rows(self, whole: int) -> Rows:
        """Its part of a batch of so many samples."""
        return Rows(self.rank, self.processes, whole)

    # -- weights in parts

    def part(self, t: Tensor) -> Tensor:
        """Its rows of a tensor that all processes have: (d, ...) to (ceil(d / M), ...), filled up with zeros. A 0-d
        tensor stays whole."""
        if self.shard == 1 or t.ndim == 0:
            return t
        begin, end, rows = self.own(t.shape[0])
        own = t[begin:end]
        return torch.cat([own, own.new_zeros((rows - len(own), *t.shape[1:]))]) if len(own) < rows else own.clone()

    def own(self, whole: int) -> tuple[int, int, int]:
        """Of so many rows: the first that it has, the one behind its last, and how many it keeps room for."""
        rows = -(-whole // self.shard)
        begin = min(self.rank % self.shard * rows, whole)
        return begin, min(begin + rows, whole), rows

    def whole(self, parts: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """The whole tensors, of these shapes, from the rows that the processes have."""
        made: dict[str, Tensor] = {}
        for names in flat.buckets(parts, self.shard):
            mine = torch.cat([flat.real(parts[k]).reshape(-1) for k in names])
            each = flat.gather(mine, self.shard, self.shards).view(self.shard, -1)
            at = 0
            for k in names:
                size = flat.real(parts[k]).numel()
                made[k] = flat.put(each[:, at : at + size], parts[k], shapes[k])
                at += size
        return {k: made[k] for k in parts}

    # -- sums over processes

    def reduced(
        self, sums: Mapping[str, Tensor], more: Sequence[Tensor] = ()
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Sums over all processes: of weights' gradients, of each its own rows, and of `more` tensors, whole."""
        made: dict[str, Tensor] = {}
        totals: list[Tensor] | None = None
        for names in [b[::-1] for b in flat.buckets({k: sums[k] for k in [*sums][::-1]})]:
            with_more = totals is None and flat.real(sums[names[0]]).dtype == torch.float32
            pieces = [self._spread(sums[k]) for k in names]
            if with_more and more:
                pieces += [x.expand(self.shard, -1) for x in flat.split(more)]
            mine = self._reduce(torch.cat(pieces, 1))
            at = 0
            for k in names:
                like = sums[k].new_empty(0).new_empty(self._shape(sums[k])) if self.shard > 1 else sums[k]
                size = flat.real(like).numel()
                made[k] = flat.shaped(mine[at : at + size], like)
                at += size
            if with_more:
                totals = flat.joined(mine[at:], more)
        if totals is None:
            totals = self.totals(more)
        return {k: made[k] for k in sums}, totals

    def totals(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Sums over all processes, in float64."""
        if not tensors:
            return []
        whole = flat.reduce(torch.cat([t.reshape(-1).to(torch.float64) for t in tensors]), self.all)
        made, at = [], 0
        for t in tensors:
            made.append(whole[at : at + t.numel()].to(t.dtype).reshape(t.shape))
            at += t.numel()
        return made

    def _shape(self, t: Tensor) -> tuple[int, ...]:
        return (-(-t.shape[0] // self.shard), *t.shape[1:]) if t.ndim else ()

    def _spread(self, t: Tensor) -> Tensor:
        """A whole tensor as the parts of all shards: (M, numbers)."""
        real = flat.real(t)
        if self.shard == 1 or t.ndim == 0:
            return real.reshape(1, -1).expand(self.shard, -1)
        short = self._shape(t)[0] * self.shard - t.shape[0]
        filled = torch.cat([real, real.new_zeros((short, *real.shape[1:]))]) if short else real
        return filled.reshape(self.shard, -1)

    def _reduce(self, parts: Tensor) -> Tensor:
        if self.shard == 1:
            return flat.reduce(parts.reshape(-1), self.all)
        operator = torch.ops._c10d_functional.reduce_scatter_tensor
        made = flat.wait(operator(parts.reshape(-1).contiguous(), "sum", self.shard, self.shards))
        return flat.reduce(made, self.copies) if self.data > 1 else made

    # -- on the host, for what all have to agree on

    def agreed(self, value: Any) -> Any:
        """The first process's value."""
        return spread(value)

    def everyone(self, value: Any) -> list[Any]:
        """Each process's value."""
        found: list[Any] = [None] * self.processes
        dist.all_gather_object(found, value)
        return found


def spread(value: Any) -> Any:
    """The first process's value, in all of them, where there are several."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, 0)
    return box[0]
