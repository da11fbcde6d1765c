"""Mesh: the processes of a run, which samples and which rows of the weights each has, and how tensors go between them.

A step on a mesh is the same step: each process runs it on its part of the batch, and what is summed over samples is
summed over processes. The collectives are functions of tensors, so they are traced into the step's graph.

    W   processes        M   shards of each weight        rows   of a tensor's first dimension
"""

from __future__ import annotations

import atexit
import datetime
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from attrs import field, frozen
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from pipeline.errors import DeviceError

ROWS = "rows of the batch"
"""The name in a batch of what says which samples of the whole one it has."""

GOODBYE = 2.0
"""Seconds that a process waits for the others when it ends."""

BUCKET = 8 * 2**20
"""Bytes of whole tensors that go in one collective, about."""


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

    def of(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Its part of a batch that is whole."""

        def own(x: Any) -> Any:
            sized = isinstance(x, Tensor | np.ndarray) and x.ndim > 0 and x.shape[0] == self.whole
            return x[self.taken] if sized or (isinstance(x, list) and len(x) == self.whole) else x

        parts = pytree.tree_map(own, dict(batch), is_leaf=lambda x: isinstance(x, list) and len(x) == self.whole)
        return {**parts, ROWS: self}


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
        for names in _buckets(parts, self.shard):
            flat = torch.cat([_real(parts[k]).reshape(-1) for k in names])
            each = _gather(flat, self.shard, self.shards).view(self.shard, -1)
            at = 0
            for k in names:
                size = _real(parts[k]).numel()
                made[k] = _put(each[:, at : at + size], parts[k], shapes[k])
                at += size
        return {k: made[k] for k in parts}

    # -- sums over processes

    def reduced(
        self, sums: Mapping[str, Tensor], more: Sequence[Tensor] = ()
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Sums over all processes: of weights' gradients, of each its own rows, and of `more` tensors, whole."""
        made: dict[str, Tensor] = {}
        totals: list[Tensor] | None = None
        for names in [b[::-1] for b in _buckets({k: sums[k] for k in [*sums][::-1]})]:
            with_more = totals is None and _real(sums[names[0]]).dtype == torch.float32
            flat = [self._spread(sums[k]) for k in names]
            if with_more and more:
                flat += [x.expand(self.shard, -1) for x in _split(more)]
            mine = self._reduce(torch.cat(flat, 1))
            at = 0
            for k in names:
                like = sums[k].new_empty(0).new_empty(self._shape(sums[k])) if self.shard > 1 else sums[k]
                size = _real(like).numel()
                made[k] = _like(mine[at : at + size], like)
                at += size
            if with_more:
                totals = _joined(mine[at:], more)
        if totals is None:
            totals = self.totals(more)
        return {k: made[k] for k in sums}, totals

    def totals(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Sums over all processes, in float64."""
        if not tensors:
            return []
        flat = _reduce(torch.cat([t.reshape(-1).to(torch.float64) for t in tensors]), self.all)
        made, at = [], 0
        for t in tensors:
            made.append(flat[at : at + t.numel()].to(t.dtype).reshape(t.shape))
            at += t.numel()
        return made

    def _shape(self, t: Tensor) -> tuple[int, ...]:
        return (-(-t.shape[0] // self.shard), *t.shape[1:]) if t.ndim else ()

    def _spread(self, t: Tensor) -> Tensor:
        """A whole tensor as the parts of all shards: (M, numbers)."""
        real = _real(t)
        if self.shard == 1 or t.ndim == 0:
            return real.reshape(1, -1).expand(self.shard, -1)
        short = self._shape(t)[0] * self.shard - t.shape[0]
        filled = torch.cat([real, real.new_zeros((short, *real.shape[1:]))]) if short else real
        return filled.reshape(self.shard, -1)

    def _reduce(self, parts: Tensor) -> Tensor:
        if self.shard == 1:
            return _reduce(parts.reshape(-1), self.all)
        operator = torch.ops._c10d_functional.reduce_scatter_tensor
        made = _wait(operator(parts.reshape(-1).contiguous(), "sum", self.shard, self.shards))
        return _reduce(made, self.copies) if self.data > 1 else made

    # -- on the host, for what all have to agree on

    def agreed(self, value: Any) -> Any:
        """The first process's value."""
        return spread(value)

    def everyone(self, value: Any) -> list[Any]:
        """Each process's value."""
        found: list[Any] = [None] * self.processes
        dist.all_gather_object(found, value)
        return found


_MADE: dict[tuple[int, int, str], Mesh] = {}


def processes() -> int:
    """How many processes were started together: by torchrun, which says so in the environment."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


def several() -> bool:
    """Whether this process was connected with others."""
    return bool(_MADE)


def make(data: int | None, shard: int, device: torch.device, timeout: float) -> Mesh | None:
    """The mesh of all processes; None where there is one. Raises DeviceError where the numbers do not fit.

    Connects the processes where nobody did. All of them have to call it with the same numbers.
    """
    count = processes()
    if data is None:
        if count == 1:
            return None
        data = max(count // shard, 1)
    if data * shard != count:
        raise DeviceError(
            f"place.mesh(data={data}, shard={shard}) is of {data * shard} processes, and {count} run here: start it by "
            f"torchrun --nproc-per-node {data * shard}"
        )
    if count == 1:
        return None
    found = _MADE.get((data, shard, device.type))
    if found is None:
        _connect(device, timeout)
        everyone = dist.group.WORLD.group_name  # type: ignore[union-attr]  # it was made
        shards = copies = everyone
        if shard > 1 and data > 1:
            grid = dist.device_mesh.init_device_mesh(device.type, (data, shard), mesh_dim_names=("data", "shard"))
            shards, copies = grid.get_group("shard").group_name, grid.get_group("data").group_name
        found = _MADE[data, shard, device.type] = Mesh(data, shard, dist.get_rank(), device, everyone, shards, copies)
        _alike(found)
    return found


def _connect(device: torch.device, timeout: float) -> None:
    if dist.is_initialized():
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    options: dict[str, Any] = {"timeout": datetime.timedelta(seconds=timeout)}
    try:
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT")
        if attempt is not None and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            # The agent keeps its store when it restarts processes, with the addresses of those before in it.
            env = os.environ
            store = dist.TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), is_master=False, **options)  # type: ignore[attr-defined]  # public
            options["store"] = dist.PrefixStore(f"attempt {attempt}", store)  # type: ignore[attr-defined]  # as that
            options["rank"], options["world_size"] = int(env["RANK"]), int(env["WORLD_SIZE"])
        dist.init_process_group(backend, **options)
    except Exception as e:  # of sockets, stores and environments
        said = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise DeviceError(f"the processes can't connect: {said}; is another run on the same port?") from None
    atexit.register(_leave)


def _leave() -> None:
    """End together: a process whose connections are closed by others while it ends itself may abort."""
    if dist.is_initialized():
        with suppress(Exception):  # of a process that has gone, or waits for something else
            dist.monitored_barrier(timeout=datetime.timedelta(seconds=GOODBYE))
        dist.destroy_process_group()


def spread(value: Any) -> Any:
    """The first process's value, in all of them, where there are several."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, 0)
    return box[0]


def claimed(name: str, value: str) -> bool:
    """Whether this process is the first that calls this with a name; without waiting for any."""
    if not dist.is_initialized():
        return int(os.environ.get("RANK", "0")) == 0
    store = dist.distributed_c10d._get_default_store()
    with suppress(Exception):  # it was on a process that is gone
        mine = f"{os.environ.get('RANK')} {value}"
        return store.compare_set(f"pipeline/{name}", "", mine).decode() == mine
    return False


def _alike(mesh: Mesh) -> None:
    """Raise DeviceError where the processes have other versions, which would compute or order otherwise."""
    versions = mesh.everyone((torch.__version__, np.__version__, sys.version.split()[0]))
    for r, other in enumerate(versions):
        for name, mine, theirs in zip(("torch", "numpy", "Python"), versions[0], other, strict=True):
            if mine != theirs:
                raise DeviceError(
                    f"process {r} has {name} {theirs}, and process 0 {mine}: install one version for all of them"
                )


# -- what stages may call

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
    return _reduce(x, found[0].shards)


def norm_over_shards(norm: Tensor, order: float) -> Tensor:
    """The norm of all shards together, from that of this process's."""
    found = _HERE.get()
    if found is None or found[0].shard == 1:
        return norm
    each = _gather(norm.reshape(1), found[0].shard, found[0].shards)
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
        return _reduce(x, group)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _Summed.apply(grad, ctx.group), None  # type: ignore[no-untyped-call]  # torch's


class _Each(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, group: str, processes: int, rank: int) -> Tensor:
        return _gather(x.reshape(-1), processes, group).view(processes, *x.shape)

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


# -- collectives as functions


def _wait(t: Tensor) -> Tensor:
    made: Tensor = torch.ops._c10d_functional.wait_tensor(t)
    return made


def _reduce(x: Tensor, group: str) -> Tensor:
    return _wait(torch.ops._c10d_functional.all_reduce(x.contiguous(), "sum", group))


def _gather(x: Tensor, size: int, group: str) -> Tensor:
    return _wait(torch.ops._c10d_functional.all_gather_into_tensor(x.contiguous(), size, group))


def _real(t: Tensor) -> Tensor:
    return torch.view_as_real(t) if t.is_complex() else t


def _like(flat: Tensor, like: Tensor) -> Tensor:
    """Numbers in the shape of a tensor."""
    made = flat.reshape(_real(like).shape)
    return torch.view_as_complex(made.contiguous()) if like.is_complex() else made


def _put(parts: Tensor, like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The parts of a tensor, (M, numbers), as the whole."""
    if like.ndim == 0:
        return _like(parts[0], like)
    inner = _real(like).shape[1:]
    made = parts.reshape(-1, *inner)[: shape[0]]
    return torch.view_as_complex(made.contiguous()) if like.is_complex() else made


def _buckets(tensors: Mapping[str, Tensor], shards: int = 1) -> list[list[str]]:
    """Names of tensors of one dtype that go together, in order; of what each process has one of so many parts."""
    made: list[list[str]] = []
    size: dict[torch.dtype, int] = {}
    open_: dict[torch.dtype, list[str]] = {}
    for k, t in tensors.items():
        dtype = _real(t).dtype
        if dtype not in open_ or size[dtype] + shards * t.nbytes > BUCKET:
            open_[dtype], size[dtype] = [], 0
            made.append(open_[dtype])
        open_[dtype].append(k)
        size[dtype] += shards * t.nbytes
    return made


def _split(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Numbers in float64 as float32, each as two whose sum it is: so they go with the gradients."""
    flat = torch.cat([t.reshape(-1).to(torch.float64) for t in tensors])
    high = flat.to(torch.float32)
    return [high.view(1, -1), (flat - high).to(torch.float32).view(1, -1)]


def _joined(flat: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
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
