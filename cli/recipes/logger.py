"""Loggers by name: one line each. The run's own metrics.jsonl is always written."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from attrs import frozen

from cli.recipes import code

if TYPE_CHECKING:
    from pipeline.log import Reports


@frozen
class Logger:
    """A logger that the command knows."""

    home: str
    """Its function, `module:function`, called as f(reports, path), which passes the reports on."""
    file: str = ""
    """The file it writes in its folder; none if it writes several."""
    service: bool = False
    """Whether it writes to a project, `NAME:PROJECT`, and is called as f(reports, project, run=..., config=...)."""


LOGGERS: dict[str, Logger] = {
    "csv": Logger("pipeline.log:csv", "metrics.csv"),
    "tensorboard": Logger("pipeline.log:tensorboard"),
    "wandb": Logger("pipeline.log:wandb", service=True),
    "mlflow": Logger("pipeline.log:mlflow", service=True),
    "trackio": Logger("pipeline.log:trackio", service=True),
}


PROJECT = {"pattern": f"^({'|'.join(name for name, logger in LOGGERS.items() if logger.service)}):."}
"""JSON schema of a service with its project."""


def base(name: str) -> str:
    """The logger of `wandb:PROJECT`."""
    logger, _, project = name.partition(":")
    return logger if project and logger in LOGGERS and LOGGERS[logger].service else name


def logged(
    names: tuple[str, ...], reports: Reports, folder: Callable[[str], Path], run: str = "",
    config: Mapping[str, Any] | None = None,
) -> Reports:  # fmt: skip
    """Reports that each logger writes as they pass, in a folder of its name; the user's own code gets one too. Services
    get the run's name and its settings."""
    for name in names:
        logger = LOGGERS.get(base(name))
        if logger is not None and logger.service:
            project = [p for p in [name.partition(":")[2]] if p]
            run = re.sub(r"[^\w.-]+", "-", run)
            reports = resolve_name(logger.home)(reports, *project, run=run or None, config=config)
        elif logger is not None:
            reports = resolve_name(logger.home)(reports, folder(name) / logger.file)
        else:
            reports = code.load(name)(reports, folder(name.rpartition(":")[2]))
    return reports
