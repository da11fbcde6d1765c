"""What a run's config records beside its settings: what it was made with, so that it is known when something
differs."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

import torch

from cli.build import Job, parameters
from cli.version import own_version
from pipeline import State
from pipeline.compile import key
from pipeline.errors import ConfigError
from pipeline.programs.mesh import whole
from pipeline.sources import Source, Tensors
from pipeline.tree import named


def facts(made: Job, state: State) -> dict[str, Any]:
    """The tables [facts] and [versions]."""
    return {
        "facts": {
            "device": str(made.stages.place.device),
            "threads": torch.get_num_threads(),
            "processor": key.machine()["processor"],
            "model": made.model,
            "parameters": parameters(whole(made.pipe.program, state).params),
            "data": digest(_tensors(made.train), _tensors(made.held_out)),
            **{
                f"{name}_samples": len(part)
                for name, part in (("training", made.train), ("held_out", made.held_out))
                if hasattr(part, "__len__")
            },
            "hyper": {name: value.tolist() for name, value in state.hyper.items()},
        },
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """What may change the last bits. A wheel's metadata may leave out what torch's own version says of its build."""
    others = {"pipe-train": own_version(), "numpy": version("numpy")}
    return {"python": platform.python_version(), "torch": torch.__version__, **others}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """In words, what may change the last bits. Raises ConfigError where the data are others."""
    for table, names in (("facts", ("data", "device", "threads", "processor")), ("versions", tuple(now["versions"]))):
        then = before.get("run" if table == "facts" and "settings" in before else table)  # as older files have it
        then = then if isinstance(then, dict) else {}
        for name in names:
            was, is_ = then.get(name), now[table][name]
            if was not in (None, is_):
                if name == "data":
                    raise ConfigError(
                        "the data are no longer those that the run was made with; start a new run, or bring them back"
                    )
                yield f"the run was made with {name} {was}, and this is {is_}"


LOOKED = 256
"""Of data that are not in memory, so many samples are looked at."""


def digest(*parts: Mapping[str, torch.Tensor]) -> str:
    """A hash of tensors by name."""
    whole = hashlib.sha256()
    for part in parts:
        for name, t in sorted(part.items()):
            whole.update(f"{name} {tuple(t.shape)} {t.dtype}".encode())
            whole.update(t.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()


def _tensors(data: Any) -> dict[str, torch.Tensor]:
    """What is looked at of data; of an iterable, nothing."""
    if isinstance(data, Tensors):
        return dict(data.tensors)
    if not isinstance(data, Source):
        return {}
    at = torch.linspace(0, len(data) - 1, min(LOOKED, len(data)), dtype=torch.float64).long()
    seen = named(data[at])
    return {"length": torch.tensor(len(data)), **{k: v for k, v in seen.items() if isinstance(v, torch.Tensor)}}
