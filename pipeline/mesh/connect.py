"""Connect: the processes of a launcher, and their agreement on versions."""

from __future__ import annotations

import atexit
import datetime
import os
import sys
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import distributed as dist

from pipeline.errors import DeviceError
from pipeline.mesh.shards import Mesh

GOODBYE = 2.0
"""Seconds that a process waits for the others when it ends."""


def processes() -> int:
    """Number of processes of the launcher: of torchrun, which tells it in the environment."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


def several() -> bool:
    """Whether this process is connected with others."""
    return dist.is_initialized() and dist.get_world_size() > 1


def make(data: int | None, shard: int, device: torch.device, timeout: float) -> Mesh | None:
    """The mesh of all processes; None for one process. Raises DeviceError if the numbers do not fit.

    Connects the processes if they are not. All of them must call it with the same numbers.
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
    _connect(device, timeout)
    return _mesh(data, shard, device)


@cache  # process groups last as long as the process
def _mesh(data: int, shard: int, device: torch.device) -> Mesh:
    everyone = dist.group.WORLD.group_name  # type: ignore[union-attr]  # it is connected
    shards = copies = everyone
    if shard > 1 and data > 1:
        grid = dist.device_mesh.init_device_mesh(device.type, (data, shard), mesh_dim_names=("data", "shard"))
        shards, copies = grid.get_group("shard").group_name, grid.get_group("data").group_name
    mesh = Mesh(data, shard, dist.get_rank(), device, everyone, shards, copies)
    _check_versions(mesh)
    return mesh


def _connect(device: torch.device, timeout: float) -> None:
    if dist.is_initialized():
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    options: dict[str, Any] = {"timeout": datetime.timedelta(seconds=timeout)}
    try:
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT")
        if attempt is not None and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            # The agent's store outlives a restart, with the addresses of the processes before it.
            env = os.environ
            store = dist.TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), is_master=False, **options)  # type: ignore[attr-defined]  # public
            options["store"] = dist.PrefixStore(f"attempt {attempt}", store)  # type: ignore[attr-defined]  # likewise
            options["rank"], options["world_size"] = int(env["RANK"]), int(env["WORLD_SIZE"])
        dist.init_process_group(backend, **options)
    except Exception as e:  # of sockets, stores and environments
        why = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise DeviceError(f"the processes can't connect: {why}; is another run on the same port?") from None
    atexit.register(_leave)


def _leave() -> None:
    """End together: a process may abort if others close its connections while it ends."""
    if dist.is_initialized():
        with suppress(Exception):  # another process is gone, or waits for something else
            dist.monitored_barrier(timeout=datetime.timedelta(seconds=GOODBYE))
        dist.destroy_process_group()


def claimed(name: str, value: str) -> bool:
    """Whether this process is the first to call this with a name. Never waits for others."""
    if not dist.is_initialized():
        return int(os.environ.get("RANK", "0")) == 0
    store = dist.distributed_c10d._get_default_store()
    with suppress(Exception):  # the store's process is gone
        mine = f"{os.environ.get('RANK')} {value}"
        return store.compare_set(f"pipeline/{name}", "", mine).decode() == mine
    return False


def _check_versions(mesh: Mesh) -> None:
    """Raise DeviceError if the processes have different versions, which may compute or shuffle differently."""
    versions = mesh.everyone((torch.__version__, np.__version__, sys.version.split()[0]))
    for r, other in enumerate(versions):
        for name, mine, theirs in zip(("torch", "numpy", "Python"), versions[0], other, strict=True):
            if mine != theirs:
                raise DeviceError(
                    f"process {r} has {name} {theirs}, and process 0 {mine}: install one version for all of them"
                )
