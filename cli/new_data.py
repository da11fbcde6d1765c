"""Data that a run has not seen."""

from __future__ import annotations

from collections.abc import Iterator

from cli import config as settings
from cli.recipes.code import is_code
from cli.recipes.data import DATA, kind_of
from cli.saved_run import Past
from pipeline.sources import Rows
from pipeline.state import Batch


def rows(past: Past, data: str, *, targets: bool) -> Iterator[Rows]:
    """Chunks of samples, prepared as the run's own data were. Raises a PipeError for data of another form."""
    trained_on = past.config.tables["data"]
    kind = kind_of(past.config.data.source)
    if kind_of(data) is None and kind in DATA:  # such as a single image
        data = f"{kind}:{data}"
    layers = [{"data": trained_on}, {"data": data}] if not is_code(data) else [{"data": data}]
    return settings.make(*layers).data.others(past.about, targets=targets)


class Batches:
    """Batches of samples with targets, read again for each iteration."""

    def __init__(self, past: Past, data: str) -> None:
        self.past, self.data = past, data

    def __iter__(self) -> Iterator[Batch]:
        return (chunk.batch for chunk in rows(self.past, self.data, targets=True))
