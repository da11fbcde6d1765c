"""Passing: Reports that are written as they pass, and their rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, ExitStack
from importlib import import_module
from typing import Any, TypeAlias

from pipeline.errors import ConfigError
from pipeline.state import Report, State

Reports: TypeAlias = Generator[Report, State | None, None]
Row: TypeAlias = dict[str, Any]
Open: TypeAlias = Callable[[Report], AbstractContextManager[Callable[[Report], None]]]
"""First Report -> function that writes Reports."""


def row(report: Report) -> Row:
    """A Report as one flat mapping for JSON: `epoch`, `step`, `train/loss`, `validate/loss`, ..., `seconds` and
    `samples_per_second`. NaN and infinity are None.

    >>> row(Report(1, 4, 23, 23, 23, True, {"loss": 0.5}))["train/loss"]
    0.5
    """
    both = (("train", report.train), ("validate", report.validate))
    return {
        "epoch": report.epoch,
        "step": report.step,
        **{f"{kind}/{name}": finite(value) for kind, metrics in both for name, value in metrics.items()},
        "seconds": report.seconds,
        "samples_per_second": report.samples_per_second,
    }


def finite(value: Any) -> Any:
    """A value as JSON, which has no NaN."""
    if isinstance(value, list):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def passed(reports: Iterable[Report], begin: Open, inside: bool) -> Reports:
    """Yield each Report after writing it."""
    source = iter(reports)
    sent: State | None = None
    write: Callable[[Report], None] | None = None
    with ExitStack() as stack:
        if isinstance(source, Generator):
            stack.callback(source.close)
        while True:
            try:
                report = next(source) if sent is None else source.send(sent)  # type: ignore[attr-defined]  # fit's has it
            except StopIteration:
                return
            # `send` returns the same Report again.
            if sent is None and (report.complete or report.validate or inside):
                write = write or stack.enter_context(begin(report))
                write(report)
            sent = yield report


def scalars(report: Report) -> dict[str, float]:
    """The numbers of a Report by name, without its step."""
    return {k: v for k, v in row(report).items() if isinstance(v, int | float) and k != "step"}


def package(module: str, name: str = "") -> Any:
    """A module of the package `name`. Raises ConfigError without it."""
    name = name or module
    try:
        found: Any = import_module(module)
    except ImportError:
        found = None
    if found is None or found.__file__ is None:  # a folder of that name, such as W&B makes
        raise ConfigError(f"log.{name}() needs the package {name}: pip install {name}")
    return found
