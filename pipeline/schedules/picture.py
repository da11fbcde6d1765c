"""Plot schedules."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pipeline.errors import ConfigError
from pipeline.schedules.decay import constant
from pipeline.schedules.schedule import Schedule

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot(
    what: Schedule | Mapping[str, Schedule | float], steps: int, path: str | Path | None = None, *,
    batches: int | None = None,
) -> Figure:  # fmt: skip
    """A matplotlib Figure of one schedule, or of several by name, over a run of `steps`.

    `path`: write it to this file. `batches`: an epoch's number of batches, for schedules that need it.
    """
    from matplotlib.figure import Figure

    lines = what if isinstance(what, Mapping) else {"": what}
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axes = figure.add_subplot()
    at = torch.arange(steps)
    for name, line in lines.items():
        schedule = line if isinstance(line, Schedule) else constant(line)
        axes.plot(at.tolist(), schedule.values(at, steps, batches).tolist(), label=name or None)
    axes.set(xlabel="step of the run (number of batches)", ylabel="value (no unit)", xlim=(0, steps))
    axes.grid(alpha=0.3)
    if any(lines):
        figure.legend(loc="outside right upper")  # outside, so that it covers no line
    if path is not None:
        try:
            figure.savefig(path, dpi=150)
        except (OSError, ValueError) as e:  # ValueError: unknown image format
            raise ConfigError(f"can't write the picture {path}: {getattr(e, 'strerror', None) or e}") from None
    return figure
