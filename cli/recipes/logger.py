"""Loggers by name: one line each. The run's own metrics.jsonl is always written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING

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


LOGGERS: dict[str, Logger] = {
    "csv": Logger("pipeline.log:csv", "metrics.csv"),
    "tensorboard": Logger("pipeline.log:tensorboard"),
}


def logged(names: tuple[str, ...], reports: Reports, folder: Callable[[str], Path]) -> Reports:
    """Reports that each logger writes as they pass, in a folder of its name; the user's own code gets one too."""
    for name in names:
        if name in LOGGERS:
            logger = LOGGERS[name]
            reports = resolve_name(logger.home)(reports, folder(name) / logger.file)
        else:
            reports = code.load(name)(reports, folder(name.rpartition(":")[2]))
    return reports
