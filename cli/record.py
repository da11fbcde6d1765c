"""Facts and versions in a run's config, to detect later differences."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from os.path import exists
from typing import Any

import torch

from cli.build import Job, parameters
from cli.config import RECORDED
from cli.prepared import digest, tensors
from cli.recipes.data import DATA, Data, kind_of, kind_prefix
from cli.recipes.data.base import without_kind
from cli.version import own_version
from pipeline import State
from pipeline.compile import key
from pipeline.errors import ConfigError
from pipeline.programs.mesh import whole


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
    return os.path.abspath(path) if _in_file(source) and path.exists() else None


def _in_file(source: str) -> bool:
    """Whether data are no bundled ones, whose name a file may have too."""
    kind = kind_of(source)
    return kind != "sklearn" and not (kind in DATA and DATA[kind].bundled)


def moved(document: Mapping[str, Any]) -> dict[str, Any]:
    """A layer of settings: the absolute path of a run's data, if their name leads to another file here, or to none."""
    data, facts = document.get("data"), document.get("facts")
    source = data.get("source") if isinstance(data, dict) else None
    path = facts.get("path") if isinstance(facts, dict) else None
    if not isinstance(source, str) or not isinstance(path, str) or not exists(path):
        return {}
    if not _in_file(source) or data_path(source) == path:
        return {}
    kind, name, test = kind_prefix(source), str(without_kind(source)), document["data"].get("test")
    layer = {"source": f"{kind}:{path}" if kind else path}
    if isinstance(test, str) and path.endswith(f"{os.sep}{name}"):  # both were relative to one folder
        layer["test"] = os.path.join(path.removesuffix(name), test)
    return {"data": layer, RECORDED: {}}


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
                    where = f" in {now['facts']['path']}" if "path" in now["facts"] else ""
                    raise ConfigError(
                        f"the data{where} have changed since the run was made: their digest is {is_now[:12]}, and was "
                        f"{was[:12]}; start a new run, or bring them back"
                    )
                yield f"the run was made with {name} {was}, and this is {is_now}"
