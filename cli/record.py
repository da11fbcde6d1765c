"""Facts and versions in a run's config, to detect later differences."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

import torch

from cli.build import Job, parameters
from cli.recipes.data import Data
from cli.version import own_version
from pipeline import State
from pipeline.compile import key
from pipeline.errors import ConfigError
from pipeline.programs.mesh import whole
from pipeline.sources import Source, Tensors
from pipeline.tree import named


def facts(job: Job, state: State) -> dict[str, Any]:
    """The tables [facts] and [versions] of a config."""
    return {
        "facts": {
            "device": str(job.stages.place.device),
            "threads": torch.get_num_threads(),
            "eager_steps": job.eager_steps,
            "processor": key.machine()["processor"],
            "model": job.model,
            "parameters": parameters(whole(job.pipe.program, state).params),
            "data": digest(tensors(job.train), tensors(job.held_out)),
            **({"path": path} if job.fixed is not None and (path := data_path(job.fixed.source)) else {}),
            **{
                f"{name}_samples": len(data)
                for name, data in (("training", job.train), ("held_out", job.held_out))
                if hasattr(data, "__len__")
            },
            "hyper": {name: value.tolist() for name, value in state.hyper.items()},
        },
        "versions": versions(),
    }


def data_path(source: str) -> str | None:
    """The absolute path of some data; None if they are in no file."""
    path = Data(source).path
    return os.path.abspath(path) if path.exists() else None


def versions() -> dict[str, str]:
    """Versions that may change the last bits. torch's metadata may lack its build, so its own version is taken."""
    others = {"pipe-train": own_version(), "numpy": version("numpy")}
    return {"python": platform.python_version(), "torch": torch.__version__, **others}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Differences that may change the last bits, in words. Raises ConfigError if the data differ."""
    for table, names in (("facts", ("data", "device", "threads", "processor")), ("versions", tuple(now["versions"]))):
        then = before.get(table)
        then = then if isinstance(then, dict) else {}
        for name in names:
            was, is_now = then.get(name), now[table][name]
            if was not in (None, is_now):
                if name == "data":
                    where = f" in {then['path']}" if "path" in then else ""
                    raise ConfigError(
                        f"the data{where} have changed since the run was made: their digest is {is_now[:12]}, and was "
                        f"{was[:12]}; start a new run, or bring them back"
                    )
                yield f"the run was made with {name} {was}, and this is {is_now}"


HASHED = 256
"""Samples to hash of data that are not in memory."""


def digest(*groups: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of tensors and their names."""
    sha = hashlib.sha256()
    for tensors in groups:
        for name, t in sorted(tensors.items()):
            sha.update(f"{name} {tuple(t.shape)} {t.dtype}".encode())
            sha.update(t.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def tensors(data: Any) -> dict[str, torch.Tensor]:
    """Tensors of some data to hash; none of an iterable."""
    if isinstance(data, Tensors):
        return dict(data.tensors)
    if not isinstance(data, Source):
        return {}
    at = torch.linspace(0, len(data) - 1, min(HASHED, len(data)), dtype=torch.float64).long()
    samples = named(data[at])
    return {"length": torch.tensor(len(data)), **{k: v for k, v in samples.items() if isinstance(v, torch.Tensor)}}
