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
from pipeline import State
from pipeline.compile import key
from pipeline.errors import ConfigError


def facts(made: Job, state: State) -> dict[str, Any]:
    """The tables [run] and [versions]."""
    return {
        "run": {
            "device": str(made.pipe.place.device),
            "threads": torch.get_num_threads(),
            "processor": key.machine()["processor"],
            "model": made.model,
            "parameters": parameters(state.params),
            "data": _digest(made),
            "training_samples": len(made.train),
            "held_out_samples": len(made.held_out),
            "hyper": {name: value.item() for name, value in state.hyper.items()},
        },
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """What may change the last bits. A wheel's metadata may leave out what torch's own version says of its build."""
    others = {name: version(name) for name in ("pipe-train", "numpy")}
    return {"python": platform.python_version(), "torch": torch.__version__, **others}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """In words, what may change the last bits. Raises ConfigError where the data are others."""
    for table, names in (("run", ("data", "device", "threads", "processor")), ("versions", tuple(now["versions"]))):
        then = before.get(table)
        then = then if isinstance(then, dict) else {}
        for name in names:
            was, is_ = then.get(name), now[table][name]
            if was not in (None, is_):
                if name == "data":
                    raise ConfigError(
                        "the data are no longer those that the run was made with; start a new run, or bring them back"
                    )
                yield f"the run was made with {name} {was}, and this is {is_}"


def _digest(made: Job) -> str:
    """A hash of the data."""
    whole = hashlib.sha256()
    for name, t in (*sorted(made.train.tensors.items()), *sorted(made.held_out.tensors.items())):
        whole.update(f"{name} {tuple(t.shape)} {t.dtype}".encode())
        whole.update(t.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()
